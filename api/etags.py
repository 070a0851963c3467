"""Responses with an ETag, and 304 if the client already has the response."""

import hashlib
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import Header, Response
from pydantic import BaseModel

IfNoneMatch = Annotated[str, Header(description="ETag of the response that you have; 304 if nothing has changed.")]
HEADERS = {"ETag": {"description": "Identifies the content of this response.", "schema": {"type": "string"}}}
TAGGED: dict[int | str, dict[str, Any]] = {
    200: {"headers": HEADERS},
    304: {"description": "Not changed since the ETag in `If-None-Match`.", "headers": HEADERS},
}
"""OpenAPI responses of an operation with an ETag."""


def tagged_json(view: BaseModel, if_none_match: str) -> Response:
    """Return the view as JSON, or 304 if its ETag matches."""
    return tagged(view.model_dump_json(), if_none_match, "application/json")


def tagged(body: str, if_none_match: str, media_type: str) -> Response:
    """Return the body, or 304 if its ETag matches."""
    etag = f'"{hashlib.sha256(body.encode()).hexdigest()[:32]}"'
    headers = {"ETag": etag, "Cache-Control": "private, no-cache"}
    if _matches(if_none_match, etag):
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    return Response(body, headers=headers, media_type=media_type)


def _matches(if_none_match: str, etag: str) -> bool:
    """RFC 9110, section 13.1.2: a list of tags, compared weakly, or `*`."""
    tags = [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
    return etag in tags or "*" in tags
