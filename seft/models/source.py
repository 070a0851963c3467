"""Resolves a model reference and checks whether the model may be loaded. Every model passes through here.

The checks need no weights and no torch, so a server rejects at once what a worker would reject an hour later. Checks
that need the weights (missing tensors, no linear layer to prune) are in `seft.models.load` and `seft.models.targets`.
"""

import errno
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from enum import StrEnum
from fnmatch import fnmatchcase
from http import HTTPStatus
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

import huggingface_hub as hub
from httpx2 import HTTPError
from huggingface_hub import constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from seft.errors import SourceError
from seft.models.gguf_header import read_header

NOT_FOUND, REFUSED, UNREACHABLE = "model_not_found", "model_refused", "hub_unreachable"

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_FRONT_MATTER = re.compile(r"---\n.*?\n---", re.DOTALL)
_LICENCE = re.compile(r"^license: *[\"']?([\w.-]+)", re.MULTILINE)
HUB_SECONDS = 10.0
DENIED_STATUSES = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
"""HTTP statuses of the hub if the caller has no access to a model, or if the hub does not know the token."""
_HOW_TO_SET = "with HF_TOKEN on your own machine or PUT /hub-token on the service"
_TEXT_PATTERNS = ["*.json", "*.jinja"]
_ALL_PATTERNS = [*_TEXT_PATTERNS, "model*.safetensors"]
CONFIG, CARD = "config.json", "README.md"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_DECODER_SUFFIXES = ("ForCausalLM", "LMHeadModel")
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_REJECTED_KEYS = {
    "auto_map": "names Python code to run while loading. Choose an architecture that transformers supports",
    "sparsity_config": "can make loaders run code or skip weights. Save the model with plain dense weights",
    "quantization_config": "means that the weights are quantised. Use the unquantised model, or a GGUF file",
}


class Kind(StrEnum):
    """Where a model is: in a folder, in a GGUF file or on the hub."""

    FOLDER = "folder"
    GGUF = "gguf"
    HUB = "hub"


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model that passed the checks and may be loaded.

    `path` is a folder or a GGUF file, or None if the files are on the hub or in object storage. `revision` is a hub
    commit. `config` is the content of config.json, or the header of a GGUF file.
    """

    reference: str
    kind: Kind
    path: Path | None
    revision: str | None
    config: dict[str, Any]
    licence: str | None
    token: str | None = field(default=None, repr=False)
    """Hub token with which the model was found, if the hub requires one. The files of such a model must not enter a
    shared cache."""


class AccessDeniedError(SourceError):
    """The hub denies access to this model or its files. A different token may have access."""


def find(
    reference: str,
    *,
    roots: Sequence[Path] | None = None,
    revision: str | None = None,
    ask_hub: Callable[[str, str | None], ModelSource] | None = None,
) -> ModelSource:
    """Return the model that `reference` names.

    With `roots`, local names are relative to one of these folders, and paths outside of them are rejected. Without
    `roots`, any local path is allowed. If no local model has the name and the name has the form `owner/name`, it is a
    hub id. Then `ask_hub`, by default `find_on_hub`, is called with the id and the revision. Raises SourceError if
    there is no such model or if it fails a check.
    """
    try:
        path = _local_path(reference) if roots is None else _path_under(reference, roots)
        if path is not None:
            return _find_local(reference, path)
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: cyclic links, before Python 3.13
        raise SourceError(REFUSED, f"{reference!r} cannot be read: {error}. Check its name and permissions.") from error
    if _HUB_ID.fullmatch(reference):
        return (ask_hub or find_on_hub)(reference, revision)
    raise SourceError(
        NOT_FOUND,
        f"a model must be a local model or a hub id; {reference!r} is neither."
        " Give a folder, a GGUF file or `owner/name`.",
    )


def fetch(source: ModelSource, *, weights: bool = True) -> Path:
    """Return the local folder or GGUF file. Downloads a hub model into the cache, with or without its weights."""
    if source.path is not None:
        return source.path
    try:
        patterns = _ALL_PATTERNS if weights else _TEXT_PATTERNS
        return Path(
            hub.snapshot_download(
                source.reference, revision=source.revision, allow_patterns=patterns, etag_timeout=HUB_SECONDS
            )
        )
    except (HTTPError, OSError) as error:
        raise SourceError(
            UNREACHABLE, f"the download of {source.reference} from the hub failed: {error}. Try again later."
        ) from error


def _local_path(reference: str) -> Path | None:
    path = Path(reference).expanduser()
    return path if path.exists() else None


def _path_under(reference: str, roots: Sequence[Path]) -> Path | None:
    """Return the path of `reference` under the first root that has it, or None. Rejects paths that leave the root."""
    name = PurePosixPath(reference)
    if name.is_absolute() or ".." in name.parts:
        raise SourceError(
            REFUSED,
            f"The local model {reference!r} is not valid. Give its path relative to a folder in SEFT_MODEL_ROOTS,"
            " without '..'.",
        )
    for root in roots:
        path = root / name
        if path.exists():
            inside = root.resolve()
            for file in [path, *(path.iterdir() if path.is_dir() else ())]:
                if not file.resolve().is_relative_to(inside):
                    raise SourceError(
                        REFUSED,
                        f"the files of a local model must be inside its folder of SEFT_MODEL_ROOTS; {reference!r} has"
                        f" the link {file.name!r} to a file outside of it. Copy the file there instead.",
                    )
            return path
    return None


def _find_local(reference: str, path: Path) -> ModelSource:
    if path.is_file():
        return _find_gguf(reference, path)
    names = {file.name for file in path.iterdir()}
    config = _read_config(reference, names, lambda name: (path / name).read_bytes())
    return ModelSource(reference, Kind.FOLDER, path, None, config, card_licence(_read_card(path / CARD)))


def _find_gguf(reference: str, path: Path) -> ModelSource:
    try:
        header = read_header(path)
    except (ValueError, OSError) as error:
        raise SourceError(
            REFUSED, f"{reference!r} is not a readable GGUF file: {error}. Give a GGUF file or a model's folder."
        ) from error
    architecture = str(header.get("general.architecture"))
    if header.get("general.type", "model") != "model" or int(header.get("split.count", 1)) > 1:
        raise SourceError(REFUSED, f"{reference!r} is only a part of a model. Give a GGUF file with the whole model.")
    if architecture.startswith("t5") or "bert" in architecture or f"{architecture}.block_count" not in header:
        raise _not_decoder(reference, architecture)
    if "tokenizer.ggml.tokens" not in header:
        raise SourceError(REFUSED, f"{reference!r} has no tokenizer. Give a GGUF file that contains the vocabulary.")
    licence = header.get("general.license")
    return ModelSource(reference, Kind.GGUF, path, None, dict(header), None if licence is None else str(licence))


def find_on_hub(reference: str, revision: str | None, *, token: Callable[[], str | None] = lambda: None) -> ModelSource:
    """Return the hub's model at a branch, tag or commit; None is the default branch.

    If the hub denies access to this process, `token` is called, and the request is repeated with the token it returns.
    Raises SourceError if the hub does not have the model or does not answer.
    """
    try:
        try:
            return _query_hub(reference, revision, None)
        except AccessDeniedError:
            if (caller_token := token()) is None:
                raise
            return _query_hub(reference, revision, caller_token)
    except OfflineModeIsEnabled:
        return find_cached(reference, revision)


def _query_hub(reference: str, revision: str | None, token: str | None) -> ModelSource:
    """Return the hub's model, read with `token`, or with the token of this process if it is None."""
    shared = nullcontext(None) if token is None else TemporaryDirectory()
    with hub_errors(reference, revision), shared as cache:
        info = hub.HfApi(token=token).model_info(reference, revision=revision, timeout=HUB_SECONDS)
        names = {sibling.rfilename for sibling in info.siblings or ()}

        def read(name: str, at: str | None = info.sha) -> bytes:
            path = hub.hf_hub_download(
                reference, name, revision=at, etag_timeout=HUB_SECONDS, token=token, cache_dir=cache
            )
            return Path(path).read_bytes()

        config = _read_config(reference, names, read)
        read(CONFIG, revision)  # stores the name of this commit in the cache, for use offline
    licence = info.card_data.license if info.card_data else None
    return ModelSource(reference, Kind.HUB, None, info.sha, config, licence, token)


def fetch_into(
    folder: Path, source: ModelSource, *, weights: bool = True, alive: Callable[[], None] = lambda: None
) -> None:
    """Download a hub model's files and its card one by one. Calls `alive` before each, which may raise to stop."""
    api, patterns = hub.HfApi(token=source.token), [*(_ALL_PATTERNS if weights else _TEXT_PATTERNS), CARD]
    with hub_errors(source.reference, source.revision):
        names = api.list_repo_files(source.reference, revision=source.revision)
        for name in (name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)):
            alive()
            api.hf_hub_download(
                source.reference, name, revision=source.revision, local_dir=folder, etag_timeout=HUB_SECONDS
            )


def downloaded(reference: str, folder: Path) -> ModelSource:
    """Return a hub model whose files were downloaded into a folder. The folder is named after the commit."""
    local = _find_local(reference, folder)
    return ModelSource(reference, Kind.HUB, folder, folder.name, local.config, local.licence)


@contextmanager
def hub_errors(reference: str, revision: str | None) -> Iterator[None]:
    """Convert errors of the hub's client to SourceError, except OfflineModeIsEnabled and the error of a full disk."""
    try:
        yield
    except OfflineModeIsEnabled:
        raise
    except LocalEntryNotFoundError as error:  # a subclass of an error below, with a different meaning
        raise _unreachable(reference, error) from error
    except GatedRepoError as error:
        message = f"{reference} is gated. Accept its terms on the hub, and set a token that may read it, {_HOW_TO_SET}."
        raise AccessDeniedError(REFUSED, message) from error
    except RepositoryNotFoundError as error:
        message = (
            f"the hub has no public model {reference!r}. Check the name. For a private model set a token,"
            f" {_HOW_TO_SET}."
        )
        raise AccessDeniedError(NOT_FOUND, message) from error
    except (RevisionNotFoundError, EntryNotFoundError, HFValidationError) as error:
        at = f" at revision {revision!r}" if revision else ""
        raise SourceError(
            NOT_FOUND, f"the hub has no model {reference!r}{at}. Check the name and the revision."
        ) from error
    except (HTTPError, OSError) as error:
        if isinstance(error, HfHubHTTPError) and error.response.status_code in DENIED_STATUSES:
            message = f"the hub denies access to {reference}. Set a token that may read it, {_HOW_TO_SET}."
            raise AccessDeniedError(REFUSED, message) from error
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise
        raise _unreachable(reference, error) from error


def _unreachable(reference: str, error: Exception) -> SourceError:
    return SourceError(UNREACHABLE, f"the hub did not answer for {reference}: {error}. Try again later.")


def cached_models() -> list[str]:
    """Return the ids of the hub models that have a folder in the local cache."""
    folders = Path(constants.HF_HUB_CACHE).glob("models--*--*")
    return [folder.name.removeprefix("models--").replace("--", "/", 1) for folder in folders]


def find_cached(reference: str, revision: str | None) -> ModelSource:
    """Return a hub model from the cache, while HF_HUB_OFFLINE is set. Raises SourceError if it is not cached."""
    try:
        folder = Path(
            hub.snapshot_download(reference, revision=revision, allow_patterns=_ALL_PATTERNS, local_files_only=True)
        )
    except LocalEntryNotFoundError as error:
        raise SourceError(
            UNREACHABLE,
            f"HF_HUB_OFFLINE is set and {reference} is not in the hub cache. Unset it, or download the model first.",
        ) from error
    return downloaded(reference, folder)


def _read_config(reference: str, names: set[str], read: Callable[[str], bytes]) -> dict[str, Any]:
    """Return the content of config.json after all checks of the model.

    `names` are the names of the model's files, and `read` returns the content of one.
    """
    if CONFIG not in names:
        raise SourceError(
            NOT_FOUND,
            f"a model must have a config.json; {reference!r} has no config.json. Name a model's folder or a GGUF file.",
        )
    config = _json_object(reference, CONFIG, read)
    for name in (CONFIG, "tokenizer_config.json"):
        if name in names:
            _require_no_code(reference, name, _json_object(reference, name, read))
    value = config.get("architectures")
    architectures = list(map(str, value)) if isinstance(value, list) else []
    if config.get("is_encoder_decoder") or not any(name.endswith(_DECODER_SUFFIXES) for name in architectures):
        raise _not_decoder(reference, ", ".join(architectures) or "unnamed")
    if "tokenizer.json" not in names:
        raise SourceError(
            REFUSED,
            f"a model must have a fast tokenizer; {reference!r} has no tokenizer.json. Write one with"
            " transformers.AutoTokenizer.from_pretrained(…).save_pretrained(…).",
        )
    _require_weights(reference, names, read)
    return config


def _require_weights(reference: str, names: set[str], read: Callable[[str], bytes]) -> None:
    if INDEX in names:
        weight_map = _json_object(reference, INDEX, read).get("weight_map")
        shards = set(map(str, weight_map.values())) if isinstance(weight_map, dict) else set()
        if not shards or shards - names:
            missing = sorted(shards - names) or "the index names none"
            raise SourceError(
                REFUSED,
                f"a model must have all shards of its index; {reference!r} lacks shards: {missing}."
                " Download or save the model again.",
            )
    elif SINGLE not in names:
        pickles = sorted(name for name in names if name.endswith(_PICKLE_SUFFIXES))
        files = f"only pickles ({', '.join(pickles)}), which can run code" if pickles else "no model.safetensors"
        raise SourceError(
            REFUSED,
            f"a model must have safetensors weights; {reference!r} has {files}."
            " Save it with save_pretrained, which writes safetensors.",
        )


def _json_object(reference: str, name: str, read: Callable[[str], bytes]) -> dict[str, Any]:
    try:
        value = json.loads(read(name))
    except (ValueError, RecursionError) as error:
        raise SourceError(REFUSED, f"{name} of {reference!r} is not JSON: {error}. Save the model again.") from error
    if not isinstance(value, dict):
        raise SourceError(REFUSED, f"{name} of {reference!r} is not a JSON object. Save the model again.")
    return value


def _require_no_code(reference: str, name: str, value: dict[str, Any]) -> None:
    for key in _keys(value):
        if key in _REJECTED_KEYS:
            raise SourceError(REFUSED, f"{name} of {reference!r} has `{key}`, which {_REJECTED_KEYS[key]}.")


def _keys(value: Any) -> Iterator[str]:
    """Yield all keys of nested JSON, because the config of a text model may be inside the config of a larger model."""
    pending = [value]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            yield from value
            pending += value.values()
        elif isinstance(value, list):
            pending += value


def _not_decoder(reference: str, architecture: str) -> SourceError:
    return SourceError(
        REFUSED,
        f"a model must be a decoder-only language model (…ForCausalLM); {reference!r} has the architecture"
        f" {architecture}. Choose a different model.",
    )


def _read_card(path: Path) -> str:
    return path.read_text("utf-8", errors="replace") if path.is_file() else ""


def card_licence(card: str) -> str | None:
    """Return the licence in the front matter of a model card, or None if it has none."""
    head = _FRONT_MATTER.match(card)
    licence = _LICENCE.search(head.group()) if head else None
    return licence.group(1) if licence else None
