"""`python -m seft` is the command `seft`."""

from seft.client.cli import app

app(prog_name="seft")
