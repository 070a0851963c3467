"""Benchmarks: scripts that write JSON and print a table. The service does not import them."""
