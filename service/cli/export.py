"""`callsheet export`: jobs and their timelines as JSON lines, to be kept elsewhere for longer than here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import IO, Any

import click

from service.cli.client import Client


@click.command()
@click.option("--since", type=click.DateTime(["%Y-%m-%d"]), help="Jobs made on this day (UTC) or later.")
@click.option("--until", type=click.DateTime(["%Y-%m-%d"]), help="Jobs made before this day.")
@click.option("--vendor", help="Of one vendor.")
@click.option("--output", type=click.File("w", encoding="utf-8"), default="-", help="A file; the terminal without.")
def export(since: Any, until: Any, vendor: str | None, output: IO[str]) -> None:
    """Write every job, newest first, each with its timeline, as one line of JSON.

    Jobs that have ended are forgotten after JOB_RETENTION_DAYS; what vendors sent, after RAW_RETENTION_DAYS.
    """
    client, written = Client(), 0
    for job in _jobs(client, vendor):
        day = job["created_at"][:10]
        if since and day < since.date().isoformat():
            break
        if until and day >= until.date().isoformat():
            continue
        timeline = client.get(f"/v1/jobs/{job['id']}/timeline")["data"]
        output.write(json.dumps({"job": job, "timeline": timeline}, ensure_ascii=False) + "\n")
        written += 1
        if written % 100 == 0:
            click.echo(f"{written} jobs, back to {job['created_at']}", err=True)
    click.echo(f"{written} jobs written", err=True)


def _jobs(client: Client, vendor: str | None) -> Iterator[dict[str, Any]]:
    cursor = None
    while True:
        page = client.get("/v1/jobs", vendor=vendor, limit=100, cursor=cursor)
        yield from page["data"]
        cursor = page["next_cursor"]
        if cursor is None:
            return
