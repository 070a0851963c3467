"""What a model reference names, and whether it may be loaded: the one door for models, and it needs no torch.

Everything that can be known without reading a weight is checked here, so that a server refuses at its door what a
worker would refuse an hour later. What only the weights tell (missing tensors, no linear to prune) is left to
`seft.models.load`.
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
SHUT = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
"""What the hub answers to who may not see, or shows a token that it does not know."""
_GIVING = "by HF_TOKEN on a machine of yours, by PUT /hub-token to the service"
_WORDS = ["*.json", "*.jinja"]
_WANTED = [*_WORDS, "model*.safetensors"]
CONFIG, CARD = "config.json", "README.md"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_DECODERS = ("ForCausalLM", "LMHeadModel")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_REFUSED_KEYS = {
    "auto_map": "names Python code to run while loading. Use a model of an architecture that transformers knows",
    "sparsity_config": "can make loaders run code or skip weights. Save the model with plain dense weights",
    "quantization_config": "says that the weights are packed. Use the unquantised model, or a GGUF file",
}


class Kind(StrEnum):
    """Where a model lies."""

    FOLDER = "folder"
    GGUF = "gguf"
    HUB = "hub"


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model that may be loaded.

    `path` is a folder or a GGUF file, None while it is on the hub; `revision` is a hub commit; `config` is config.json,
    for a GGUF file its header.
    """

    reference: str
    kind: Kind
    path: Path | None
    revision: str | None
    config: dict[str, Any]
    licence: str | None
    token: str | None = field(default=None, repr=False)
    """What opens it, where the hub gives it to nobody without one. Its files belong into no cache that others read."""


class ClosedError(SourceError):
    """The hub does not show this model, or not its files, to who asked; with another token it may."""


def find(
    reference: str,
    *,
    roots: Sequence[Path] | None = None,
    revision: str | None = None,
    ask_hub: Callable[[str, str | None], ModelSource] | None = None,
) -> ModelSource:
    """The model that `reference` names.

    With `roots`, local names are relative to one of them and nothing outside is looked at; without, any local path
    will do. What is no local thing and looks like `owner/name` is a hub id: `ask_hub`, `find_on_hub` unless given,
    is called with it and the revision. SourceError otherwise.
    """
    try:
        path = _local(reference) if roots is None else _under(reference, roots)
        if path is not None:
            return _find_local(reference, path)
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: links in a circle, before Python 3.13
        raise SourceError(REFUSED, f"{reference!r} cannot be read: {error}. Check its name and rights.") from error
    if _HUB_ID.fullmatch(reference):
        return (ask_hub or find_on_hub)(reference, revision)
    raise SourceError(
        NOT_FOUND, f"no local model and no hub id; it is {reference!r}. Give a folder, a GGUF file or `owner/name`."
    )


def fetch(source: ModelSource, *, weights: bool = True) -> Path:
    """The local folder or GGUF file; a hub model's files are downloaded (or cached) now, weights or not."""
    if source.path is not None:
        return source.path
    try:
        wanted = _WANTED if weights else _WORDS
        return Path(
            hub.snapshot_download(
                source.reference, revision=source.revision, allow_patterns=wanted, etag_timeout=HUB_SECONDS
            )
        )
    except (HTTPError, OSError) as error:
        raise SourceError(UNREACHABLE, f"the hub did not give {source.reference}: {error}. Try again later.") from error


def _local(reference: str) -> Path | None:
    path = Path(reference).expanduser()
    return path if path.exists() else None


def _under(reference: str, roots: Sequence[Path]) -> Path | None:
    """The path under the first root that has it; nothing may lead out of a root, neither by name nor by link."""
    name = PurePosixPath(reference)
    if name.is_absolute() or ".." in name.parts:
        raise SourceError(
            REFUSED, f"a local model is named relative to a model root, without '..'; it is {reference!r}."
        )
    for root in roots:
        path = root / name
        if path.exists():
            inside = root.resolve()
            for file in [path, *(path.iterdir() if path.is_dir() else ())]:
                if not file.resolve().is_relative_to(inside):
                    raise SourceError(REFUSED, f"{reference!r} has a link that leads out of its model root.")
            return path
    return None


def _find_local(reference: str, path: Path) -> ModelSource:
    if path.is_file():
        return _find_gguf(reference, path)
    names = {file.name for file in path.iterdir()}
    config = _checked_config(reference, names, lambda name: (path / name).read_bytes())
    return ModelSource(reference, Kind.FOLDER, path, None, config, card_licence(_card(path / CARD)))


def _find_gguf(reference: str, path: Path) -> ModelSource:
    try:
        header = read_header(path)
    except (ValueError, OSError) as error:
        raise SourceError(
            REFUSED, f"{reference!r} is no readable GGUF file: {error}. Give a GGUF file or a model's folder."
        ) from error
    architecture = str(header.get("general.architecture"))
    if header.get("general.type", "model") != "model" or int(header.get("split.count", 1)) > 1:
        raise SourceError(REFUSED, f"{reference!r} is only a part of a model. Give a GGUF file that holds all of it.")
    if architecture.startswith("t5") or "bert" in architecture or f"{architecture}.block_count" not in header:
        raise _not_decoder(reference, architecture)
    if "tokenizer.ggml.tokens" not in header:
        raise SourceError(REFUSED, f"{reference!r} has no tokenizer. Give a GGUF file with its vocabulary.")
    licence = header.get("general.license")
    return ModelSource(reference, Kind.GGUF, path, None, dict(header), None if licence is None else str(licence))


def find_on_hub(reference: str, revision: str | None, *, token: Callable[[], str | None] = lambda: None) -> ModelSource:
    """The hub's model, at a branch, tag or commit; SourceError when the hub has none, or does not answer.

    Where the hub refuses it to this process, `token` is called, and what it gives is shown.
    """
    try:
        try:
            return _asked(reference, revision, None)
        except ClosedError:
            if (another := token()) is None:
                raise
            return _asked(reference, revision, another)
    except OfflineModeIsEnabled:
        return find_cached(reference, revision)


def _asked(reference: str, revision: str | None, token: str | None) -> ModelSource:
    """What the hub says to who shows this token, or the process's own."""
    shared = nullcontext(None) if token is None else TemporaryDirectory()
    with answered(reference, revision), shared as cache:
        info = hub.HfApi(token=token).model_info(reference, revision=revision, timeout=HUB_SECONDS)
        names = {sibling.rfilename for sibling in info.siblings or ()}

        def read(name: str, at: str | None = info.sha) -> bytes:
            path = hub.hf_hub_download(
                reference, name, revision=at, etag_timeout=HUB_SECONDS, token=token, cache_dir=cache
            )
            return Path(path).read_bytes()

        config = _checked_config(reference, names, read)
        read(CONFIG, revision)  # the cache learns the name of this commit, for days without network
    licence = info.card_data.license if info.card_data else None
    return ModelSource(reference, Kind.HUB, None, info.sha, config, licence, token)


def fetch_into(
    folder: Path, source: ModelSource, *, weights: bool = True, alive: Callable[[], None] = lambda: None
) -> None:
    """Download a hub model's files and its card, one after the other; before each, `alive` is called and may raise."""
    api, wanted = hub.HfApi(token=source.token), [*(_WANTED if weights else _WORDS), CARD]
    with answered(source.reference, source.revision):
        names = api.list_repo_files(source.reference, revision=source.revision)
        for name in (name for name in names if any(fnmatchcase(name, pattern) for pattern in wanted)):
            alive()
            api.hf_hub_download(
                source.reference, name, revision=source.revision, local_dir=folder, etag_timeout=HUB_SECONDS
            )


def fetched(reference: str, folder: Path) -> ModelSource:
    """A hub model whose files lie in a folder that has the name of its commit."""
    found = _find_local(reference, folder)
    return ModelSource(reference, Kind.HUB, folder, folder.name, found.config, found.licence)


@contextmanager
def answered(reference: str, revision: str | None) -> Iterator[None]:
    """What the hub's client raises in here is a SourceError, but for OfflineModeIsEnabled."""
    try:
        yield
    except OfflineModeIsEnabled:
        raise
    except LocalEntryNotFoundError as error:  # one of the errors below to its class, and none to its meaning
        raise _unreachable(reference, error) from error
    except GatedRepoError as error:
        told = f"{reference} is gated. Accept its terms on the hub, and give a token that may read it, {_GIVING}."
        raise ClosedError(REFUSED, told) from error
    except RepositoryNotFoundError as error:
        told = f"the hub shows no model {reference!r}. Check the name; for a private one give a token, {_GIVING}."
        raise ClosedError(NOT_FOUND, told) from error
    except (RevisionNotFoundError, EntryNotFoundError, HFValidationError) as error:
        at = f" at revision {revision!r}" if revision else ""
        raise SourceError(NOT_FOUND, f"the hub has no model {reference!r}{at}. Check the name.") from error
    except (HTTPError, OSError) as error:
        if isinstance(error, HfHubHTTPError) and error.response.status_code in SHUT:
            told = f"the hub refuses {reference} to who asks for it so. Give a token that may read it, {_GIVING}."
            raise ClosedError(REFUSED, told) from error
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise
        raise _unreachable(reference, error) from error


def _unreachable(reference: str, error: Exception) -> SourceError:
    return SourceError(UNREACHABLE, f"the hub did not answer about {reference}: {error}. Try again later.")


def cached() -> list[str]:
    """The models of the hub that the cache has a folder for."""
    folders = Path(constants.HF_HUB_CACHE).glob("models--*--*")
    return [folder.name.removeprefix("models--").replace("--", "/", 1) for folder in folders]


def find_cached(reference: str, revision: str | None) -> ModelSource:
    """A hub model while HF_HUB_OFFLINE is set: what an earlier download left, by its commit."""
    try:
        folder = Path(
            hub.snapshot_download(reference, revision=revision, allow_patterns=_WANTED, local_files_only=True)
        )
    except LocalEntryNotFoundError as error:
        raise SourceError(
            UNREACHABLE, f"HF_HUB_OFFLINE is set and {reference} is not in the cache. Unset it or download the model."
        ) from error
    return fetched(reference, folder)


def _checked_config(reference: str, names: set[str], read: Callable[[str], bytes]) -> dict[str, Any]:
    """config.json of a folder with these file names, whose content `read` gives, after all checks."""
    if CONFIG not in names:
        raise SourceError(NOT_FOUND, f"{reference!r} has no config.json. Name a model's folder or a GGUF file.")
    config = _json_object(reference, CONFIG, read)
    for name in (CONFIG, "tokenizer_config.json"):
        if name in names:
            _refuse_code(reference, name, _json_object(reference, name, read))
    named = config.get("architectures")
    architectures = list(map(str, named)) if isinstance(named, list) else []
    if config.get("is_encoder_decoder") or not any(name.endswith(_DECODERS) for name in architectures):
        raise _not_decoder(reference, ", ".join(architectures) or "unnamed")
    if "tokenizer.json" not in names:
        raise SourceError(
            REFUSED,
            f"{reference!r} has no tokenizer.json. Write one with"
            " transformers.AutoTokenizer.from_pretrained(…).save_pretrained(…).",
        )
    _check_weights(reference, names, read)
    return config


def _check_weights(reference: str, names: set[str], read: Callable[[str], bytes]) -> None:
    if INDEX in names:
        files = _json_object(reference, INDEX, read).get("weight_map")
        shards = set(map(str, files.values())) if isinstance(files, dict) else set()
        if not shards or shards - names:
            raise SourceError(REFUSED, f"{reference!r} lacks shards that its index names: {sorted(shards - names)}.")
    elif SINGLE not in names:
        pickles = sorted(name for name in names if name.endswith(_PICKLES))
        seen = f"only pickles ({', '.join(pickles)}), which can run code" if pickles else "no model.safetensors"
        raise SourceError(REFUSED, f"{reference!r} has {seen}. Save it with save_pretrained, which writes safetensors.")


def _json_object(reference: str, name: str, read: Callable[[str], bytes]) -> dict[str, Any]:
    try:
        value = json.loads(read(name))
    except (ValueError, RecursionError) as error:
        raise SourceError(REFUSED, f"{name} of {reference!r} is not JSON: {error}.") from error
    if not isinstance(value, dict):
        raise SourceError(REFUSED, f"{name} of {reference!r} is not a JSON object.")
    return value


def _refuse_code(reference: str, name: str, value: dict[str, Any]) -> None:
    for key in _keys(value):
        if key in _REFUSED_KEYS:
            raise SourceError(REFUSED, f"{name} of {reference!r} has `{key}`, which {_REFUSED_KEYS[key]}.")


def _keys(value: Any) -> Iterator[str]:
    """All keys of nested JSON: a text model's config may lie inside another one."""
    left = [value]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            yield from value
            left += value.values()
        elif isinstance(value, list):
            left += value


def _not_decoder(reference: str, seen: str) -> SourceError:
    return SourceError(
        REFUSED, f"a decoder-only language model (…ForCausalLM) is needed; {reference!r} has the architecture {seen}."
    )


def _card(path: Path) -> str:
    return path.read_text("utf-8", errors="replace") if path.is_file() else ""


def card_licence(card: str) -> str | None:
    """The licence that the front matter of a model card states."""
    head = _FRONT_MATTER.match(card)
    licence = _LICENCE.search(head.group()) if head else None
    return licence.group(1) if licence else None
