"""CPU time of processes and what belongs to them, where they run, and rounds that alternate."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Final

_TICK: Final = os.sysconf("SC_CLK_TCK")
_CORES: Final = sorted(os.sched_getaffinity(0))
#: What is measured runs alone on the first; its callers and its Redis share the last.
SERVER_CORE: Final = _CORES[0]
CLIENT_CORE: Final = _CORES[-1]


def pin(pid: int, core: int) -> None:
    """Let a process, and whatever it starts from now on, run on one core."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(thread.name), {core})


def cpu_seconds(pid: int) -> float:
    """CPU that a process and all it has ever started have used, those that have ended included."""
    children: dict[int, list[int]] = {}
    used: dict[int, float] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile, and counts as its parent's
            continue
        own = int(stat.parent.name)
        children.setdefault(int(fields[1]), []).append(own)
        used[own] = sum(map(int, fields[11:15])) / _TICK
    found, tree = 0.0, [pid]
    while tree:
        member = tree.pop()
        found += used.get(member, 0.0)
        tree += children.get(member, [])
    return found


@dataclass
class Row:
    """One line of the table: what our side costs, as multiples of what the others cost in the same round."""

    what: str
    unit: str
    limits: Mapping[str, float]  #: subject → at most so many times as much as it
    figures: dict[str, list[float]] = field(default_factory=dict)  #: subject → one a round; ours is `OURS`
    digits: int = 1
    note: str = ""

    def add(self, subject: str, value: float) -> None:
        self.figures.setdefault(subject, []).append(value)

    def ratio(self, subject: str) -> list[float]:
        """Ours as a multiple of the subject's, round by round."""
        return [ours / theirs for ours, theirs in zip(self.figures[OURS], self.figures[subject], strict=True)]

    def reached(self, subject: str) -> bool:
        return median(self.ratio(subject)) <= self.limits[subject]


OURS: Final = "callsheet"


def spread(values: Sequence[float], digits: int = 2) -> str:
    """The median, with the least and the most."""
    return f"{median(values):.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def rotated(subjects: Iterable[str], number: int) -> list[str]:
    """Another one goes first in each round: what warms up or wears out meets all alike."""
    order = list(subjects)
    return order[number % len(order) :] + order[: number % len(order)]
