"""One trace from a callback through the commit and the tasks that it sets off to the deliveries, by OpenTelemetry.

Without the extra `callsheet[otel]`, or without `OTEL_EXPORTER_OTLP_ENDPOINT`, nothing of it is imported and a span is a
block that does nothing. Everything else is set by OpenTelemetry's own settings. No attribute holds a callback's token.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.util import find_spec
from threading import Thread
from typing import TYPE_CHECKING, Final

import structlog

if TYPE_CHECKING:
    from collections.abc import Iterator

    from opentelemetry.sdk.trace import TracerProvider

#: Seconds that a process which ends has for the spans that it still holds.
LAST: Final = 2.0

Value = str | int | float | None

_NOTHING: Final = nullcontext()
_provider: TracerProvider | None = None


def begin(part: str) -> bool:
    """Trace from now on; False where the extra is not installed. `OTEL_SERVICE_NAME` goes before the name made here."""
    global _provider
    if find_spec("opentelemetry") is None:
        return False
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    named = Resource.create({"service.name": f"callsheet-{part}"}).merge(OTELResourceDetector().detect())
    _provider = TracerProvider(resource=named, shutdown_on_exit=False)
    _provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return True


def end() -> None:
    """Send what is left; a collector that does not answer is waited for no longer than `LAST`."""
    global _provider
    if _provider is not None:
        sending = Thread(target=_provider.force_flush, daemon=True)  # which knows no limit that it keeps to
        sending.start()
        sending.join(LAST)
        _provider = None


def on() -> bool:
    """Whether anything is traced: for whoever would rather not even ask for a block that does nothing."""
    return _provider is not None


def span(
    name: str, parent: str | None = None, *, kind: str = "internal", **attributes: Value
) -> AbstractContextManager[None]:
    """A block of which is told how long it took; within `parent` (a traceparent), else within the block around it."""
    return _NOTHING if _provider is None else _span(name, parent, kind, attributes)


@contextmanager
def _span(name: str, parent: str | None, kind: str, attributes: dict[str, Value]) -> Iterator[None]:
    from opentelemetry.trace import SpanKind
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    assert _provider is not None  # noqa: S101  `span` has seen it
    tracer = _provider.get_tracer("callsheet")
    context = TraceContextTextMapPropagator().extract({"traceparent": parent}) if parent else None
    # An exception's words may quote anything: they belong in the log, which blanks tokens out.
    with tracer.start_as_current_span(
        name, context, SpanKind[kind.upper()], record_exception=False, set_status_on_exception=False
    ) as made:
        note(**attributes)
        with structlog.contextvars.bound_contextvars(trace_id=f"{made.get_span_context().trace_id:032x}"):
            yield


def note(**attributes: Value) -> None:
    """Say more about the block that is under way: words of ours, ids, numbers."""
    if _provider is not None:
        from opentelemetry.trace import get_current_span

        known = {f"callsheet.{name}": value for name, value in attributes.items() if value is not None}
        get_current_span().set_attributes(known)


def traceparent() -> str | None:
    """The block that is under way, as W3C's Trace Context writes it; None where nothing is traced."""
    if _provider is None:
        return None
    from opentelemetry.trace import get_current_span

    at = get_current_span().get_span_context()
    return f"00-{at.trace_id:032x}-{at.span_id:016x}-{at.trace_flags:02x}" if at.is_valid else None
