"""The processes that do jobs: the Celery task, the child that trains, the sweep that finds what was lost."""
