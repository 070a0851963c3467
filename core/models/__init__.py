"""The models that a job may use: resolver, catalogue, and results of earlier jobs."""
