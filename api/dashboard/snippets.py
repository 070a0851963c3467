"""Text of a job's page that a user can copy: the request as JSON, a curl command or Python code, and how to run the
model of a finished job.
"""

import json
import pprint
import shlex
from collections.abc import Iterator, Sequence

from api.schemas.jobs import JobView
from core.stored_specs import read_if_valid
from core.tables import Json
from seft.config import OutputFormat, format_of

PROMPT = '"Once upon a time"'


def request_snippets(job: JobView, base_url: str) -> dict[str, str]:
    """Return the texts by language. The curl command and the Python code omit settings that have their default."""
    spec = without_defaults(job.spec)
    return {
        "JSON": json.dumps(job.spec, indent=2, ensure_ascii=False),
        "curl": _curl(spec, base_url),
        "Python": _python(spec),
    }


def run_commands(job_id: str, files: Sequence[Json]) -> dict[str, str]:
    """Return the commands that download a published model and run it, by the format of the model.

    `files` are those of the checkpoint, and each has a `name`.
    """
    formats = dict.fromkeys(filter(None, (format_of(file["name"]) for file in files)))
    return {each: "\n".join(_run(job_id, each)) for each in formats}


def _run(job_id: str, format_: OutputFormat) -> Iterator[str]:
    model = f"model/{format_.file}" if format_.file else "model"
    yield f"seft jobs download {job_id} model --format {format_}"
    if format_.is_gguf:
        yield f"llama-cli --model {model} --prompt {PROMPT}"
    else:
        yield f"seft generate {model} {PROMPT}"
        yield f"seft serve {model}"


def without_defaults(spec: Json) -> Json:
    """Return the spec without the settings that have their default.

    Returns the whole spec if this version of the software does not accept it.
    """
    valid = read_if_valid(spec)
    return valid.model_dump(mode="json", exclude_defaults=True) if valid else spec


def _curl(spec: dict[str, object], base_url: str) -> str:
    body = shlex.quote(json.dumps(spec, ensure_ascii=False))
    lines = (
        f"curl {shlex.quote(f'{base_url}/jobs')}",
        '-H "Authorization: Bearer $SEFT_API_KEY"',
        "-H 'Content-Type: application/json'",
        f"-d {body}",
    )
    return " \\\n  ".join(lines)


def _python(spec: dict[str, object]) -> str:
    body = pprint.pformat(spec, sort_dicts=False, width=80)
    call = f"with Client() as client:\n    job = client.create_job(\n{_indent(body)}\n    )"
    return f"from seft.client import Client\n\n{call}\n"


def _indent(text: str) -> str:
    return "\n".join(f"        {line}" for line in text.splitlines())
