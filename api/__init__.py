"""The HTTP server: JSON routes, dashboard pages, authentication, problem reports. The rules of a job are in `core`."""
