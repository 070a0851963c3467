"""Estimates before a job runs: the dimensions of its model, memory, time, and which workers can run it."""
