"""Run jobs: the Celery worker with its background threads, and the training process that it starts for each job."""
