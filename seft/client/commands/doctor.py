"""`seft doctor`: for the service's operator, where the service's packages are. Handed over to `core.doctor`."""

from dataclasses import asdict

import typer

from seft.client.shell import AsJson, Exit, show


def doctor(as_json: AsJson = False) -> None:
    """Try what the service needs, from this machine and with its SEFT_ settings; say what to mend."""
    try:
        from core.doctor import State, run_checks
    except ModuleNotFoundError as error:
        typer.echo(
            f"`seft doctor` is for where the service runs, and needs {error.name}: pip install '.[service]'", err=True
        )
        raise typer.Exit(Exit.USAGE) from error
    wrong = False
    for finding in run_checks():
        line = f"{finding.state:<5}  {finding.name:<8}  {finding.seen}"
        show(asdict(finding), as_json, f"{line}\n{'':17}{finding.mend}" if finding.mend else line)
        wrong |= finding.state is State.WRONG
    raise typer.Exit(Exit.FAILED if wrong else Exit.DONE)
