"""Errors told to Sentry, where `SENTRY_DSN` and the extra `callsheet[sentry]` are there; else nothing is imported.

What is told is each log line of the level error, with its exception: no request, no body, no header, no local variable.
Tokens and the secrets of the settings are blanked out of it last of all.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final, cast

import msgspec
from structlog.typing import EventDict, WrappedLogger

if TYPE_CHECKING:
    from sentry_sdk.types import Event, Hint

#: What the keys of a log line are called here.
_TAGS: Final = ("part", "vendor", "trace_id")
#: Shorter ones would blank out words that are none.
_MIN_SECRET: Final = 8


def begin(dsn: str, redact: Callable[[bytes], bytes], secrets: Iterable[str]) -> bool:
    """Report from now on; False where the extra is not installed."""
    if find_spec("sentry_sdk") is None:
        return False
    import sentry_sdk
    from sentry_sdk.integrations.atexit import AtexitIntegration
    from sentry_sdk.integrations.excepthook import ExcepthookIntegration

    known = [msgspec.json.encode(secret)[1:-1] for secret in secrets if len(secret) >= _MIN_SECRET]

    def scrubbed(event: Event, _hint: Hint) -> Event:
        text = redact(
            msgspec.json.encode({name: value for name, value in event.items() if name != "request"}, enc_hook=repr)
        )
        for secret in known:
            text = text.replace(secret, b"***")
        return cast("Event", msgspec.json.decode(text))

    sentry_sdk.init(
        dsn=dsn,
        release=f"callsheet@{version('callsheet')}",
        before_send=scrubbed,
        # Integrations collect requests, queries and arguments by themselves.
        default_integrations=False,
        auto_enabling_integrations=False,
        integrations=[AtexitIntegration(callback=lambda _pending, _timeout: None), ExcepthookIntegration()],
        include_local_variables=False,
        max_request_body_size="never",
        max_breadcrumbs=0,
        send_default_pii=False,
    )
    return True


def report(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """A step of logging, before exceptions are made into text."""
    record = event.get("_record")
    if event.get("level") in ("error", "critical") and not (record and record.name.startswith("sentry_sdk")):
        import sentry_sdk

        error = event.get("exc_info")
        with sentry_sdk.new_scope() as scope:
            scope.set_tags({name: str(event[name]) for name in _TAGS if event.get(name)})
            scope.set_context("line", {name: str(value) for name, value in event.items() if name not in _OURS})
            if error:
                sentry_sdk.capture_exception(sys.exc_info() if error is True else error)
            else:
                sentry_sdk.capture_message(str(event["event"]), "error")
    return event


_OURS: Final = frozenset({"_record", "_from_structlog", "exc_info", "at", "level"})
