"""`callsheet`: the terminal. It talks to the API and to Redis, and starts processes by their Procfile lines."""

from __future__ import annotations

import asyncio
import getpass
import os
import subprocess
import sys
from pathlib import Path

import click
from click.shell_completion import get_completion_class
from redis import RedisError

from service.cli.audit import audit
from service.cli.client import Where, deployment_settings
from service.cli.costs import costs
from service.cli.demo import demo
from service.cli.doctor import doctor
from service.cli.endpoints import deliveries, endpoints
from service.cli.events import events
from service.cli.export import export
from service.cli.jobs import jobs, quarantine
from service.cli.keys import keys
from service.cli.local import default_data_folder
from service.cli.overview import overview
from service.cli.size import size
from service.cli.submit import submit
from service.cli.up import up
from service.cli.vendors import vendors
from service.deployment import opened
from service.jobs.audit import write
from service.jobs.tokens import Tokens
from service.settings import Settings
from service.vendors import VENDORS


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="callsheet")
@click.option("--url", envvar="CALLSHEET_URL", show_envvar=True, help="The deployment's address.")
@click.option("--api-key", envvar="CALLSHEET_API_KEY", show_envvar=True, help="One of its API keys.")
@click.option(
    "--data",
    envvar="CALLSHEET_DATA",
    show_envvar=True,
    type=click.Path(file_okay=False, path_type=Path),
    default=default_data_folder,
    help="Where 'callsheet up' keeps its data; by default var/ of the checkout, else of this folder.",
)
@click.pass_context
def main(context: click.Context, url: str | None, api_key: str | None, data: Path) -> None:
    """Callsheet accounts for every callback of your AI-media vendors."""
    context.obj = Where(url=url, api_key=api_key, data=data)


@main.command("callback-url")
@click.argument("vendor", type=click.Choice(sorted(VENDORS)))
def callback_url(vendor: str) -> None:
    """Print a vendor's shared callback URL, to paste into its dashboard. It is a secret.

    Verdicts that come by it count once the vendor, asked, confirms them. A job that is registered here has a URL of its
    own, which counts at once: prefer that one where the vendor takes a URL with each request.
    """
    settings = deployment_settings()
    try:
        asyncio.run(_revealed(settings, vendor))
    except (RedisError, OSError) as error:
        click.echo(f"not in the audit log, as Redis cannot be written: {type(error).__name__}", err=True)
    click.echo(Tokens(settings.secret_keys, settings.public_url).url(vendor))


async def _revealed(settings: Settings, vendor: str) -> None:
    async with opened(settings, "terminal") as deployment:
        await write(deployment.store, f"terminal:{getpass.getuser()}", "vendors.reveal", vendor, "200")


@main.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print what lets a shell complete commands: eval "$(callsheet completion bash)"."""
    complete = get_completion_class(shell)
    assert complete  # noqa: S101  click has all three
    click.echo(complete(main, {}, "callsheet", "_CALLSHEET_COMPLETE").source())


@main.command(context_settings={"ignore_unknown_options": True}, add_help_option=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def sandbox(arguments: tuple[str, ...]) -> None:
    """Play all vendors on loopback: sandbox --port N. See sandbox --help."""
    if os.name == "posix":
        os.execv(sys.executable, [sys.executable, "-m", "sandbox", *arguments])  # noqa: S606  it becomes the sandbox
    raise SystemExit(subprocess.call([sys.executable, "-m", "sandbox", *arguments]))


for command in (
    up,
    demo,
    doctor,
    overview,
    submit,
    jobs,
    quarantine,
    costs,
    vendors,
    keys,
    export,
    size,
    events,
    endpoints,
    deliveries,
    audit,
):
    main.add_command(command)
