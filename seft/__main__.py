"""Runs the command `seft` for `python -m seft`."""

from seft.client.cli import app

app(prog_name="seft")
