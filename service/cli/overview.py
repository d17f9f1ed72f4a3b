"""`callsheet overview`: whether everything is moving, in the terminal."""

from __future__ import annotations

from typing import Any

import click

from service.cli.client import Client
from service.cli.output import console, json_option, print_json, table
from service.model import Status


@click.command()
@click.option("--hours", type=click.IntRange(1, 168), default=24, show_default=True, help="How far verdicts go back.")
@json_option
def overview(as_json: bool, hours: int) -> None:
    """Jobs by vendor and status, vendors' health, queues, and how the last hours went."""
    told: dict[str, Any] = Client().get("/v1/overview", hours=hours)
    if as_json:
        return print_json(told)
    used = [status.value for status in Status if any(status in of for of in told["jobs"].values())]
    table(
        ("vendor", "health", "due", *used),
        [
            [vendor, "unwell" if now["unwell"] else "well", now["polls_due"]]
            + [told["jobs"].get(vendor, {}).get(status, 0) for status in used]
            for vendor, now in told["vendors"].items()
        ],
    )
    names = ("queue_depth", "tasks_running", "quarantine", "deliveries_waiting", "processes")
    standing = {name.removeprefix("callsheet_"): int(value) for name, value in sorted(told["now"].items())}
    console.print()
    table(("now", "number"), [(name, value) for name, value in standing.items() if name.startswith(names)])
    console.print()
    sums = {**told["verdicts"], **{f"told by {source}": values for source, values in told["by_source"].items()}}
    table((f"verdicts in {hours} h", "number"), [(name, int(sum(values))) for name, values in sums.items()])
    if told["lost_callbacks"] is not None:
        console.print(f"{told['lost_callbacks']:.1%} of the callbacks that should have come were lost", style="dim")
    return None
