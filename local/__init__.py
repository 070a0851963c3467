"""The whole service on one machine: real Postgres, Valkey and S3 from wheels, API and worker, under one supervisor."""
