"""The models that a job can use: find and check a model, list all models, and use results of earlier jobs."""
