"""Logging by structlog: JSON in production, readable in a terminal, and never a callback token in any line.

One canonical line per callback, poll, archive attempt and delivery; `job_id` and `vendor` are always its keys.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
import structlog
from structlog.typing import EventDict, WrappedLogger

#: Loggers of the libraries below us that say at INFO what our own canonical lines say better.
_QUIET: Final = ("httpx", "httpcore", "uvicorn.access", "rq.worker", "asyncio")

Redact = Callable[[bytes], bytes]


def configure(format_: str, redact: Redact, *steps: structlog.typing.Processor) -> None:
    """Send structlog's and the standard library's records to stdout in one form.

    `format_` is `json`, `console` or `auto`. `redact` sees every line as the last step before it is written,
    `steps` see it while its exception is still one.
    """
    console = format_ == "console" or (format_ == "auto" and sys.stdout.isatty())
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="at") if console else _stamped,
        *steps,
    ]
    render = _last_step(
        structlog.dev.ConsoleRenderer(pad_event_to=28, exception_formatter=structlog.dev.plain_traceback)
        if console
        else _json,
        redact,
    )
    exceptions: list[structlog.typing.Processor] = [] if console else [structlog.processors.format_exc_info]
    structlog.configure(
        processors=[*shared, *exceptions, render],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.BytesLoggerFactory(sys.stdout.buffer),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, *exceptions],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, render, _as_text],
        )
    )
    logging.basicConfig(handlers=[handler], level=logging.INFO, force=True)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):  # uvicorn brings handlers of its own
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


def _stamped(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    event["at"] = datetime.now(UTC)  # msgspec writes it down
    return event


def _json(_logger: WrappedLogger, _method: str, event: EventDict) -> bytes:
    line = {name: event.pop(name, None) for name in ("at", "level", "part", "event")}
    line |= event
    try:
        return msgspec.json.encode(line, enc_hook=repr)
    except (
        ValueError,
        TypeError,
        RecursionError,
    ):  # a lone surrogate, a key that is no string: the line is written all the same
        return json.dumps(_plain(line)).encode()


def _plain(value: object, depth: int = 0) -> object:
    """`value` as something that JSON can always say."""
    if isinstance(value, dict) and depth < 4:
        return {str(_plain(key)): _plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, list | tuple) and depth < 4:
        return [_plain(item, depth + 1) for item in value]
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    return value if isinstance(value, bool | int | None) else repr(value)[:1000]


def _last_step(render: Callable[[WrappedLogger, str, EventDict], str | bytes], redact: Redact) -> Any:
    def last(logger: WrappedLogger, method: str, event: EventDict) -> bytes:
        line = render(logger, method, event)
        return redact(line.encode(errors="backslashreplace") if isinstance(line, str) else line)

    return last


def _as_text(_logger: WrappedLogger, _method: str, line: Any) -> str:
    return str(line, "utf-8", "replace")


def get(name: str) -> structlog.typing.FilteringBoundLogger:
    """A logger whose lines say which part of the service wrote them."""
    return structlog.get_logger(part=name)  # type: ignore[no-any-return]
