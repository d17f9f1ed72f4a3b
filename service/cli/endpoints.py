"""`callsheet endpoints …` and `callsheet deliveries …`: outbound webhooks in the terminal."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

import click

from service.cli.client import Client
from service.cli.output import console, json_option, print_json, table
from service.jobs.endpoints import EVENT_TYPES, TEST
from service.model import OUTCOMES
from service.vendors import VENDORS

C = TypeVar("C", bound=Callable[..., Any])


@click.group()
def endpoints() -> None:
    """Where events are sent to: URLs of yours, called with signed webhooks."""


def _filters(command: C) -> C:
    """What an endpoint hears of; nothing said is everything."""
    metadata = "Only jobs whose metadata has all of this JSON object."
    for option in (
        click.option("--metadata", type=json.loads, metavar="JSON", help=metadata),
        click.option(
            "--vendor", "vendors", multiple=True, type=click.Choice(sorted(VENDORS)), help="Only this vendor's."
        ),
        click.option(
            "--type", "types", multiple=True, type=click.Choice(EVENT_TYPES), help="Only events of this type."
        ),
    ):
        command = option(command)
    return command


@endpoints.command("list")
@json_option
def list_endpoints(as_json: bool) -> None:
    """All of them, and how much waits for each."""
    page = Client().get("/v1/endpoints")
    if as_json:
        return print_json(page)
    names = ("id", "url", "types", "vendors", "metadata", "enabled", "waiting", "failing_since")
    table(names, [[row[name] if row[name] not in ([], {}) else "all" for name in names] for row in page["data"]])
    return None


@endpoints.command()
@click.argument("url")
@_filters
@json_option
def add(url: str, as_json: bool, **filters: Any) -> None:
    """Send events to URL from now on. Its secret is shown here, once."""
    made = Client().call("POST", "/v1/endpoints", json={"url": url, **_given(filters)})
    if as_json:
        return print_json(made)
    click.echo(f"{made['id']}\nits secret, which verifies what comes:\n  {made['secret']}")
    return None


def _given(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value not in (None, ())}


@endpoints.command()
@click.argument("endpoint_id")
@json_option
def show(endpoint_id: str, as_json: bool) -> None:
    """One endpoint."""
    print_fields(as_json, Client().get(f"/v1/endpoints/{endpoint_id}"))


def print_fields(as_json: bool, answer: dict[str, Any]) -> None:
    if as_json:
        print_json(answer)
    else:
        table(("field", "value"), [(name, json.dumps(value)) for name, value in answer.items()])


@endpoints.command()
@click.argument("endpoint_id")
@click.option("--url")
@_filters
@click.option("--everything", is_flag=True, help="Drop its filters first.")
@click.option(
    "--enable/--disable", "enabled", default=None, help="What waits is dropped; 'replay' sends what was missed."
)
@json_option
def change(endpoint_id: str, everything: bool, as_json: bool, **fields: Any) -> None:
    """Change what is said, and leave the rest."""
    dropped: dict[str, Any] = {"types": [], "vendors": [], "metadata": {}} if everything else {}
    print_json_or(
        as_json, Client().call("PATCH", f"/v1/endpoints/{endpoint_id}", json=dropped | _given(fields)), "changed"
    )


def print_json_or(as_json: bool, answer: object, words: str) -> None:
    if as_json:
        print_json(answer)
    else:
        console.print(words)


@endpoints.command()
@click.argument("endpoint_id")
def remove(endpoint_id: str) -> None:
    """Send nothing there any more, and forget what waits."""
    Client().call("DELETE", f"/v1/endpoints/{endpoint_id}")
    console.print("removed")


@endpoints.command()
@click.argument("endpoint_id")
@json_option
def test(endpoint_id: str, as_json: bool) -> None:
    """Send an event that says nothing."""
    answer = Client().call("POST", f"/v1/endpoints/{endpoint_id}/test")
    print_json_or(as_json, answer, f"sent; callsheet deliveries list {endpoint_id} tells what came of it")


@endpoints.command("replay")
@click.argument("endpoint_id")
@click.option("--since", required=True, help="A moment, as 2026-07-01T08:00:00Z.")
@json_option
def replay_endpoint(endpoint_id: str, since: str, as_json: bool) -> None:
    """Send every event since a moment again that its filters let through."""
    answer = Client().call("POST", f"/v1/endpoints/{endpoint_id}/replay", json={"since": since})
    lost = "" if answer["complete"] else "; the stream no longer goes back so far"
    print_json_or(as_json, answer, f"{answer['events']} events are sent{lost}")


@endpoints.command()
@click.argument("endpoint_id")
@json_option
def rotate(endpoint_id: str, as_json: bool) -> None:
    """Make a new secret, shown here once. For a day the one before signs beside it."""
    answer = Client().call("POST", f"/v1/endpoints/{endpoint_id}/secret")
    print_json_or(as_json, answer, str(answer["secret"]))


@click.group()
def deliveries() -> None:
    """What was sent, what came back, and sending it again."""


@deliveries.command("list")
@click.argument("endpoint_id")
@click.option("--limit", type=click.IntRange(1, 100), default=20, show_default=True)
@click.option("--cursor", help="Where the page before ended.")
@click.option("--outcome", type=click.Choice(OUTCOMES))
@click.option("--type", type=click.Choice([*EVENT_TYPES, TEST]))
@click.option("--job-id")
@json_option
def list_deliveries(endpoint_id: str, as_json: bool, **wanted: Any) -> None:
    """The latest tries at an endpoint, newest first."""
    page = Client().get(f"/v1/endpoints/{endpoint_id}/deliveries", **wanted)
    if as_json:
        return print_json(page)
    names = ("at", "delivery_id", "number", "status", "ms", "outcome", "answer")
    table(names, [[row[name] for name in names] for row in page["data"]])
    if page["next_cursor"]:
        console.print(f"more: --cursor {page['next_cursor']}", style="dim")
    return None


@deliveries.command("show")
@click.argument("delivery_id")
@json_option
def show_delivery(delivery_id: str, as_json: bool) -> None:
    """One event to one endpoint, and what has come of it."""
    print_fields(as_json, Client().get(f"/v1/deliveries/{delivery_id}"))


@deliveries.command()
@click.argument("delivery_id")
@json_option
def replay(delivery_id: str, as_json: bool) -> None:
    """Send one event again."""
    print_json_or(as_json, Client().call("POST", f"/v1/deliveries/{delivery_id}/replay"), "sent")
