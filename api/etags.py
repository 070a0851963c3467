"""Send responses with an ETag. Answer 304 if the client already has the current version."""

import hashlib
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import Header, Response
from pydantic import BaseModel

IfNoneMatch = Annotated[
    str, Header(description="ETag of the response that you already have. The answer is 304 if nothing has changed.")
]
HEADERS = {"ETag": {"description": "Identifies the content of this response.", "schema": {"type": "string"}}}
ACCEPTED: dict[int | str, dict[str, Any]] = {202: {"headers": HEADERS}}
"""OpenAPI description of the response 202 with the ETag that the new resource has."""
TAGGED: dict[int | str, dict[str, Any]] = {
    200: {"headers": HEADERS},
    304: {"description": "Not changed since the ETag in `If-None-Match`.", "headers": HEADERS},
}
"""OpenAPI description of the responses 200 with an ETag, and 304."""


def tagged_json(view: BaseModel, if_none_match: str) -> Response:
    """Return the view as JSON. Answers 304 instead if `If-None-Match` contains its ETag."""
    return tagged(view.model_dump_json(), if_none_match, "application/json")


def etag_of(view: BaseModel) -> str:
    """Return the ETag with which `tagged_json` sends this view."""
    return _etag(view.model_dump_json())


def tagged(body: str, if_none_match: str, media_type: str) -> Response:
    """Return the body. Answers 304 instead if `If-None-Match` contains its ETag."""
    etag = _etag(body)
    headers = {"ETag": etag, "Cache-Control": "private, no-cache"}
    if _matches(if_none_match, etag):
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    return Response(body, headers=headers, media_type=media_type)


def _etag(body: str) -> str:
    return f'"{hashlib.sha256(body.encode()).hexdigest()[:32]}"'


def _matches(if_none_match: str, etag: str) -> bool:
    """Return whether the header If-None-Match contains this ETag or is `*` (RFC 9110, section 13.1.2).

    Weak and strong tags count as equal.
    """
    tags = [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
    return etag in tags or "*" in tags
