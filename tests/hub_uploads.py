"""The requests by which `huggingface_hub` creates a repository and a branch, uploads files and commits them."""

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

GITATTRIBUTES = b"*.safetensors filter=lfs\n"
"""Content of the only file of a new repository, `.gitattributes`."""
GIT_BYTES = 10 << 20
"""Size from which a file is kept in LFS, whatever its name."""


@dataclass
class Uploads:
    """What a hub knows of pushes: where it creates repositories, and which tokens may write to all of them."""

    folder: Path
    writers: tuple[str, ...] = ()
    objects: dict[str, bytes] = field(default_factory=dict)
    """Content of the files in LFS, by SHA-256."""
    received: Counter[str] = field(default_factory=Counter)
    """Number of uploads of each object, by SHA-256."""
    part_bytes: int = 1 << 40
    """Size of a part. An object that is larger is uploaded in parts."""
    parts: dict[str, list[bytes]] = field(default_factory=dict)
    """Parts of unfinished objects, by SHA-256."""
    commits: list[str] = field(default_factory=list)
    """Ids of all commits that were pushed, of all repositories."""
    before: Callable[[str, str], int | None] = lambda method, path: None
    """Called with each request that may change something. The hub answers with the status that it returns, if any."""
    after: Callable[[str, str], None] = lambda method, path: None
    """Called when an object or a commit was taken, before the answer."""


def is_lfs(name: str, size: int) -> bool:
    """Return whether the hub keeps a file of this name and size in LFS."""
    return name.endswith((".safetensors", ".gguf")) or size >= GIT_BYTES


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def entry(path: Path, size: int) -> dict[str, Any]:
    """Describe a file as the hub's list of files does."""
    content = path.read_bytes()
    found = {"type": "file", "path": path.name, "size": size, "oid": git_hash(content)}
    if is_lfs(path.name, size):
        found["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": size, "pointerSize": 134}
    return found


def upload_mode(folder: Path, file: dict[str, Any], ignored: str) -> dict[str, Any]:
    """Answer how a file must be uploaded, and what the branch has under its name."""
    name, oid = file["path"], None
    lfs = is_lfs(name, file["size"])
    if (path := folder / name).is_file():
        content = path.read_bytes()
        oid = hashlib.sha256(content).hexdigest() if lfs else git_hash(content)
    mode = "lfs" if lfs else "regular"
    return {"path": name, "uploadMode": mode, "shouldIgnore": name in ignored.split(), "oid": oid}


def batch(uploads: Uploads, objects: list[dict[str, Any]], address: str) -> dict[str, Any]:
    """Answer where the objects can be uploaded that the hub does not have."""
    answers = []
    for each in objects:
        href, header, size = f"{address}/lfs/{each['oid']}", dict[str, str](), each["size"]
        if size > uploads.part_bytes:
            numbers = range(1, -(-size // uploads.part_bytes) + 1)
            header = {"chunk_size": str(uploads.part_bytes), **{str(n): f"{href}/{n}" for n in numbers}}
        actions = {"upload": {"href": href, "header": header}}
        answers.append(each if each["oid"] in uploads.objects else {**each, "actions": actions})
    return {"transfer": "multipart", "objects": answers}


def take_object(uploads: Uploads, method: str, oid: str, body: bytes) -> bool:
    """Take an object, a part of one, or the request to join its parts. Return whether the object is complete.

    Raises ValueError if it has another SHA-256.
    """
    oid, _, number = oid.partition("/")
    if number:
        uploads.parts.setdefault(oid, []).append(body)
        return False
    content = body if method == "PUT" else b"".join(uploads.parts.pop(oid))
    if hashlib.sha256(content).hexdigest() != oid:
        raise ValueError("the object has another hash")
    uploads.objects[oid] = content
    uploads.received[oid] += 1
    return True


def commit(uploads: Uploads, folder: Path, lines: list[dict[str, Any]]) -> str:
    """Apply the lines of a commit to the folder of a branch, and return the commit's id.

    Raises KeyError if an object was not uploaded.
    """
    changes: dict[str, bytes | None] = {}
    for line in lines:
        value = line["value"]
        match line["key"]:
            case "file":
                changes[value["path"]] = base64.b64decode(value["content"])
            case "lfsFile":
                changes[value["path"]] = uploads.objects[value["oid"]]
            case "deletedFile":
                changes[value["path"]] = None
    for name, content in changes.items():
        if content is None:
            (folder / name).unlink()
        else:
            (folder / name).write_bytes(content)
    uploads.commits.append(hashlib.sha1(json.dumps([uploads.commits, lines]).encode()).hexdigest())
    return uploads.commits[-1]
