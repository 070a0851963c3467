"""Runs HTTP servers in threads of the tests, and the API in a process of its own."""

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar

import uvicorn
from fastapi import FastAPI

from local.folder import FolderLock
from local.stack import Api
from tests.waiting import wait_for

Server = TypeVar("Server", bound=ThreadingHTTPServer)


class Quiet:
    """Makes a request handler log nothing, so that the output of the tests stays clean."""

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@contextmanager
def serving(server: Server) -> Iterator[Server]:
    """Run the server in a thread until the context ends, with an error or without one."""
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    with server:
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def serving_app(app: FastAPI, **options: Any) -> Iterator[str]:
    """Run the app in a thread until the context ends, and yield its URL. `options` are those of uvicorn."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, **options))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        wait_for(lambda: server.started or not thread.is_alive())
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def running_api(folder: Path, variables: Mapping[str, str]) -> Iterator[Api]:
    """Run the API as the only program in the folder until the context ends, with more environment variables."""
    lock = FolderLock(folder)
    lock.acquire()
    api = Api(lock, {**os.environ, **variables})
    try:
        api.start()
        yield api
    finally:
        api.stop()
        lock.release()
