"""What the processes share: settings, errors, job states and specs, tables, jobs, events, storage, queue, logging."""
