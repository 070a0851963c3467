"""Logging with structlog, also for messages of libraries.

A log line is a JSON object, or coloured text for a console. Values bound with
`structlog.contextvars.bind_contextvars` (request_id, job, attempt, worker) appear in every line.
"""

import logging
import sys

import structlog
from structlog.typing import Processor

from core.settings import Settings


def configure(settings: Settings) -> None:
    """Configure the logging of this process. Call it once, when the process starts."""
    common: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[*common, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(foreign_pre_chain=common, processors=_rendering(settings.log_format))
    )
    logging.captureWarnings(True)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    # httpx2 logs every URL, and the hub's file URLs are signed.
    logging.getLogger("httpx2").setLevel(logging.WARNING)


def _rendering(log_format: str) -> list[Processor]:
    strip = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    if log_format == "console":
        # No local variables in tracebacks: they may hold secrets, and formatting them blocks the process for seconds.
        return [strip, structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
    return [strip, structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
