"""The life of a job: admission, queue, attempts, transitions, actions, recovery, reports, retention."""
