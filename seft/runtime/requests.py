"""The bodies of OpenAI's API: requests that the server understands, and the objects that it returns.

An option that would change the text, but that the server does not have, is an error. Other unknown fields are ignored.
"""

import reprlib
import time
from collections.abc import Mapping
from typing import Annotated, Any
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from seft.runtime.generate import Finish, Sampling

DEFAULT_TOKENS = 256
MOST_STOPS = 4
"""OpenAI's limit."""
UNSUPPORTED: Mapping[str, tuple[object, ...]] = {
    "n": (None, 1),
    "best_of": (None, 1),
    "echo": (None, False),
    "suffix": (None, ""),
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "logit_bias": (None, {}),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "tools": (None, []),
    "functions": (None, []),
    "response_format": (None, {"type": "text"}),
}
"""Options that the server does not have, with the values that change nothing."""


class RequestError(Exception):
    """A request that is answered with OpenAI's error object. `status` is the HTTP status."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        kind = "invalid_request_error" if status < 500 else "server_error"
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


class Part(BaseModel):
    """A part of a message. Only text is understood."""

    type: str
    text: str

    @field_validator("type")
    @classmethod
    def _text(cls, kind: str) -> str:
        if kind != "text":
            raise ValueError(f"it must be 'text', because this server reads nothing else; it is {reprlib.repr(kind)}")
        return kind


class ChatMessage(BaseModel):
    """A message of a conversation."""

    role: str
    content: list[Part]

    @field_validator("content", mode="before")
    @classmethod
    def _parts(cls, content: object) -> object:
        return [{"type": "text", "text": content}] if isinstance(content, str) else content

    def plain(self) -> dict[str, str]:
        """Return role and text for a chat template."""
        return {"role": self.role, "content": "".join(part.text for part in self.content)}


class StreamOptions(BaseModel):
    """Options of a streamed answer."""

    include_usage: bool = False


class Request(BaseModel):
    """What completions and chats have in common."""

    model_config = ConfigDict(extra="allow", strict=True)

    model: str | None = None
    """Name of the model. The server has only one, so it may be left out."""
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: list[Annotated[str, Field(min_length=1)]] = Field([], max_length=MOST_STOPS)
    """Texts that end the answer."""
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @field_validator("stop", mode="before")
    @classmethod
    def _stops(cls, stop: object) -> object:
        return [stop] if isinstance(stop, str) else [] if stop is None else stop

    @property
    def sampling(self) -> Sampling:
        """How tokens are chosen. OpenAI's default temperature is 1."""
        temperature = 1.0 if self.temperature is None else self.temperature
        return Sampling(temperature, 1.0 if self.top_p is None else self.top_p, self.seed)

    @property
    def most(self) -> int | None:
        """Maximum number of tokens of the answer, or None."""
        return self.max_completion_tokens or self.max_tokens


class CompletionRequest(Request):
    """Body of /v1/completions: one prompt, as text."""

    prompt: str = Field(min_length=1)


class ChatRequest(Request):
    """Body of /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1)


def parse(kind: type[Request], body: bytes) -> Any:
    """Return the request of a body. Raises RequestError with the name of the wrong field."""
    try:
        request = kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors()[0]
        param = ".".join(map(str, first["loc"])) or None
        raise RequestError(400, f"{param or 'body'}: {first['msg']}", param=param, code="invalid_value") from error
    # In Python 0 equals False, but logprobs: 0 asks for the probabilities of the chosen tokens.
    for name, harmless in UNSUPPORTED.items():
        given = (request.model_extra or {}).get(name)
        if (given, isinstance(given, bool)) not in ((each, isinstance(each, bool)) for each in harmless):
            message = f"{name} must be left out; it is {reprlib.repr(given)}. This server does not have it."
            raise RequestError(400, message, param=name, code="unsupported_parameter")
    return request


class Answer:
    """Builds the objects of one answer, whole or in chunks."""

    def __init__(self, model: str, prompt_tokens: int, *, chat: bool) -> None:
        self._chat, self._prompt_tokens = chat, prompt_tokens
        self._kind = "chat.completion" if chat else "text_completion"
        self._common = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{uuid4().hex}",
            "created": int(time.time()),
            "model": model,
        }

    def whole(self, text: str, finish: Finish | None, tokens: int) -> dict[str, Any]:
        """Return the answer as one object."""
        content = {"message": {"role": "assistant", "content": text}} if self._chat else {"text": text}
        return self._object(self._kind, [self._choice(content, finish)], {"usage": self.usage(tokens)})

    def chunk(self, text: str, finish: Finish | None, *, first: bool = False) -> dict[str, Any]:
        """Return a part of a streamed answer."""
        delta = {**({"role": "assistant"} if first else {}), **({"content": text} if text or first else {})}
        content = {"delta": delta} if self._chat else {"text": text}
        return self._object(self._chunk_kind, [self._choice(content, finish)])

    def last(self, tokens: int) -> dict[str, Any]:
        """Return the chunk without choices that gives the usage of a streamed answer."""
        return self._object(self._chunk_kind, [], {"usage": self.usage(tokens)})

    def usage(self, tokens: int) -> dict[str, int]:
        """Return the counts of tokens."""
        total = self._prompt_tokens + tokens
        return {"prompt_tokens": self._prompt_tokens, "completion_tokens": tokens, "total_tokens": total}

    @property
    def _chunk_kind(self) -> str:
        return "chat.completion.chunk" if self._chat else self._kind

    def _object(self, kind: str, choices: list[Any], more: Mapping[str, Any] | None = None) -> dict[str, Any]:
        return {**self._common, "object": kind, "choices": choices, **(more or {})}

    @staticmethod
    def _choice(content: dict[str, Any], finish: Finish | None) -> dict[str, Any]:
        return {"index": 0, **content, "logprobs": None, "finish_reason": finish}
