"""Resolves a model reference and checks whether the model may be loaded. Every model passes through here.

The checks need no weights and no torch, so a server rejects at once what a worker would reject an hour later. Checks
that need the weights (missing tensors, no linear layer to prune) are in `seft.models.load` and `seft.models.targets`.
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from glob import iglob
from pathlib import Path, PurePosixPath
from typing import Any

import huggingface_hub as hub
from httpx2 import HTTPError
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

from seft.errors import DISK_FULL, SourceError
from seft.models.gguf_header import read_header
from seft.models.gguf_positions import TENSORS, read_rope_parameters
from seft.models.gguf_settings import require_loadable
from seft.models.gguf_tokenizer import steps_by_name
from seft.models.hub_files import (
    HUB_SECONDS,
    NOT_FOUND,
    REFUSED,
    UNREACHABLE,
    AccessDeniedError,
    describe,
    describe_failure,
    hub_errors,
    read_part,
)
from seft.models.limits import MAX_FILE_BYTES
from seft.models.model_files import (
    CARD,
    CONFIG,
    TEXT_FILES,
    card_licence,
    checked_licence,
    is_read,
    is_weights,
    not_decoder,
    read_model_files,
    require_counts,
    require_names,
    require_storable,
)
from seft.models.terms import terms_files

COMPACT = ".seft"
"""Ending of the name of a compact container."""
DEPTH = 3
"""Maximum number of parts in the path of a model in a folder with models, relative to that folder."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


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
    sizes: Mapping[str, int] = field(default_factory=dict, repr=False)
    """Sizes in bytes of the files on the hub, by name. Empty for a model whose files are not on the hub."""
    branch: str | None = None
    """Branch, tag or commit by which the model was found on the hub. None for the default branch."""
    rope_parameters: dict[str, Any] | None = None
    """Scaled positions of a GGUF file, which transformers does not read from the file. None if they are not scaled."""
    has_chat_template: bool = True
    """Whether the tokenizer has a chat template, without which it cannot read conversations."""

    def files(self, *, weights: bool = True) -> list[str]:
        """Return the names of the files on the hub that a loader reads, with or without the files of the weights."""
        return [name for name in self.sizes if is_read(name) and (weights or not is_weights(name))]

    def bytes(self, *, weights: bool = True) -> int:
        """Return the total size of these files."""
        return sum(self.sizes[name] for name in self.files(weights=weights))


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
        f"a model must be a local model or a hub id; {reference!r} is neither. {_way_out(reference)}",
    )


def _way_out(reference: str) -> str:
    if reference.endswith((".gguf", COMPACT)):
        return f"There is no file {reference}. Check the path."
    return "Give a folder, a GGUF file or `owner/name`."


def names_under(root: Path) -> Iterator[str]:
    """Yield the names of possible models in a folder: folders with a config, and GGUF files. Other files are ignored.

    The names are paths relative to the folder, with at most `DEPTH` parts.
    """
    for path, folders, files in os.walk(root):
        relative = Path(path).relative_to(root)
        is_model = CONFIG in files and bool(relative.parts)
        if is_model:
            yield relative.as_posix()
        elif len(relative.parts) < DEPTH:
            yield from ((relative / name).as_posix() for name in files if name.endswith(".gguf"))
        if is_model or len(relative.parts) >= DEPTH:
            folders.clear()


def fetch(source: ModelSource, *, weights: bool = True) -> Path:
    """Return the local folder or GGUF file. Downloads a hub model into the cache, with or without its weights."""
    if source.path is not None:
        return source.path
    try:
        folder = hub.snapshot_download(
            source.reference,
            revision=source.revision,
            allow_patterns=[*source.files(weights=weights), *(terms_files(source.sizes) if weights else ())],
            etag_timeout=HUB_SECONDS,
        )
        if source.branch != source.revision:
            # This stores in the cache which commit the branch means, for use offline.
            hub.hf_hub_download(source.reference, CONFIG, revision=source.branch, etag_timeout=HUB_SECONDS)
        return Path(folder)
    except (HTTPError, OSError) as error:
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            raise
        message = f"the download of {source.reference} from the hub failed: {describe_failure(error)}. Try again later."
        raise SourceError(UNREACHABLE, message) from error


def _local_path(reference: str) -> Path | None:
    path = Path(reference).expanduser()
    return path if path.exists() else None


def _path_under(reference: str, roots: Sequence[Path]) -> Path | None:
    """Return the path of `reference` under the first root that has it, or None.

    Rejects paths that leave the root, and paths that are not in their plain form, such as `a//b` or `a/../b`.
    """
    if "\\" in reference or not {"", ".", ".."}.isdisjoint(reference.split("/")):
        raise SourceError(
            REFUSED,
            f"The local model {reference!r} is not valid. Give its path relative to a folder in SEFT_MODEL_ROOTS,"
            " without a backslash, and without a part between slashes that is empty, '.' or '..'.",
        )
    for root in roots:
        path = root / reference
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
    if path.is_file() and path.suffix == COMPACT:
        message = f"{reference!r} is a compact file. Restore its folder with `seft expand {reference} FOLDER`, and give"
        raise SourceError(REFUSED, f"{message} the folder.")
    if path.is_file():
        return _find_gguf(reference, path)
    files = read_model_files(reference, folder_sizes(path), lambda name: read_small(path / name))
    card = path / CARD
    licence = card_licence(read_small(card).decode("utf-8", errors="replace")) if card.is_file() else None
    chat = files.has_chat_template
    return ModelSource(reference, Kind.FOLDER, path, None, files.config, licence, has_chat_template=chat)


def folder_sizes(folder: Path) -> dict[str, int]:
    """Return the sizes in bytes of the files in a folder by name."""
    return {file.name: file.stat().st_size for file in folder.iterdir() if file.is_file()}


def read_small(path: Path) -> bytes:
    """Return the content of a file, or the beginning of a file that is too large to be read as a whole."""
    with path.open("rb") as file:
        return file.read(MAX_FILE_BYTES)


def _find_gguf(reference: str, path: Path) -> ModelSource:
    try:
        header, vectors = read_header(path, TENSORS)
    except (ValueError, OSError) as error:
        raise SourceError(
            REFUSED, f"{reference!r} is not a readable GGUF file: {error}. Give a GGUF file or a model's folder."
        ) from error
    architecture = str(header.get("general.architecture"))
    require_names(reference, **{"general.architecture": [architecture]})
    for text in (text for pair in header.items() for text in pair if isinstance(text, str)):
        require_storable(reference, "the header", text)
    if header.get("general.type", "model") != "model" or header.get("split.count", 1) not in {0, 1}:
        raise SourceError(REFUSED, f"{reference!r} is only a part of a model. Give a GGUF file with the whole model.")
    if architecture.startswith("t5") or "bert" in architecture or f"{architecture}.block_count" not in header:
        raise not_decoder(reference, architecture)
    try:
        require_loadable(header)
    except ValueError as error:
        message = f"a GGUF file must have an architecture that transformers can load; {reference!r} has {error}."
        raise SourceError(REFUSED, f"{message} Give the model's folder instead.") from error
    require_counts(reference, {key.removeprefix(f"{architecture}."): value for key, value in header.items()})
    if "tokenizer.ggml.tokens" not in header:
        raise SourceError(REFUSED, f"{reference!r} has no tokenizer. Give a GGUF file that contains the vocabulary.")
    try:
        rope = read_rope_parameters(header, vectors)
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise SourceError(
            REFUSED,
            "a config for transformers must be able to express the positions of a GGUF file; in"
            f" {reference!r}, {error}. Give the model's folder instead.",
        ) from error
    _require_known_split(reference, header)
    licence = checked_licence(header.get("general.license"))
    chat = bool(header.get("tokenizer.chat_template"))
    return ModelSource(
        reference, Kind.GGUF, path, None, dict(header), licence, rope_parameters=rope, has_chat_template=chat
    )


def _require_known_split(reference: str, header: Mapping[str, Any]) -> None:
    try:
        if header.get("tokenizer.ggml.model") == "gpt2":
            steps_by_name(header)
    except ValueError as error:
        raise SourceError(
            REFUSED,
            f"the rule by which a GGUF file splits text must be a known one; in {reference!r}, {error}. Give the"
            " model's folder instead.",
        ) from error


def find_on_hub(reference: str, revision: str | None, *, token: Callable[[], str | None] = lambda: None) -> ModelSource:
    """Return the hub's model at a branch, tag or commit; None is the default branch.

    If the hub denies access to this process, `token` is called, and the request is repeated with the token it returns.
    Raises SourceError if the hub does not have the model or does not answer.
    """
    _require_revision(revision)
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
    with hub_errors(reference, revision):
        info = describe(reference, hub.ModelInfo, revision=revision, token=token)
        sizes = {sibling.rfilename: sibling.size or 0 for sibling in info.siblings or ()}

        def read(name: str) -> bytes:
            return read_part(reference, name, 0, MAX_FILE_BYTES, revision=info.sha, token=token)

        files = read_model_files(reference, sizes, read)
    # A repository may have other weights too, such as shards beside a single file.
    sizes = {name: size for name, size in sizes.items() if not is_weights(name) or name in files.weights}
    licence = checked_licence(info.card_data.license if info.card_data else None)
    chat = files.has_chat_template
    return ModelSource(
        reference, Kind.HUB, None, info.sha, files.config, licence, token, sizes, revision, has_chat_template=chat
    )


def fetch_into(
    folder: Path, source: ModelSource, *, weights: bool = True, heartbeat: Callable[[], None] = lambda: None
) -> None:
    """Download a hub model's files, its card and its terms one by one.

    Calls `heartbeat` before each file. It may raise an error to stop.
    """
    api = hub.HfApi(token=source.token)
    with hub_errors(source.reference, source.revision):
        for name in [*source.files(weights=weights), *terms_files(source.sizes)]:
            heartbeat()
            api.hf_hub_download(
                source.reference, name, revision=source.revision, local_dir=folder, etag_timeout=HUB_SECONDS
            )


def downloaded(reference: str, folder: Path) -> ModelSource:
    """Return a hub model whose files were downloaded into a folder. The folder is named after the commit."""
    local = _find_local(reference, folder)
    return replace(local, kind=Kind.HUB, revision=folder.name)


def cached_models() -> list[str]:
    """Return the ids of the hub models whose weights are in the local cache, at least in part."""
    # `Path.glob` raises an error if a folder is deleted while it is listed. `iglob` does not.
    weights = iglob("models--*--*/snapshots/*/*.safetensors", root_dir=constants.HF_HUB_CACHE)  # noqa: PTH207
    folders = {PurePosixPath(file).parts[0] for file in weights}
    return [folder.removeprefix("models--").replace("--", "/", 1) for folder in folders]


def find_cached(reference: str, revision: str | None) -> ModelSource:
    """Return a hub model from the cache, while HF_HUB_OFFLINE is set. Raises SourceError if it is not cached.

    If no revision is given and the cache does not know the default branch, the newest commit in the cache is returned.
    """
    _require_revision(revision)
    try:
        # Only some of the files with weights may be needed. `downloaded` checks that the needed ones are there.
        folder = Path(
            hub.snapshot_download(reference, revision=revision, allow_patterns=[*TEXT_FILES], local_files_only=True)
        )
    except IsADirectoryError as error:
        raise _no_revision(revision) from error  # such as `refs`, the folder of the cache with the revisions
    except LocalEntryNotFoundError as error:
        commits = Path(constants.HF_HUB_CACHE).glob(f"models--{reference.replace('/', '--')}/snapshots/*")
        newest = max(commits, key=lambda commit: commit.stat().st_mtime, default=None)
        if revision is not None or newest is None:
            raise SourceError(
                UNREACHABLE,
                f"HF_HUB_OFFLINE is set and {reference} is not in the hub cache. Unset it, or download the model"
                " first.",
            ) from error
        folder = newest
    return downloaded(reference, folder)


def _require_revision(revision: str | None) -> None:
    """Raise SourceError if the revision is a path that leads to another folder.

    Offline, the hub's library reads the file of the cache that the revision names. Online, `..` would be removed from
    the URL together with the part before it, which means the default branch.
    """
    if revision is not None and not {"", ".", ".."}.isdisjoint(revision.split("/")):
        raise _no_revision(revision)


def _no_revision(revision: str | None) -> SourceError:
    message = f"{revision!r} is not the name of a branch, a tag or a commit. Check the revision."
    return SourceError(NOT_FOUND, message)
