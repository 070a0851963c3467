"""Estimates before a job runs: model dimensions, memory, time, and which workers it fits."""
