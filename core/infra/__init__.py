"""Adapters to servers and the machine: Postgres, object storage, broker, logging, tracing, devices."""
