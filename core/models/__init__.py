"""The models that a job may name: resolver, catalogue, results of other jobs."""
