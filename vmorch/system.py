"""The real clock, real ids and real logs of a server process. Only composition roots hand them in."""

import asyncio
import hmac
import logging
import sys
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable
from datetime import UTC, datetime

import structlog
import uuid_utils


class SystemClock:
    """The machine's clocks."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def new_id() -> str:
    """A time-ordered UUID (version 7)."""
    return str(uuid_utils.uuid7())


def secrets_of(key: bytes) -> Callable[[str], str]:
    """Secrets that only the holder of `key` can make: HMAC-SHA-256 of their seed."""

    def secret(seed: str) -> str:
        return urlsafe_b64encode(hmac.digest(key, seed.encode(), "sha256")).decode().rstrip("=")

    return secret


def log_to_stderr() -> None:
    """Write this process's log as JSON lines, or for eyes on a terminal."""
    terminal = sys.stderr.isatty()
    # tracebacks without local variables: those may hold secrets
    plain = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    renderer = plain if terminal else structlog.processors.JSONRenderer()
    formatted = structlog.processors.ExceptionRenderer(structlog.tracebacks.ExceptionDictTransformer(show_locals=False))
    traceback = [] if terminal else [formatted]
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *traceback,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
