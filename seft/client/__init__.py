"""The Python client of the service and the `seft` command."""
