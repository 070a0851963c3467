"""`seft doctor`: checks the installation of the service, on a machine with its code. It calls `core.doctor`."""

from dataclasses import asdict

import typer

from seft.client.shell import AsJson, Exit, show


def doctor(as_json: AsJson = False) -> None:
    """Check everything the service needs, from this machine with its `SEFT_` settings, and say what to fix."""
    try:
        from core.doctor import State, run_checks
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] == "core":
            message = "`seft doctor` checks the service. Run it in the folder of the repository: python -m seft doctor."
        else:
            install = "pip install --editable '.[service]'"
            message = f"`seft doctor` needs the package {error.name}. Run {install} in this folder."
        typer.echo(message, err=True)
        raise typer.Exit(Exit.USAGE) from error
    code = Exit.DONE
    for finding in run_checks():
        line = f"{finding.state:<5}  {finding.name:<8}  {finding.found}"
        show(asdict(finding), as_json, f"{line}\n{'':17}{finding.fix}" if finding.fix else line)
        if finding.state is State.WRONG:
            # Without valid settings nothing else is checked.
            code = Exit.USAGE if finding.name == "settings" else Exit.FAILED
    raise typer.Exit(code)
