"""`callsheet submit`: a job for any vendor, from the command line to the stored file."""

from __future__ import annotations

import json
import re
import time
from typing import IO, Any, Final

import click
import msgspec

from service.cli.client import Client
from service.cli.jobs import ended, entry_cells, print_job
from service.cli.output import json_option, price, print_json, since
from service.model import Problem, Status
from service.vendors import VENDORS

#: Seconds between two looks at the job.
EVERY: Final = 0.5

_UNCONFIRMED: Final = """\
          sent and not answered: nobody knows whether the vendor has it. A callback may still tell; or find out, and say
          callsheet jobs resolve {} --adopt VENDOR_JOB_ID | --resend | --fail"""
_FIELD: Final = re.compile(r"(?:(input|vendor_input)\.)?(\w+)(:?)=(.*)", re.DOTALL)


@click.command()
@click.argument("vendor", required=False, type=click.Choice(sorted(VENDORS)))
@click.argument("fields", nargs=-1, metavar="[NAME=TEXT | NAME:=JSON]...")
@click.option("--model", help="One of the vendor's; by default the first that takes this input.")
@click.option("--metadata", metavar="JSON", help="An object of your own, kept with the job.")
@click.option(
    "--file", type=click.File("rb"), help="The whole request as JSON; - is stdin. What else is said replaces it."
)
@click.option("--idempotency-key", metavar="KEY", help="Saying the same again with it makes no second job.")
@click.option("--no-wait", is_flag=True, help="End as soon as the job is accepted.")
@json_option
def submit(
    vendor: str | None,
    fields: tuple[str, ...],
    model: str | None,
    metadata: str | None,
    file: IO[bytes] | None,
    idempotency_key: str | None,
    no_wait: bool,
    as_json: bool,
) -> None:
    """Submit a job to a vendor, and wait until what it makes is stored.

    Fields of the input are NAME=TEXT or NAME:=JSON; what only this vendor has is vendor_input.NAME. 'callsheet vendors'
    says what there is. Exit code 0 only if the job succeeded and everything that it made is stored.
    """
    request = {"input": {}} | (_json(file.read(), "--file") if file else {})
    own = None if metadata is None else _json(metadata, "--metadata")
    said = {"vendor": vendor, "model": model, "metadata": own}
    request |= {name: value for name, value in said.items() if value is not None}
    for field in fields:
        _put(request, field)
    client = Client()
    headers = {} if idempotency_key is None else {"Idempotency-Key": idempotency_key.encode()}
    job = client.call("POST", "/v1/jobs", json=request, headers=headers)
    job.pop("callback_url", None)  # the vendor's alone
    job = job if no_wait else _followed(client, job)
    if as_json:
        print_json(job)
    elif no_wait:
        print_job(job)
    else:
        _print_end(job)
    raise SystemExit(0 if no_wait else ended(job))


def _json(text: str | bytes, where: str, type_: Any = dict[str, Any]) -> Any:
    try:
        return msgspec.json.decode(text, type=type_)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise click.BadParameter(str(error), param_hint=where) from None


def _put(request: dict[str, Any], field: str) -> None:
    found = _FIELD.fullmatch(field)
    if found is None:
        raise click.UsageError(f"{field!r} is neither NAME=TEXT nor NAME:=JSON")
    part, name, is_json, value = found.groups()
    fields = request.setdefault(part or "input", {})
    if not isinstance(fields, dict):
        raise click.UsageError(f"{part or 'input'} in the file is not an object")
    fields[name] = _json(value, name, Any) if is_json else value


def _followed(client: Client, job: dict[str, Any]) -> dict[str, Any]:
    """The job at its end. Until then every fact about it is told as it comes, on stderr."""
    id_, told = job["id"], set[str]()

    def tell(words: str) -> None:
        if words not in told:
            told.add(words)
            click.echo(words, err=True)

    tell(f"{id_}: {job['vendor']}, {job['model']}")
    try:
        while True:
            job, timeline = client.get(f"/v1/jobs/{id_}"), client.get(f"/v1/jobs/{id_}/timeline")["data"]
            for entry in timeline:
                at, source, says, _, why = entry_cells(entry)
                tell(f"{since(job, at):6.1f} s  {source:<9} {says:<12} {why}".rstrip())
            if at := job["scheduled_at"]:
                tell(f"{'':10}to be sent at about {since(job, at):.0f} s ({at})")
            if job["status"] == Status.UNCONFIRMED and any(e.get("problem") == Problem.NO_ANSWER for e in timeline):
                tell(_UNCONFIRMED.format(id_))
            if ended(job) is not None:
                return job
            time.sleep(EVERY)
    except (KeyboardInterrupt, click.ClickException):
        click.echo(f"\n{id_} goes on without you; to go on watching: callsheet jobs watch {id_}", err=True)
        raise


def _print_end(job: dict[str, Any]) -> None:
    error = job["error"]
    click.echo(f"{job['status']}: {error['code']}: {error['message']}" if error else job["status"])
    for output in job["outputs"]:
        stored = output["stored"]
        click.echo(f"{stored['url']}  {stored['bytes']:,} bytes" if stored else f"not stored: {output['url']}")
    if job["result"] and not job["outputs"]:
        click.echo(json.dumps(job["result"], ensure_ascii=False))
    click.echo(f"estimated / charged: {price(job['cost'])}")
