"""A TCP proxy to the object storage whose connections can be cut. Data in transit is then lost."""

import socket
import threading
from contextlib import suppress

BLOCK = 1 << 16


class Proxy:
    """Listens on an address and forwards every byte to a loopback port."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self._to = port
        self._open: set[socket.socket] = set()
        self._cut = threading.Event()
        self._listener = socket.create_server((host, 0))
        self.port: int = self._listener.getsockname()[1]
        self.bytes_up = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Break all connections, and every new one until `restore`."""
        self._cut.set()
        for end in list(self._open):
            _break(end)

    def restore(self) -> None:
        """Accept connections again."""
        self._cut.clear()

    def close(self) -> None:
        """Break all connections and stop listening."""
        self.cut()
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                threading.Thread(target=self._connect, args=[near], daemon=True).start()

    def _connect(self, near: socket.socket) -> None:
        with near, suppress(OSError):
            if not self._cut.is_set():
                with socket.create_connection(("127.0.0.1", self._to)) as far:
                    self._join(near, far)

    def _join(self, near: socket.socket, far: socket.socket) -> None:
        self._open |= {near, far}
        back = threading.Thread(target=self._forward, args=[far, near], daemon=True)
        back.start()
        self._forward(near, far, up=True)
        back.join()
        self._open -= {near, far}

    def _forward(self, source: socket.socket, target: socket.socket, *, up: bool = False) -> None:
        with suppress(OSError):
            while block := source.recv(BLOCK):
                self.bytes_up += len(block) if up else 0
                target.sendall(block)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def _break(end: socket.socket) -> None:
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
