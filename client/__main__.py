"""`python -m client` is `seft`."""

from seft.client.cli import app

app(prog_name="seft")
