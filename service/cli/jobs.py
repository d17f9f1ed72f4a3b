"""`callsheet jobs …` and `callsheet quarantine …`: what the API knows, in the terminal."""

from __future__ import annotations

import json
from typing import Any

import click
from redis import RedisError

from service.cli.client import Client, deployment_settings
from service.cli.output import coloured, console, json_option, print_json, table
from service.jobs.connection import connect_sync
from service.model import VERDICTS, Archive, Status
from service.vendors import VENDORS


@click.group()
def jobs() -> None:
    """List, show, watch, refresh and resolve jobs."""


@jobs.command("list")
@click.option("--vendor", type=click.Choice(sorted(VENDORS)))
@click.option("--status", type=click.Choice([status.value for status in Status]))
@click.option("--archive", type=click.Choice([archive.value for archive in Archive]))
@click.option("--vendor-job-id", help="The vendor's own id.")
@click.option("--id", help="Any id: ours, the vendor's, an event's, a delivery's, a quarantined callback's.")
@click.option("--limit", type=click.IntRange(1, 100), default=20, show_default=True)
@click.option("--cursor", help="Where the page before ended.")
@json_option
def list_jobs(as_json: bool, **filters: Any) -> None:
    """The newest jobs first."""
    page = Client().get("/v1/jobs", **filters)
    if as_json:
        return print_json(page)
    columns = ("job", "vendor", "vendor's id", "status", "archive", "created", "error")
    table(columns, [_row(job) for job in page["data"]])
    if page["next_cursor"]:
        console.print(f"more: --cursor {page['next_cursor']}", style="dim")
    return None


def _row(job: dict[str, Any]) -> list[object]:
    error = job["error"]["message"][:60] if job["error"] else ""
    return [*(job[name] for name in ("id", "vendor", "vendor_job_id", "status", "archive", "created_at")), error]


@jobs.command()
@click.argument("any_id")
@click.option("--raw", is_flag=True, help="What the vendor sent, too.")
@json_option
def show(any_id: str, raw: bool, as_json: bool) -> None:
    """One job, by any of its ids: its timeline, and who was told."""
    client = Client()
    found = client.get("/v1/jobs", id=any_id)["data"]
    if len(found) != 1:
        of = ", ".join(job["id"] for job in found)
        raise click.ClickException(f"{any_id} may be {of}" if of else f"there is no job {any_id!r}")
    [job] = found
    timeline, tries = (client.get(f"/v1/jobs/{job['id']}/{part}")["data"] for part in ("timeline", "deliveries"))
    if as_json:
        return print_json(job | {"timeline": timeline, "deliveries": tries})
    print_job(job)
    console.print()
    table(("at", "source", "says", "applied", "why"), map(entry_cells, timeline))
    for number, entry in enumerate(timeline, 1):
        if raw and entry.get("raw"):
            console.print(f"\n{number}: {entry['source']}, {entry['at']}", style="bold")
            click.echo(entry["raw"])
    if tries:
        console.print()
        names = ("at", "type", "number", "status", "outcome", "answer")
        table(names, [[one[name] for name in names] for one in tries])
    return None


def print_job(job: dict[str, Any]) -> None:
    rows = [(name, value if not isinstance(value, dict | list) else json.dumps(value)) for name, value in job.items()]
    table(("field", "value"), rows)


def entry_cells(entry: dict[str, Any]) -> list[str]:
    """When, by whom, what, whether it counted, and why."""
    says = entry["status"] or entry.get("archive") or entry.get("problem") or ""
    why = "; ".join(word for word in (entry["why"], entry.get("detail")) if word)
    return [entry["at"], entry["source"], says, "yes" if entry["applied"] else "no", why]


@jobs.command()
@click.argument("job_id")
@json_option
def refresh(job_id: str, as_json: bool) -> None:
    """Ask the vendor about a job now; store its outputs again where that had failed."""
    job = Client().call("POST", f"/v1/jobs/{job_id}/refresh")
    if as_json:
        print_json(job)
    else:
        console.print(f"{job_id}: the vendor is being asked")


@jobs.command()
@click.argument("job_id")
@click.option("--adopt", metavar="VENDOR_JOB_ID", help="The vendor has it, as this job of its own.")
@click.option("--resend", is_flag=True, help="The vendor has not taken it: send it again.")
@click.option("--fail", is_flag=True, help="The vendor has not taken it: give it up.")
@json_option
def resolve(job_id: str, adopt: str | None, resend: bool, fail: bool, as_json: bool) -> None:
    """Say what became of a job that was sent and not answered. A wrong word is paid for twice, or not at all."""
    if [adopt is not None, resend, fail].count(True) != 1:
        raise click.UsageError("say exactly one of --adopt, --resend and --fail")
    action = "resend" if resend else "fail" if fail else "adopt"
    said = {"action": action} | ({} if adopt is None else {"vendor_job_id": adopt})
    job = Client().call("POST", f"/v1/jobs/{job_id}/resolve", json=said)
    if as_json:
        print_json(job)
    else:
        console.print(f"{job_id} is {job['status']}")


@jobs.command()
@click.argument("job_id", required=False)
@json_option
def watch(job_id: str | None, as_json: bool) -> None:
    """Follow events as they are published, of one job until nothing more can come of it, or of all until Ctrl-C.

    Exit code 1 where the one job did not end well.
    """
    settings = deployment_settings()
    channel = f"{settings.key_prefix}:events" + (f":{job_id}" if job_id else "")
    with connect_sync(settings) as redis, redis.pubsub(ignore_subscribe_messages=True) as subscription:
        subscription.subscribe(channel)
        if job_id and (code := ended(Client().get(f"/v1/jobs/{job_id}"))) is not None:
            click.echo(f"{job_id} has ended already", err=True)
            raise SystemExit(code)
        click.echo(f"watching {job_id or 'every job'}", err=True)
        try:
            while True:
                message = subscription.get_message(timeout=1.0)
                if message is None:
                    continue
                event = json.loads(message["data"])
                print_event(event, as_json)
                if job_id and (code := ended(event["data"])) is not None:
                    raise SystemExit(code)
        except RedisError as error:
            raise click.ClickException(f"Redis does not answer: {error}") from None


def print_event(event: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(event, ensure_ascii=False))
        return
    about = event["data"]
    error = f"  {about['error']['message']}" if about.get("error") else ""
    where = about.get("vendor") or f"{about['url']}  {about['disabled_reason']}"
    line = f"{event['timestamp']}  {event['type']:<16} {about['id']}  {where}{error}"
    console.print(coloured(line), soft_wrap=True)


def ended(job: dict[str, Any]) -> int | None:
    """The exit code that a job's end means; None while something is still to come."""
    if job["status"] in (Status.PENDING, Status.UNCONFIRMED, Status.QUEUED, Status.PROCESSING):
        return None
    if job["status"] in VERDICTS and job["archive"] == Archive.WAITING:
        return None
    return 0 if job["status"] == Status.SUCCEEDED and job["archive"] != Archive.FAILED else 1


@click.group()
def quarantine() -> None:
    """Callbacks that could not be understood."""


@quarantine.command("list")
@click.option("--limit", type=click.IntRange(1, 100), default=20, show_default=True)
@click.option("--cursor", help="Where the page before ended.")
@json_option
def list_letters(limit: int, cursor: str | None, as_json: bool) -> None:
    """The newest first."""
    page = Client().get("/v1/quarantine", limit=limit, cursor=cursor)
    if as_json:
        return print_json(page)
    names = ("id", "vendor", "job_id", "problem", "count", "last_received_at", "detail")
    table(names, [[row[name] for name in names] for row in page["data"]])
    if page["next_cursor"]:
        console.print(f"more: --cursor {page['next_cursor']}", style="dim")
    return None


@quarantine.command("show")
@click.argument("letter_id")
@json_option
def show_letter(letter_id: str, as_json: bool) -> None:
    """One callback as it came."""
    letter = Client().get(f"/v1/quarantine/{letter_id}")
    if as_json:
        return print_json(letter)
    print_job({name: value for name, value in letter.items() if name != "raw"})
    click.echo()
    click.echo(letter["raw"])
    return None


@quarantine.command()
@click.argument("letter_id")
@json_option
def replay(letter_id: str, as_json: bool) -> None:
    """Read a callback again, with today's code."""
    answer = Client().call("POST", f"/v1/quarantine/{letter_id}/replay")
    if as_json:
        print_json(answer)
    else:
        console.print(f"{letter_id}: {answer['outcome']} {answer['job_id'] or ''}")
