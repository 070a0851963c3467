"""A job's request, to be copied: as JSON, as a curl command, as Python."""

import json
import pprint
import shlex

from pydantic import ValidationError

from api.schemas.jobs import JobView
from core.specs import JobSpec
from core.tables import Json


def recipes(job: JobView, address: str) -> dict[str, str]:
    """The request by the way in which it is sent. What is at its default is left out of the commands."""
    asked = trimmed(job.spec)
    return {
        "JSON": json.dumps(job.spec, indent=2, ensure_ascii=False),
        "curl": _curl(asked, address),
        "Python": _python(asked),
    }


def trimmed(spec: Json) -> Json:
    """The request without its defaults; all of it where this software refuses it."""
    try:
        return JobSpec.model_validate(spec).model_dump(mode="json", exclude_defaults=True)
    except ValidationError:
        return spec


def _curl(asked: dict[str, object], address: str) -> str:
    body = shlex.quote(json.dumps(asked, ensure_ascii=False))
    lines = (
        f"curl {shlex.quote(f'{address}/jobs')}",
        '-H "Authorization: Bearer $SEFT_API_KEY"',
        "-H 'Content-Type: application/json'",
        f"-d {body}",
    )
    return " \\\n  ".join(lines)


def _python(asked: dict[str, object]) -> str:
    body = pprint.pformat(asked, sort_dicts=False, width=80)
    call = f"with Client() as service:\n    job = service.create_job(\n{_indent(body)}\n    )"
    return f"from seft.client import Client\n\n{call}\n"


def _indent(text: str) -> str:
    return "\n".join(f"        {line}" for line in text.splitlines())
