"""Where things stand in a drawing, in percent of its size. The templates draw, and say the same in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from math import log
from typing import Any, Final, NamedTuple

from service.dashboard.words import span
from service.model import VERDICTS, Status

#: Statuses that another one follows.
LIVING: Final = frozenset(Status) - {*VERDICTS, Status.EXPIRED}

#: How much more room early times have than late ones: most happens at the beginning, and much may pass before the end.
_BEND: Final = 50


class Dot(NamedTuple):
    x: float
    number: int  #: of the entry in the timeline, from 1
    words: str
    applied: bool
    bad: bool


class Lanes(NamedTuple):
    lanes: dict[str, list[Dot]]  #: by source, in the order in which they first spoke
    marks: list[str]  #: times, evenly along the axis


def lanes(job: Mapping[str, Any], entries: Sequence[Mapping[str, Any]], now: datetime) -> Lanes:
    """A timeline as one lane a source, from the job's beginning to its last fact, or until now while it lives."""
    begun = datetime.fromisoformat(job["created_at"])
    times = [(datetime.fromisoformat(entry["at"]) - begun).total_seconds() for entry in entries]
    length = max([0.001, *times, *([(now - begun).total_seconds()] if job["status"] in LIVING else [])])
    found: dict[str, list[Dot]] = {}
    for number, (entry, at) in enumerate(zip(entries, times, strict=True), 1):
        says = entry["status"] or entry.get("archive") or entry.get("problem") or "a note"
        bad = bool(entry.get("problem")) or says in ("failed", "expired")
        words = f"{number}: {entry['source']} says {says} after {span(at)}" + (
            "" if entry["applied"] else ", not applied"
        )
        found.setdefault(entry["source"], []).append(
            Dot(
                round(1.5 + 97 * log(1 + _BEND * max(at, 0) / length, 1 + _BEND), 2),
                number,
                words,
                entry["applied"],
                bad,
            )
        )
    return Lanes(found, [span(length * ((1 + _BEND) ** (step / 4) - 1) / _BEND) for step in range(5)])


class Bar(NamedTuple):
    name: str
    x: float
    y: float
    width: float
    height: float


def bars(series: Mapping[str, Sequence[float]]) -> list[Bar]:
    """One stack a bucket, the highest as high as the drawing."""
    count = max((len(values) for values in series.values()), default=0)
    top = peak(series)
    found = []
    for bucket in range(count):
        y = 100.0
        for name, values in series.items():
            if height := 100 * values[bucket] / top:
                y -= height
                found.append(
                    Bar(name, round(100 * bucket / count, 3), round(y, 2), round(86 / count, 3), round(height, 2))
                )
    return found


def peak(series: Mapping[str, Sequence[float]]) -> float:
    """The height of the highest stack; 1 where there is none."""
    return max((sum(stack) for stack in zip(*series.values(), strict=True)), default=0) or 1


def lines(values: Sequence[float | None], top: float) -> list[str]:
    """The points of each unbroken piece of a line, level over each bucket, for SVG polylines in a box of 100 by 100."""
    pieces: list[list[str]] = [[]]
    for number, value in enumerate(values):
        if value is None:
            pieces.append([])
        else:
            y = 100 - 96 * min(value / top, 1)
            pieces[-1] += [f"{100 * x / len(values):.2f},{y:.2f}" for x in (number, number + 0.9)]
    return [" ".join(piece) for piece in pieces if piece]
