"""`python -m tests.faults`: jobs with a random fault each, and whether one is lost, doubled or changed by it."""
