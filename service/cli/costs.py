"""`callsheet costs`: what jobs were estimated at, and what vendors charged."""

from __future__ import annotations

from typing import Any

import click

from service.cli.client import Client
from service.cli.output import amount, console, json_option, print_json, table


@click.command()
@click.option("--group", metavar="NAMES", help="Of vendor,model,day; by default all three.")
@click.option("--since", metavar="DAY", help="The first day (UTC) on which jobs were made: 2026-07-01.")
@click.option("--until", metavar="DAY", help="The last.")
@json_option
def costs(as_json: bool, **query: str | None) -> None:
    """Sums in each vendor's own unit, of the jobs that vendors have taken; 'unknown' have no price."""
    answer = Client().get("/v1/costs", **query)
    if as_json:
        return print_json(answer)
    rows: list[dict[str, Any]] = answer["data"]
    if not rows:
        return console.print("no vendor has taken a job then")
    return table(rows[0], [[amount(v) if isinstance(v, int | float) else v for v in row.values()] for row in rows])
