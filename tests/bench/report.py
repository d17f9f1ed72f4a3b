"""The table, ratios first, and the same as JSON."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.table import Table

from .measure import OURS, Row, spread


def table(rows: Sequence[Row]) -> Table:
    made = Table(
        "what it costs", "× what", "at most", "median (least–most)", "ours", "theirs", title="Callsheet beside others"
    )
    for row in rows:
        others = [name for name in row.figures if name != OURS] or [""]
        for number, name in enumerate(others):
            ours = f"{spread(row.figures[OURS], row.digits)} {row.unit}" if number == 0 else ""
            made.add_row(row.what if number == 0 else "", name, *_compared(row, name), ours, _theirs(row, name))
        if row.note:
            made.add_row("", f"[dim]{row.note}[/]")
        made.add_section()
    return made


def _compared(row: Row, name: str) -> tuple[str, str]:
    if not name:
        return "", ""
    limit = row.limits.get(name)
    colour = "" if limit is None else "[green]" if row.reached(name) else "[red]"
    return "" if limit is None else f"{limit:g}", colour + spread(row.ratio(name), 3 if (limit or 1) < 0.1 else 2)


def _theirs(row: Row, name: str) -> str:
    return f"{spread(row.figures[name], row.digits)} {row.unit}" if name else ""


def save(rows: Sequence[Row], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {
        "at": datetime.now(UTC).isoformat(),
        "python": platform.python_version(),
        "machine": platform.platform(),
        "rows": [
            {
                "what": row.what,
                "unit": row.unit,
                "ratios": {name: row.ratio(name) for name in row.figures if name != OURS},
                "limits": dict(row.limits),
                "reached": {name: row.reached(name) for name in row.limits if name in row.figures},
                "figures": row.figures,
                "note": row.note,
            }
            for row in rows
        ],
    }
    path.write_text(json.dumps(found, indent=1))
