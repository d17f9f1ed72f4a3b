"""`callsheet events …`: the stream of events in the terminal, by Server-Sent Events."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator

import click
import httpx

from service.cli.client import Client
from service.cli.jobs import print_event
from service.cli.output import json_option
from service.jobs.endpoints import DISABLED, EVENT_TYPES
from service.vendors import VENDORS


@click.group()
def events() -> None:
    """Follow events as they happen."""


@events.command()
@click.option("--after", metavar="POSITION", help="From behind this position on; 0 is the beginning.")
@click.option("--type", type=click.Choice([*EVENT_TYPES, DISABLED]), multiple=True)
@click.option("--vendor", type=click.Choice(sorted(VENDORS)), multiple=True)
@click.option("--job-id", multiple=True)
@json_option
def tail(after: str | None, as_json: bool, **wanted: tuple[str, ...]) -> None:
    """Print events until Ctrl-C, and where to go on: nothing is lost while the connection is."""
    client = Client()
    try:
        while True:
            try:
                with client.stream("/v1/events", after=after, **wanted) as lines:
                    for position, event in told(lines):
                        after = position
                        if event:
                            print_event(json.loads(event), as_json)
            except httpx.TransportError as error:
                click.echo(f"connecting again: {error}", err=True)
            time.sleep(1)
    finally:
        if after:
            click.echo(f"to go on: --after {after}", err=True)


def told(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """The positions that a stream of Server-Sent Events tells, each with its event's JSON, or '' for a sign of life."""
    fields: dict[str, str] = {}
    for line in lines:
        if line:
            name, _, text = line.partition(": ")
            fields[name] = text
        elif "id" in fields:
            yield fields["id"], fields.get("data", "")
            fields = {}
