"""The HTTP server: routes, authentication, problem reports. All rules of a job live in `core`."""
