"""Shapes of requests and answers, shaped from rows so that a table may change without its readers noticing."""
