"""`callsheet audit`: what operators did."""

from __future__ import annotations

import click

from service.cli.client import Client
from service.cli.output import console, json_option, print_json, table


@click.command()
@click.option("--limit", type=click.IntRange(1, 100), default=20, show_default=True)
@click.option("--cursor", help="Where the page before ended.")
@json_option
def audit(limit: int, cursor: str | None, as_json: bool) -> None:
    """Who did what to which job, endpoint or quarantined callback, newest first."""
    page = Client().get("/v1/audit", limit=limit, cursor=cursor)
    if as_json:
        return print_json(page)
    names = ("at", "who", "action", "subject", "result")
    table(names, [[row[name] for name in names] for row in page["data"]])
    if page["next_cursor"]:
        console.print(f"more: --cursor {page['next_cursor']}", style="dim")
    return None
