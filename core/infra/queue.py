"""The message broker. A message only notifies the workers that some job is waiting.

The message does not name the job. Jobs are in the database, so no work is lost if a message is lost.
"""

import ssl
from typing import Any

import redis
import structlog
from celery import Celery
from kombu.exceptions import KombuError

from core.infra.circuit_breaker import CircuitBreaker
from core.settings import Settings

QUEUE, TASK = "seft", "seft.work"
MAX_WAITING = 100
"""Maximum number of notifications in the queue. With this many, every worker finds one, so more are not needed."""

log = structlog.get_logger(__name__)


class Broker(Celery):  # type: ignore[misc]
    """A Celery app with a circuit breaker.

    Modules that only send notifications use this type, so that they need not import Celery.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.breaker = CircuitBreaker()


def make_app(settings: Settings) -> Broker:
    """Create the Celery app for Valkey or Redis.

    It stores no results and accepts only JSON. A message is acknowledged when it is received, and none is fetched in
    advance.
    """
    url = str(settings.broker_url)
    app = Broker("seft", broker=url, backend=None, set_as_current=False)
    app.conf.update(
        # By default Celery accepts any certificate. Options in the URL, such as `?ssl_ca_certs=FILE`, replace this one.
        broker_use_ssl={"ssl_cert_reqs": ssl.CERT_REQUIRED} if url.startswith("rediss:") else None,
        task_default_queue=QUEUE,
        task_ignore_result=True,
        task_serializer="json",
        accept_content=["json"],
        task_acks_late=False,
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,
        worker_hijack_root_logger=False,
        broker_connection_retry_on_startup=True,
        # If the broker is down, a publisher fails within seconds.
        broker_transport_options={"socket_connect_timeout": 2, "socket_timeout": 5, "max_retries": 0},
    )
    return app


def notify(app: Broker) -> bool:
    """Notify the workers that a job is waiting. Return whether the broker could be reached.

    An unreachable broker is logged and raises no error, because the sweep of a worker finds the job later.
    """
    if app.breaker.is_open:
        return False
    try:
        with app.producer_or_acquire() as producer:
            if producer.channel.queue_declare(QUEUE).message_count < MAX_WAITING:
                app.send_task(TASK, producer=producer, ignore_result=True, retry=False)
    except (KombuError, redis.RedisError, OSError) as error:
        app.breaker.trip()
        log.warning("notification.lost", error=str(error))
        return False
    return True


def ping(app: Broker) -> None:
    """Raise an error if the broker does not answer within a few seconds."""
    with redis.Redis.from_url(app.conf.broker_url, socket_connect_timeout=2, socket_timeout=2) as client:
        client.ping()
