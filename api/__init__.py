"""The HTTP server: JSON routes, dashboard pages, authentication and error responses.

The rules for jobs are in `core`.
"""
