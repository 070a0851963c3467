"""The processes that run jobs: the Celery worker, its training process, and the sweep that recovers lost jobs."""
