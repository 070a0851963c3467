"""Benchmarks: scripts that write their results as JSON and print a table. The service does not import them."""
