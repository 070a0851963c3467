"""Notifications go through a real broker, and a broker that is down is not an error."""

import json
import socket
from contextlib import suppress

import pytest
import redis

from core.infra import queue
from core.settings import Settings


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
