"""Hints travel through a real broker, and a broker that is down is nobody's error."""

import json
import socket
import time
from contextlib import suppress

import pytest
import redis

from core.infra import queue
from core.settings import Settings


def test_a_hint_is_one_message_that_names_no_job(settings: Settings) -> None:
    queue.notify(queue.make_app(settings))
    with redis.Redis.from_url(str(settings.broker_url)) as client:
        (raw,) = client.lrange("seft", 0, -1)
    message = json.loads(raw)
    assert message["headers"]["task"] == queue.TASK
    assert message["content-type"] == "application/json"
    assert message["headers"]["argsrepr"] == "()"


def test_hints_that_nobody_takes_do_not_pile_up(settings: Settings) -> None:
    app = queue.make_app(settings)
    for _ in range(queue.MOST_WAITING + 5):
        queue.notify(app)
    with redis.Redis.from_url(str(settings.broker_url)) as client:
        assert client.llen("seft") == queue.MOST_WAITING


def test_a_broker_that_is_down_costs_seconds_and_no_error(settings: Settings) -> None:
    app = queue.make_app(settings.model_copy(update={"broker_url": "redis://127.0.0.1:9/0"}))
    began = time.monotonic()
    queue.notify(app)
    assert time.monotonic() - began < 5
    with pytest.raises(Exception, match=r"refused|Connection"):
        queue.ping(app)


def test_after_a_mute_broker_the_next_hints_wait_for_nothing(settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        mute.settimeout(0.1)
        port = mute.getsockname()[1]
        app = queue.make_app(settings.model_copy(update={"broker_url": f"redis://127.0.0.1:{port}/0"}))
        assert not queue.notify(app)
        with suppress(TimeoutError):
            while True:
                mute.accept()[0].close()
        assert not queue.notify(app)
        with pytest.raises(TimeoutError):
            mute.accept()


def test_a_living_broker_answers(settings: Settings) -> None:
    queue.ping(queue.make_app(settings))
