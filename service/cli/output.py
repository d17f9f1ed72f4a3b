"""How the terminal shows things: tables for people, JSON for programs."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any, Final, TypeVar

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

C = TypeVar("C", bound=Callable[..., Any])

console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)

_COLOURS = {
    "succeeded": "green", "stored": "green", "failed": "red", "expired": "red", "cancelled": "yellow",
    "processing": "cyan", "waiting": "cyan", "unconfirmed": "yellow",
}  # fmt: skip

#: What would move a terminal's cursor, name its window, or worse.
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

#: Columns that give way where a terminal is narrow; the others are never broken.
_LONG = {"job", "error", "why", "value", "detail", "takes", "price", "delivery_id", "answer"}

json_option = click.option("--json", "as_json", is_flag=True, help="Print the API's answer as it is.")


def print_json(value: object) -> None:
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def table(columns: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        folds = column in _LONG
        shown.add_column(column, overflow="fold" if folds else "ellipsis", no_wrap=not folds)
    for row in rows:
        shown.add_row(*(coloured(cell) for cell in row))
    console.print(shown)


def coloured(value: object) -> Text:
    words = "-" if value is None else _CONTROL.sub("\ufffd", str(value))  # vendors and subscribers send them
    return Text(words, style=_COLOURS.get(words, ""))


def amount(value: float | None) -> str:
    return "-" if value is None else f"{value:,.6f}".rstrip("0").rstrip(".")


def price(cost: Mapping[str, Any] | None) -> str:
    """What was estimated and what was charged."""
    cost = cost or {}
    known = [cost.get("estimated"), cost.get("charged")]
    return "-" if known == [None, None] else f"{' / '.join(map(amount, known))} {cost['unit']}"


def since(job: Mapping[str, Any], at: str) -> float:
    """Seconds from the job's beginning here."""
    return (datetime.fromisoformat(at) - datetime.fromisoformat(job["created_at"])).total_seconds()
