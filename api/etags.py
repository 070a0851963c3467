"""Answers that a poller need not read twice: each under an ETag, and 304 while it is what the poller has."""

import hashlib
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import Header, Response
from pydantic import BaseModel

IfNoneMatch = Annotated[str, Header(description="ETag of the answer that you have: 304 while it still holds.")]
HEADERS = {"ETag": {"description": "Names this very answer.", "schema": {"type": "string"}}}
TAGGED: dict[int | str, dict[str, Any]] = {
    200: {"headers": HEADERS},
    304: {"description": "It is still what `If-None-Match` names.", "headers": HEADERS},
}
"""What an operation with an ETag declares."""


def tagged_json(view: BaseModel, if_none_match: str) -> Response:
    """The view as JSON, or 304."""
    return tagged(view.model_dump_json(), if_none_match, "application/json")


def tagged(body: str, if_none_match: str, media_type: str) -> Response:
    """The body, or 304."""
    etag = f'"{hashlib.sha256(body.encode()).hexdigest()[:32]}"'
    headers = {"ETag": etag, "Cache-Control": "private, no-cache"}
    if _matches(if_none_match, etag):
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    return Response(body, headers=headers, media_type=media_type)


def _matches(if_none_match: str, etag: str) -> bool:
    """RFC 9110, 13.1.2: a list of tags, compared weakly, or `*`."""
    tags = [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
    return etag in tags or "*" in tags
