"""`python -m tests.faults`: jobs with one random fault each. Checks that no job is lost, run twice or changed."""
