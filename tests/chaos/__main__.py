"""`python -m tests.chaos [scenario…]`: play them, print a row for each group of jobs, exit 1 where one is bad.

With `--prove` one safeguard at a time is missing, and it exits 1 where no row is bad.
"""

from __future__ import annotations

import json
import signal
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import click
import msgspec
from rich.console import Console
from rich.table import Table

from tests.chaos.audit import BOUND, Row
from tests.chaos.play import Show
from tests.chaos.scenarios import SCENARIOS
from tests.chaos.store import NotPlayed
from tests.support.processes import ROOT

SEED: Final = 20260701
#: Scenarios at once: one hurts, the others wait for everything to come right.
AT_ONCE: Final = 3
#: Safeguard → the scenario that misses it, how many of that one's jobs it takes, and whether clocks may be pushed.
PROOFS: Final = {
    "sweeper": ("hints", 0.4, True),
    "lease": ("hints", 0.4, True),
    "atomic": ("kills", 0.2, True),
    "worker": ("shutdown", 0.05, False),
}
_EVERY: Final = 10.0  #: seconds between lines of progress where there is no terminal to rewrite one on


class Screen:
    """Shows how far it has come, in one line that changes or in one now and then."""

    def __init__(self) -> None:
        self.console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
        self._status = self.console.status("") if self.console.is_terminal else None
        self._said_at: dict[str, float] = {}  #: by scenario
        self._words: dict[str, str] = {}  #: the last of each scenario
        if self._status:
            self._status.start()

    def tell(self, words: str) -> None:
        name = words.partition(":")[0]
        if self._status:
            self._words = {name: words, **{other: said for other, said in self._words.items() if other != name}}
            self._status.update(" · ".join(list(self._words.values())[:AT_ONCE]))
        elif time.monotonic() - self._said_at.get(name, 0.0) > _EVERY:
            self._said_at[name] = time.monotonic()
            print(words, flush=True)

    def close(self) -> None:
        if self._status:
            self._status.stop()


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(SCENARIOS)))
@click.option("--seed", default=SEED, show_default=True)
@click.option("--scale", default=1.0, show_default=True, help="How many of the jobs; less than 1 is hasty about time.")
@click.option("--without", type=click.Choice(list(PROOFS)), help="Remove a safeguard.")
@click.option("--prove", is_flag=True, help="Remove one safeguard after the other, and show what catches it.")
@click.option("--json", "path", type=click.Path(path_type=Path), default=ROOT / "var" / "chaos.json", show_default=True)
def main(names: tuple[str, ...], seed: int, scale: float, without: str | None, prove: bool, path: Path) -> None:
    """Play scenarios (all of them without names) and print what became of their jobs."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    screen, began = Screen(), time.monotonic()
    if prove:
        pairs = [
            (name, Show(seed=seed, scale=share, hasty=hasty, without=lack, tell=screen.tell))
            for lack, (name, share, hasty) in PROOFS.items()
        ]
    else:
        show = Show(seed=seed, scale=scale, without=without or "", tell=screen.tell)
        pairs = [(name, show) for name in names or SCENARIOS]
    try:
        rows = _played(pairs)
    finally:
        screen.close()
    seconds = round(time.monotonic() - began)
    path.parent.mkdir(parents=True, exist_ok=True)
    told = {"seed": seed, "seconds": seconds, "bound": BOUND, "rows": msgspec.to_builtins(rows)}
    path.write_text(json.dumps(told, indent=1))
    _print(screen.console, rows)
    good, verdict = _proof(rows) if prove else _verdict(rows)
    screen.console.print(f"{verdict}. It took {seconds} s; everything is in {path}.", soft_wrap=True)
    sys.exit(not good)


def _verdict(rows: list[Row]) -> tuple[bool, str]:
    if not rows:
        return False, "Nothing was played"
    jobs, bad = sum(row.jobs for row in rows), sum(not row.good for row in rows)
    if bad:
        return False, f"{jobs:,} jobs: {bad} of {len(rows)} rows are bad"
    slowest = max((row.recovery[-1] for row in rows if row.recovery), default=0.0)
    words = f"the slowest went on after {slowest:.0f} s, {BOUND:.0f} are promised"
    return True, f"{jobs:,} jobs: nothing is lost, nothing was done twice; {words}"


def _proof(rows: list[Row]) -> tuple[bool, str]:
    caught = {row.without for row in rows if row.lost or row.findings}
    missed = ", ".join(sorted(PROOFS.keys() - caught))
    return not missed, f"Nobody misses: {missed}" if missed else f"Each is missed: {', '.join(PROOFS)}"


def _played(pairs: list[tuple[str, Show]]) -> list[Row]:
    """The rows of scenarios, in this order."""
    rows: list[Row] = []
    with ThreadPoolExecutor(AT_ONCE) as threads:
        playing = [(name, threads.submit(show.play, SCENARIOS[name])) for name, show in pairs]
        try:
            for name, played in playing:
                try:
                    rows += (some := played.result())
                    print(f"{name}: {'; '.join(word for row in some for word in row.findings) or 'good'}", flush=True)
                except NotPlayed as why:
                    print(f"{name} is not played: {why}")
                except Exception as error:  # the others are played all the same
                    traceback.print_exception(error)
                    rows.append(Row(scenario=name, findings=[f"it could not be played to its end: {error!r}"]))
        except BaseException:
            for _, show in pairs:
                show.stop()
            threads.shutdown(wait=True, cancel_futures=True)
            raise
    return rows


def _print(console: Console, rows: list[Row]) -> None:
    console.print(_table(rows))
    for name, figures in {row.name: row.figures for row in rows}.items():
        words = "; ".join(f"{what}: {_words(figure)}" for what, figure in figures.items() if figure)
        console.print(f"{name}: {words}", soft_wrap=True, markup=False)
    for row in rows:
        for finding in row.findings:
            console.print(f"{row.name}, {row.group}: {finding}", soft_wrap=True, markup=False)


def _words(figure: object) -> str:
    return ", ".join(f"{value} × {name}" for name, value in figure.items()) if isinstance(figure, dict) else str(figure)


def _cells(row: Row) -> list[str]:
    twice = f"{row.objects_twice} / {sum(row.events_twice.values())} / {row.paid_twice}"
    recovery = " / ".join(f"{seconds:.1f}" for seconds in row.recovery) if row.recovery else "–"
    counts = [f"{number:,}" for number in (row.jobs, row.acknowledged, row.truth, row.lost)]
    again = [str(row.delivered_again), str(row.operated)]
    return [row.name, row.group, *counts, twice, *again, recovery, "good" if row.good else "BAD"]


def _table(rows: list[Row]) -> Table:
    table = Table(box=None, header_style="bold")
    for name in ("scenario", "jobs with"):
        table.add_column(name, no_wrap=name == "scenario")
    for name in ("jobs", "acked", "truth", "lost", "twice: objects / events / paid", "webhooks again", "operator"):
        table.add_column(name, justify="right")
    table.add_column(f"recovery s: median / p99 / max (of {BOUND:.0f})", justify="right")
    table.add_column("verdict")
    for row in rows:
        table.add_row(*_cells(row), style="" if row.good else "bold red")
    return table


if __name__ == "__main__":
    main()
