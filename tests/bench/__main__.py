"""`python -m tests.bench [row…]`: measure, print the table, write it to var/bench.json."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import click
from rich.console import Console

from tests.support.processes import ROOT

from . import files, growth, ingest, others, pages, polls, report, tasks
from .measure import CLIENT_CORE, Row, pin


@dataclass(frozen=True)
class Run:
    """How much of everything."""

    folder: Path
    quick: bool
    peers: bool
    million: bool

    @property
    def rounds(self) -> int:
        return 3 if self.quick else 5

    def of(self, full: int, quick: int) -> int:
        return quick if self.quick else full


def _callbacks(run: Run) -> Iterator[Row]:
    subjects = list(ingest.FLOORS.values())
    if run.peers:
        others.install()
        subjects += others.SERVERS
    with ingest.stand(run.folder / "callbacks", subjects) as at:
        yield ingest.cpu_row(at, 64, run.of(8000, 3000), run.rounds)
        yield ingest.cpu_row(at, 1, run.of(2000, 800), run.rounds)


def _ack(run: Run) -> Iterator[Row]:
    for fsync, limit in (("everysec", 1.4), ("always", 3.0)):
        with ingest.stand(run.folder / fsync, [ingest.FLOORS["bare uvicorn"]], fsync) as at:
            yield ingest.ack_row(at, fsync, limit, run.of(5000, 2000), run.rounds)


def _tasks(run: Run) -> Iterator[Row]:
    yield tasks.row(run.folder / "tasks", run.of(4000, 2000), run.rounds)


def _files(run: Run) -> Iterator[Row]:
    yield from files.cpu_rows(run.folder / "cpu", run.of(files.GIB, files.GIB // 4), 3)


def _memory(run: Run) -> Iterator[Row]:
    yield from files.slow_rows(run.folder / "slow", 64, 2**24, 10.0)
    yield files.large_row(run.folder / "large", run.of(4, 1) * files.GIB)


def _polls(run: Run) -> Iterator[Row]:
    yield polls.cpu_row(run.folder / "polls", run.of(2000, 800), run.rounds)
    yield polls.list_row(run.folder / "list")


def _growth(run: Run) -> Iterator[Row]:
    most = 10**6 if run.million else run.of(10**5, 2 * 10**4)
    yield from growth.rows(run.folder / "growth", 10**4, most, run.rounds)


def _pages(run: Run) -> Iterator[Row]:
    yield from pages.rows(run.folder / "pages", 10**3, run.of(10**5, 10**4))


ROWS: Final[dict[str, Callable[[Run], Iterator[Row]]]] = {
    "callbacks": _callbacks,
    "ack": _ack,
    "tasks": _tasks,
    "files": _files,
    "memory": _memory,
    "polls": _polls,
    "growth": _growth,
    "pages": _pages,
}


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(ROWS)))
@click.option("--quick", is_flag=True, help="Fewer rounds and smaller ones, for a look.")
@click.option(
    "--peers", "with_peers", is_flag=True, help="Callbacks beside other stacks too; they are installed first."
)
@click.option("--million", is_flag=True, help="Let the store grow to 10^6 jobs; takes some ten minutes more.")
def main(names: tuple[str, ...], quick: bool, with_peers: bool, million: bool) -> None:
    """What the product costs, as multiples of what others cost in the same run."""
    pin(os.getpid(), CLIENT_CORE)  # and whatever it starts, where it does not say otherwise
    console, rows = Console(width=None if sys.stdout.isatty() else 170, highlight=False), list[Row]()
    with TemporaryDirectory(prefix="callsheet-bench-") as folder:
        run = Run(Path(folder), quick, with_peers, million)
        for name in names or ROWS:
            with console.status(name):
                for row in ROWS[name](run):
                    rows.append(row)
                    console.print(f"{name}: {row.what}")
    console.print(report.table(rows))
    report.save(rows, ROOT / "var" / "bench.json")


if __name__ == "__main__":
    main()
