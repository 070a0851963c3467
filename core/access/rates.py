"""Rate limit per API key: `rate_limit` requests per second on average, with bursts of ten seconds' worth of requests.

The counts are stored in the server of the broker and may be lost. While that server is unreachable, no request is
limited.
"""

import redis
import structlog
from redis.backoff import NoBackoff
from redis.retry import Retry

from core.infra.circuit_breaker import CircuitBreaker
from core.settings import Settings

BURST_SECONDS = 10.0
ANSWER_SECONDS = 0.25
"""Timeout of a call to the server, in seconds. A slower server counts as unreachable."""

# The generic cell rate algorithm (GCRA). The one number stored per key is the theoretical arrival time: the time at
# which the next request would arrive if all arrived at exactly the allowed rate. All processes use the server's clock.
# The stored time is at most `burst` ahead of now. If it is further ahead, the clock was set back. Then it is corrected.
TAKE = """
local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1000000
local interval, burst = tonumber(ARGV[1]), tonumber(ARGV[2])
local stored = tonumber(redis.call('GET', KEYS[1]) or now)
local ahead = math.min(math.max(stored - now, 0), burst)
local wait = ahead + interval - burst
if wait <= 0 then ahead = ahead + interval end
redis.call('SET', KEYS[1], string.format('%.6f', now + ahead), 'PX', math.max(math.ceil(ahead * 1000), 1))
return wait > 0 and string.format('%.6f', wait) or '0'
"""

log = structlog.get_logger(__name__)


class Limiter:
    """Limits the requests of each key, across all processes that use the same server. Safe to share between threads."""

    def __init__(self, settings: Settings) -> None:
        self._rate = settings.rate_limit
        self._server = redis.Redis.from_url(
            str(settings.broker_url),
            socket_connect_timeout=ANSWER_SECONDS,
            socket_timeout=ANSWER_SECONDS,
            retry=Retry(NoBackoff(), 0),
        )
        self._take = self._server.register_script(TAKE)
        self._breaker = CircuitBreaker()

    def take(self, key_id: str) -> float:
        """Count one request of this key. Return 0 if it is allowed, else the seconds to wait before a retry."""
        if not self._rate or self._breaker.is_open:
            return 0.0
        burst = max(BURST_SECONDS, 1 / self._rate)
        try:
            return float(self._take(keys=[f"seft:rate:{key_id}"], args=[1 / self._rate, burst]))
        except redis.RedisError as error:
            self._breaker.trip()
            log.warning("rates.not_counted", error=str(error))
            return 0.0

    def close(self) -> None:
        """Close the connections to the server."""
        self._server.close()
