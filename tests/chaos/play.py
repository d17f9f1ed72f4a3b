"""Plays scenarios to their end: the faults, then time for everything to come right, then the reckoning."""

from __future__ import annotations

import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import msgspec

from tests.chaos.audit import Books, Row, common_findings
from tests.chaos.bucket import unfinished
from tests.chaos.cast import Cast, Scenario, Tell
from tests.chaos.stage import Stage

#: Seconds that a callback is waited for, in the long form and in the short one.
LONG_GRACE: Final = 8.0
SHORT_GRACE: Final = 1.0


class Show:
    """Plays scenarios; while one waits for everything to come right, the next may begin."""

    def __init__(
        self, *, seed: int, scale: float = 1.0, hasty: bool | None = None, without: str = "", tell: Tell
    ) -> None:
        self._seed = seed
        self._scale = scale
        self._hasty = scale < 1 if hasty is None else hasty
        self._without = without
        self._tell = tell
        self._turn = threading.Lock()
        self._stop = threading.Event()

    def stop(self) -> None:
        """End what is being played."""
        self._stop.set()

    def play(self, scenario: Scenario) -> list[Row]:
        """One scenario, a row for each group of its jobs.

        Raises:
            NotPlayed: What it takes is not there.
            Stopped: `stop` was called.
        """
        with tempfile.TemporaryDirectory(prefix=f"callsheet-{scenario.name}-") as folder, ExitStack() as stack:
            with self._turn:
                began = time.monotonic()
                grace = SHORT_GRACE if self._hasty else LONG_GRACE
                made = Stage(Path(folder), scenario.plan, seed=self._seed, without=self._without, grace=grace)
                stage = stack.enter_context(made)
                played = Cast(stage, scenario, self._scale, self._tell, self._stop, hasty=self._hasty)
                cast = stack.enter_context(played)
                scenario.play(cast)
                cast.acknowledged()
            cast.settle()
            rows = _reckoned(cast, scenario)
        for row in rows:
            row.seconds, row.without = round(time.monotonic() - began, 1), self._without
        return rows


def _reckoned(cast: Cast, scenario: Scenario) -> list[Row]:
    stage, books = cast.stage, Books(cast.stage)
    for look in cast.looks:
        look(cast)
    figures = {
        "restarts": stage.restarts,
        "answers": dict(stage.ledger.answers),
        "callbacks": dict(books.callbacks()),
        **cast.figures,
        "uploads left behind": len(unfinished(stage.s3)),
        "webhooks not taken": sum(log.count('"outcome":"again"') for log in stage.logs().values()),
        "errors logged": _errors(stage),
    }
    groups = sorted({entry.order.group for entry in stage.ledger.entries.values()})
    rows = [books.row(scenario.name, group, cast.over_at) for group in groups]
    for row in rows:
        row.figures = figures
        row.findings += [*common_findings(books, hasty=cast.hasty), *cast.findings]
        if scenario.fetch_once and row.fetched_again:
            row.findings.append(f"{row.fetched_again} files were fetched again, for nothing")
    return rows


def _errors(stage: Stage) -> dict[str, int]:
    """The lines at level `error`, and tracebacks outside of any line, by what they say."""
    found: dict[str, int] = {}
    for name, log in stage.logs().items():
        for line in log.splitlines():
            if '"level":"error"' in line:
                what = f"{name.partition('-')[0]}: {msgspec.json.decode(line).get('event')}"
            elif line.startswith("Traceback"):
                what = f"{name.partition('-')[0]}: a bare traceback"
            else:
                continue
            found[what] = found.get(what, 0) + 1
    return found
