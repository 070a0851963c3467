"""Notifications go through a real broker, and a broker that is down is not an error."""

import json
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import redis
from pydantic import RedisDsn

from core.infra import queue
from core.settings import Settings
from tests.tls import self_signed


def test_a_notification_is_one_message_that_names_no_job(settings: Settings) -> None:
    queue.notify(queue.make_app(settings))
    with redis.Redis.from_url(str(settings.broker_url)) as client:
        (raw,) = client.lrange("seft", 0, -1)
    message = json.loads(raw)
    assert message["headers"]["task"] == queue.TASK
    assert message["content-type"] == "application/json"
    assert message["headers"]["argsrepr"] == "()"


def test_unread_notifications_do_not_pile_up(settings: Settings) -> None:
    app = queue.make_app(settings)
    for _ in range(queue.MAX_WAITING + 5):
        queue.notify(app)
    with redis.Redis.from_url(str(settings.broker_url)) as client:
        assert client.llen("seft") == queue.MAX_WAITING


def test_a_broker_that_is_down_does_not_hold_a_request_and_raises_no_error(settings: Settings) -> None:
    app = queue.make_app(settings.model_copy(update={"broker_url": "redis://127.0.0.1:9/0"}))
    queue.notify(app)
    with pytest.raises(Exception, match=r"refused|Connection"):
        queue.ping(app)


def test_after_a_timeout_the_next_notifications_do_not_wait(settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(0.1)
        port = silent.getsockname()[1]
        app = queue.make_app(settings.model_copy(update={"broker_url": f"redis://127.0.0.1:{port}/0"}))
        assert not queue.notify(app)
        with suppress(TimeoutError):
            while True:
                silent.accept()[0].close()
        assert not queue.notify(app)
        with pytest.raises(TimeoutError):
            silent.accept()


def test_a_running_broker_answers_a_ping(settings: Settings) -> None:
    queue.ping(queue.make_app(settings))


@pytest.mark.parametrize("trusted", [False, True])
def test_the_password_goes_only_to_a_broker_whose_certificate_is_valid(
    settings: Settings, tmp_path: Path, trusted: bool
) -> None:
    certificate = self_signed(tmp_path)
    with tls_server(certificate) as (port, received):
        option = f"?ssl_ca_certs={certificate}" if trusted else ""
        url = RedisDsn(f"rediss://:hidden@localhost:{port}/0{option}")
        queue.notify(queue.make_app(settings.model_copy(update={"broker_url": url})))
    assert (b"hidden" in b"".join(received)) is trusted


@contextmanager
def tls_server(certificate: Path) -> Iterator[tuple[int, list[bytes]]]:
    """Run a server that ends each connection after its first bytes. Yield its port and the bytes that it receives."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    received: list[bytes] = []

    def serve(listener: socket.socket) -> None:
        with suppress(OSError):  # closed
            while True:
                connection, _ = listener.accept()
                with suppress(OSError), context.wrap_socket(connection, server_side=True) as encrypted:
                    received.append(encrypted.recv(4096))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,), daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1], received
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
