"""The broker. A message says "look", names no job, and proves nothing: losing all of them loses no work."""

from typing import Any

import redis
import structlog
from celery import Celery
from kombu.exceptions import KombuError

from core.infra.circuit_breaker import CircuitBreaker
from core.settings import Settings

QUEUE, TASK = "seft", "seft.work"
MOST_WAITING = 100
"""Where so many hints wait, every worker is busy and will find one; more of them would only fill the broker."""

log = structlog.get_logger(__name__)


class Broker(Celery):  # type: ignore[misc]
    """Celery, under a name for those who send hints and need not know it. It knows when its server is away."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.outage = CircuitBreaker()


def make_app(settings: Settings) -> Broker:
    """Celery over Valkey or Redis: no results, JSON only, early acknowledgement, one message at a time."""
    app = Broker("seft", broker=str(settings.broker_url), backend=None, set_as_current=False)
    app.conf.update(
        task_default_queue=QUEUE,
        task_ignore_result=True,
        task_serializer="json",
        accept_content=["json"],
        task_acks_late=False,
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,
        worker_hijack_root_logger=False,
        broker_connection_retry_on_startup=True,
        # A publisher whose broker is down gives up in seconds.
        broker_transport_options={"socket_connect_timeout": 2, "socket_timeout": 5, "max_retries": 0},
    )
    return app


def notify(app: Broker) -> bool:
    """Say that a job waits. False where the broker is away, which is logged and no error: the sweep finds the job."""
    if app.outage.lasts:
        return False
    try:
        with app.producer_or_acquire() as producer:
            if producer.channel.queue_declare(QUEUE).message_count < MOST_WAITING:
                app.send_task(TASK, producer=producer, ignore_result=True, retry=False)
    except (KombuError, redis.RedisError, OSError) as error:
        app.outage.begin()
        log.warning("hint.lost", error=str(error))
        return False
    return True


def ping(app: Broker) -> None:
    """Raise when the broker does not answer within seconds."""
    with redis.Redis.from_url(app.conf.broker_url, socket_connect_timeout=2, socket_timeout=2) as client:
        client.ping()
