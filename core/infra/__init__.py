"""Access to servers and to the machine: Postgres, object storage, broker, logging, tracing, devices."""
