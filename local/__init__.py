"""The whole service on one machine: Postgres, Valkey and S3 from wheels, the API and a worker, under one supervisor."""
