"""A job's request as text that a user can copy: JSON, a curl command, or Python code."""

import json
import pprint
import shlex

from pydantic import ValidationError

from api.schemas.jobs import JobView
from core.specs import JobSpec
from core.tables import Json


def request_snippets(job: JobView, base_url: str) -> dict[str, str]:
    """Return the texts by language. The curl command and the Python code omit settings that have their default."""
    spec = without_defaults(job.spec)
    return {
        "JSON": json.dumps(job.spec, indent=2, ensure_ascii=False),
        "curl": _curl(spec, base_url),
        "Python": _python(spec),
    }


def without_defaults(spec: Json) -> Json:
    """Return the spec without the settings that have their default.

    Returns the whole spec if this version of the software does not accept it.
    """
    try:
        return JobSpec.model_validate(spec).model_dump(mode="json", exclude_defaults=True)
    except ValidationError:
        return spec


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
