"""A small model and dataset hub on loopback, sufficient for the real `huggingface_hub` client.

It serves repository information, file trees and files of one commit per branch, and the owner of a token. It returns
the error codes that the client distinguishes. With `Uploads` it also takes pushes.
"""

import hashlib
import json
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event
from typing import Any
from urllib.parse import urlsplit

import pytest
from huggingface_hub import constants

from tests.hub_uploads import GITATTRIBUTES, Uploads, batch, commit, entry, take_object, upload_mode
from tests.serving import Quiet, serving

SPACES = b" " * (1 << 20)
COMMIT = "0123456789abcdef0123456789abcdef01234567"
XET = {"X-Xet-Hash": "0" * 64, "X-Xet-Refresh-Route": "/xet-token"}
"""Headers with which the hub offers another way to download a file. This server has no such way."""


@dataclass
class Repo:
    """A model or a dataset, with its files in a folder.

    Without a token in `readers`, the files of a gated repository are denied, and a private repository is not found.
    `padding` spaces follow the content of `config.json`. They are sent in blocks and stored nowhere. The hub mentions
    them in its list of files only if it is `honest`. It waits for `delay` seconds before it answers about a slow one.
    """

    folder: Path
    licence: str = "apache-2.0"
    gated: bool = False
    private: bool = False
    readers: tuple[str, ...] = ()
    padding: int = 0
    honest: bool = True
    delay: float = 0.0
    head: str = COMMIT
    """Id of the newest commit of the branch, the only one that is served."""

    def size(self, file: Path) -> int:
        return file.stat().st_size + (self.padding if self.honest and file.name == "config.json" else 0)

    def files(self) -> list[Path]:
        return sorted(path for path in self.folder.iterdir() if path.is_file())


@contextmanager
def hub(
    repos: dict[str, Repo],
    owners: Mapping[str, str] | None = None,
    seen: list[tuple[str, str | None]] | None = None,
    uploads: Uploads | None = None,
    away: Event | None = None,
) -> Iterator[str]:
    """Serve these repositories by id, and yield the value for HF_ENDPOINT.

    The branch `b` of the repository `owner/name` has the id `owner/name@b`, except for `main`. `owners` maps each valid
    token to its owner's name. The path and token of each request are appended to `seen`. While `away` is set, each
    answer is 503.
    """

    class Handler(_Handler):
        pass

    Handler.repos, Handler.owners, Handler.seen = repos, owners or {}, [] if seen is None else seen
    Handler.uploads, Handler.away = uploads, away or Event()
    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as server:
        yield f"http://127.0.0.1:{server.server_address[1]}"


def use_hub(monkeypatch: pytest.MonkeyPatch, endpoint: str, cache: Path) -> None:
    """Make this process use the hub at `endpoint`, as if HF_ENDPOINT and HF_HUB_CACHE had been set when it started."""
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))


class _Handler(Quiet, BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    repos: dict[str, Repo]
    owners: Mapping[str, str]
    seen: list[tuple[str, str | None]]
    uploads: Uploads | None
    away: Event

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._take()

    def do_PUT(self) -> None:
        self._take()

    def _answer(self) -> None:
        self.token = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
        path = urlsplit(self.path).path
        self.seen.append((path, self.token))
        match path.strip("/").split("/"):
            case _ if self.away.is_set():
                self._error(503, "")
            case _ if self.token is not None and self.token not in self.owners:
                self._error(401, "", "Invalid credentials in Authorization header")
            case ["api", "whoami-v2"]:
                self._json(self._account(self.token) if self.token else {})
            case ["api", "models" | "datasets", owner, name, *rest]:
                self._answer_about(f"{owner}/{name}", rest)
            case [owner, name, "resolve", revision, file] | ["datasets", owner, name, "resolve", revision, file]:
                self._answer_file(f"{owner}/{name}", revision, file)
            case _:
                self._error(404, "EntryNotFound")

    def _answer_about(self, repo_id: str, rest: list[str]) -> None:
        repo = self._repo(repo_id, rest[1] if len(rest) > 1 else "main")
        match rest:
            case _ if repo is None:
                return
            case [] | ["revision", _]:
                siblings = [{"rfilename": file.name, "size": repo.size(file)} for file in repo.files()]
                card = {"license": repo.licence}
                self._json({"id": repo_id, "sha": repo.head, "siblings": siblings, "cardData": card})
            case ["tree", _]:
                self._json([entry(file, repo.size(file)) for file in repo.files()])
            case _:
                self._error(404, "EntryNotFound")

    def _answer_file(self, repo_id: str, revision: str, name: str) -> None:
        repo = self._repo(repo_id, revision)
        if repo is None:
            return
        if repo.gated and self.token not in repo.readers:
            self._error(403, "GatedRepo")
            return
        file = repo.folder / name
        if not file.is_file():
            self._error(404, "EntryNotFound")
            return
        content, headers = file.read_bytes(), {"ETag": f'"{_etag(file)}"', "X-Repo-Commit": repo.head, **XET}
        if repo.padding and name == "config.json":
            self._send(200, content, headers, repo.padding)
        elif match := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
            self._send(206, content[int(match[1]) : int(match[2]) + 1], headers)
        else:
            self._send(200, content, headers)

    def _repo(self, repo_id: str, revision: str) -> Repo | None:
        heads = (repo for id_, repo in self.repos.items() if id_.startswith(f"{repo_id}@") and repo.head == revision)
        repo = next(heads, self.repos.get(f"{repo_id}@{revision}")) or self.repos.get(repo_id)
        time.sleep(repo.delay if repo else 0)
        if repo is None or (repo.private and self.token not in repo.readers):
            self._error(404 if self.token else 401, "RepoNotFound")
            return None
        if revision not in ("main", repo.head) and repo is self.repos.get(repo_id):
            self._error(404, "RevisionNotFound")
            return None
        return repo

    def _account(self, token: str) -> dict[str, Any]:
        """Describe the owner of a token. A hub without `Uploads` does not say what the token may do."""
        name = {"name": self.owners[token]}
        if self.uploads is None:
            return name
        role = "write" if token in self.uploads.writers else "read"
        return {**name, "orgs": [], "auth": {"accessToken": {"role": role}}}

    def _take(self) -> None:
        """Answer a request that may change something."""
        self.token = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
        body = self._body()
        path = urlsplit(self.path).path
        self.seen.append((path, self.token))
        if self.uploads is None:
            self._error(404, "EntryNotFound")
        elif status := self.uploads.before(self.command, path):
            self._error(status, "", "as the test wants it")
        elif path.startswith("/lfs/"):
            self._take_object(self.uploads, path.removeprefix("/lfs/"), body)
        elif self.token not in self.owners:
            self._error(401, "", "Invalid credentials in Authorization header")
        elif self.token not in self.uploads.writers:
            self._error(403, "", f"The token {self.token} cannot write here")
        else:
            self._change(self.uploads, path, body)

    def _change(self, uploads: Uploads, path: str, body: bytes) -> None:
        parts, value = path.strip("/").split("/"), {}
        with suppress(ValueError):
            value = json.loads(body)
        match parts:
            case ["api", "validate-yaml"]:
                self._json({})
            case ["api", "repos", "create"]:
                self._create(uploads, value)
            case [owner, git, "info", "lfs", "objects", "batch"] if git.endswith(".git"):
                self._json(batch(uploads, value["objects"], f"http://{self.headers['Host']}"))
            case ["api", "models", owner, name, action, branch]:
                repo_id = f"{owner}/{name}" + ("" if branch == "main" else f"@{branch}")
                if action == "branch":
                    self._create_branch(uploads, f"{owner}/{name}", repo_id)
                elif action == "preupload":
                    folder = self.repos[repo_id].folder
                    rules = folder / ".gitignore"
                    ignored = value.get("gitIgnore", rules.read_text() if rules.exists() else "")
                    self._json({"files": [upload_mode(folder, file, ignored) for file in value["files"]]})
                else:
                    self._commit(uploads, self.repos[repo_id], [json.loads(line) for line in body.splitlines()])

    def _create(self, uploads: Uploads, value: dict[str, Any]) -> None:
        repo_id = f"{value['organization']}/{value['name']}"
        url = {"url": f"http://{self.headers['Host']}/{repo_id}"}
        if repo_id in self.repos:
            self._send(409, json.dumps(url).encode(), {"Content-Type": "application/json"})
            return
        folder = uploads.folder / repo_id
        folder.mkdir(parents=True)
        (folder / ".gitattributes").write_bytes(GITATTRIBUTES)
        private = value["visibility"] == "private"
        self.repos[repo_id] = Repo(folder, private=private, readers=uploads.writers)
        self._json(url)

    def _create_branch(self, uploads: Uploads, main: str, repo_id: str) -> None:
        if repo_id in self.repos:
            self._error(409, "", "Reference already exists")
            return
        folder = uploads.folder / repo_id
        shutil.copytree(self.repos[main].folder, folder)
        self.repos[repo_id] = replace(self.repos[main], folder=folder)
        self._json({})

    def _take_object(self, uploads: Uploads, oid: str, body: bytes) -> None:
        try:
            if take_object(uploads, self.command, oid, body):
                uploads.after(self.command, self.path)
        except ValueError as error:
            self._error(400, "", str(error))
        else:
            self._send(200, b"{}", {"Content-Type": "application/json", "ETag": '"part"'})

    def _commit(self, uploads: Uploads, repo: Repo, lines: list[dict[str, Any]]) -> None:
        if lines[0]["value"].get("parentCommit", repo.head) != repo.head:
            self._error(412, "", "A commit has happened since")
            return
        repo.head = commit(uploads, repo.folder, lines)
        uploads.after(self.command, self.path)
        url = f"http://{self.headers['Host']}/acme/any/commit/{repo.head}"
        self._json({"commitUrl": url, "commitOid": repo.head})

    def _body(self) -> bytes:
        """Read the body of a request, of a known length or in chunks."""
        if "Content-Length" in self.headers:
            return self.rfile.read(int(self.headers["Content-Length"]))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size + 2)[:-2]
        self.rfile.readline()
        return body

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _error(self, status: int, code: str, message: str = "") -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": message}
        self._send(status, b"{}", {**headers, "Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str], padding: int = 0) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body) + padding)}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            with suppress(OSError):  # a client may leave before the end
                self.wfile.write(body)
                for start in range(0, padding, len(SPACES)):
                    self.wfile.write(SPACES[: padding - start])


def _etag(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()
