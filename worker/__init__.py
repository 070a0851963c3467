"""The processes that run jobs: the Celery task, the training process, and the sweep that recovers lost jobs."""
