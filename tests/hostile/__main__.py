"""`python -m tests.hostile [scenario …]`: plays the scenarios, and tells what came of each in a table.

Ends with 1 where anything got in, broke, or was told to somebody whom it does not concern.
"""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from rich.console import Console
from rich.table import Table

from tests.hostile import bombs, crowds, described, forgeries, garbage, leaks, links
from tests.hostile.stage import SEED, Result, Scenario, Stage

SCENARIOS: Final[Mapping[str, Scenario]] = {
    "garbage": garbage.run,
    "described": described.run,
    "crowds": crowds.run,
    "links": links.run,
    "bombs": bombs.run,
    "forgeries": forgeries.run,
    "leaks": leaks.run,
}


def main(names: list[str]) -> int:
    console, began = Console(highlight=False), time.monotonic()
    if not console.is_terminal:
        console.width = 120
    unknown = set(names) - SCENARIOS.keys()
    if unknown:
        console.print(f"no such scenario: {', '.join(sorted(unknown))}; there are {', '.join(SCENARIOS)}")
        return 2
    table = Table(title=f"Hostile input, seed {SEED}", show_lines=True, title_justify="left")
    for column in ("scenario", "figures", "verdict", "s"):
        table.add_column(column, justify="right" if column == "s" else "left", no_wrap=column != "figures")
    faults: list[str] = []
    for name in names or SCENARIOS:
        started = time.monotonic()

        def say(words: str, name: str = name) -> None:
            console.print(f"[dim]{time.monotonic() - began:5.0f} s[/dim]  {name}: {words}", soft_wrap=True)

        result = _played(SCENARIOS[name], say)
        verdict = "[red]BAD[/red]" if result.faults else "[green]good[/green]"
        table.add_row(name, "\n".join(result.figures), verdict, f"{time.monotonic() - started:.0f}")
        faults += [f"{name}: {fault}" for fault in result.faults]
    console.print(table)
    for fault in faults:
        console.print(f"[red]BAD[/red] {fault}", markup=True, soft_wrap=True)
    console.print(f"{'BAD' if faults else 'good'} after {time.monotonic() - began:.0f} s")
    return 1 if faults else 0


def _played(scenario: Scenario, say: Callable[[str], None]) -> Result:
    """What came of it; a scenario that breaks is a bad one."""
    with TemporaryDirectory(prefix="callsheet-hostile-") as folder:
        try:
            return scenario(Stage(Path(folder), short=False, say=say))
        except Exception as error:
            traceback.print_exc()
            return Result(["it broke off"], [f"{type(error).__name__}: {str(error)[:500]}"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
