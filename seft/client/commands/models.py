"""`seft models`: the models that a job may name."""

import json
from typing import Annotated

import typer

from seft.client.responses import Model
from seft.client.shell import AsJson, connected, show_rows

HEAD = ("model", "kind", "architecture", "parameters", "context", "licence", "fits on")


def models(
    model: Annotated[
        str | None, typer.Argument(help="Show only this model, which may be any model of the hub.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub model.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the models that a job may name: local models, models in the hub cache, and results of your jobs."""
    if revision is not None and model is None:
        raise typer.BadParameter("needs a model. Write the model's id before it.", param_hint="--revision")
    with connected(as_json) as service:
        if model is None:
            pages = list(service.model_pages())
            models = [each for page in pages for each in page["data"]]
            show_rows(models, as_json, HEAD, map(_row, models))
            for page in pages:
                for skipped in page["skipped"]:
                    typer.echo(f"{skipped['id']} cannot be used: {skipped['reason']}", err=True)
        elif as_json:
            typer.echo(json.dumps(service.model(model, revision=revision)))
        else:
            show_rows((), as_json, HEAD, [_row(service.model(model, revision=revision))])


def _row(model: Model) -> list[str]:
    size, context = f"{model['parameters']:,}", "" if model["context"] is None else f"{model['context']:,}"
    workers = ", ".join(model["fits_on"])
    return [model["id"], model["kind"], model["architecture"], size, context, model["licence"] or "", workers]
