"""How many requests a key may send: so many a second, and ten seconds' worth of them at once.

The counts lie beside the broker's messages and may be lost like them: while that server is away, nobody is held back.
"""

import redis
import structlog
from redis.backoff import NoBackoff
from redis.retry import Retry

from core.infra.circuit_breaker import CircuitBreaker
from core.settings import Settings

BURST_SECONDS = 10.0
ANSWER_SECONDS = 0.25
"""A server that is slower than this is away."""

# The generic cell rate algorithm: a key's one number is the time at which all that it has sent would be paid for.
# All processes share the server's clock.
TAKE = """
local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1000000
local interval, burst = tonumber(ARGV[1]), tonumber(ARGV[2])
local paid = math.max(tonumber(redis.call('GET', KEYS[1]) or now), now) + interval
if paid - now > burst then return string.format('%.6f', paid - now - burst) end
redis.call('SET', KEYS[1], string.format('%.6f', paid), 'PX', math.ceil((paid - now) * 1000))
return '0'
"""

log = structlog.get_logger(__name__)


class Limiter:
    """Counts the requests of every key, over all processes that use the same server. Safe to share between threads."""

    def __init__(self, settings: Settings) -> None:
        self._rate = settings.rate_limit
        self._server = redis.Redis.from_url(
            str(settings.broker_url),
            socket_connect_timeout=ANSWER_SECONDS,
            socket_timeout=ANSWER_SECONDS,
            retry=Retry(NoBackoff(), 0),
        )
        self._take = self._server.register_script(TAKE)
        self._outage = CircuitBreaker()

    def take(self, key_id: str) -> float:
        """Count one request of this key; the seconds after which it may come again, 0 when it may pass now."""
        if not self._rate or self._outage.lasts:
            return 0.0
        burst = max(BURST_SECONDS, 1 / self._rate)
        try:
            return float(self._take(keys=[f"seft:rate:{key_id}"], args=[1 / self._rate, burst]))
        except redis.RedisError as error:
            self._outage.begin()
            log.warning("rates.uncounted", error=str(error))
            return 0.0

    def close(self) -> None:
        """Close the connections."""
        self._server.close()
