"""The whole service on one machine, under one supervisor process: Postgres, Valkey, S3 storage, the API and a worker.

The programs of Postgres, Valkey and the S3 storage come from Python packages (wheels).
"""
