"""How pages say things: times, sizes, amounts, and what vendors sent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any, Final
from urllib.parse import urlencode

import msgspec
from markupsafe import Markup

_UNITS: Final = ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def span(seconds: float) -> str:
    """`850 ms`, `12.3 s`, `4 min`, `2 h 5 min`."""
    if seconds < 1:
        return f"{max(seconds, 0) * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f}".removesuffix(".0") + " s"
    for number, (unit, name) in enumerate(_UNITS):
        if seconds >= unit:
            rest = int(seconds % unit) // _UNITS[number + 1][0]
            more = f" {rest} {_UNITS[number + 1][1]}" if rest and name != "min" else ""
            return f"{int(seconds // unit)} {name}{more}"
    return ""


def between(start: str | None, end: str | None) -> str:
    """The time between two moments, as pages say it."""
    if start is None or end is None:
        return "–"
    return span((datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds())


def ago(at: str | None, now: datetime) -> Markup:
    """How long ago, or in how long, with the exact moment behind it."""
    if at is None:
        return Markup("–")
    seconds = (now - datetime.fromisoformat(at)).total_seconds()
    words = span(abs(seconds) // 1) if abs(seconds) >= 1 else "now"
    told = words if words == "now" else f"{words} ago" if seconds > 0 else f"in {words}"
    return Markup('<time datetime="{0}" title="{0}">{1}</time>').format(at, told)


def size(number: int) -> str:
    for unit in ("bytes", "KB", "MB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000  # type: ignore[assignment]  # a fraction from the second step on
    return f"{number:.3g} GB"


def amount(value: float | None) -> str:
    return "–" if value is None else f"{value:,.6f}".rstrip("0").rstrip(".")


def pretty(value: Any) -> str:
    """JSON, or text that may be JSON, with line breaks; anything else as it is."""
    try:
        text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
        return msgspec.json.format(text, indent=2)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return str(value)


def kept(query: Mapping[str, object], **other: object) -> str:
    """A query with what it has, to put behind an address, some of it other than it was."""
    told = urlencode({name: value for name, value in {**query, **other}.items() if value})
    return f"?{told}" if told else ""


def hours_before(hours: int, now: datetime) -> str:
    return (now - timedelta(hours=hours)).isoformat(timespec="seconds")


def hour(since: str, hours: int) -> str:
    """The moment so many hours later, as a plot's axis says it."""
    return f"{datetime.fromisoformat(since) + timedelta(hours=hours):%m-%d %H:00}"


FILTERS: Final[dict[str, Callable[..., Any]]] = {
    "span": span, "ago": ago, "size": size, "amount": amount, "pretty": pretty, "took": between,
    "kept": kept, "hours_before": hours_before, "hour": hour,
}  # fmt: skip
