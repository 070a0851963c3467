"""`python -m client` is `seft`."""

from client.cli import app

app(prog_name="seft")
