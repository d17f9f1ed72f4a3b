"""`callsheet keys`: new keys, and how to replace the ones in use without losing a callback."""

from __future__ import annotations

import hashlib
import secrets
from datetime import timedelta

import click

from service.cli.client import deployment_settings
from service.cli.output import json_option, print_json
from service.settings import HASHED, SCOPES


@click.group()
def keys() -> None:
    """API keys, and the secret keys that sign callback URLs."""


@keys.command()
@click.argument("name")
@click.option(
    "--scope", "scopes", multiple=True, type=click.Choice(sorted(SCOPES)), help="What it is for; everything without."
)
@json_option
def new(name: str, scopes: tuple[str, ...], as_json: bool) -> None:
    """Make an API key. The deployment keeps only its hash: the key itself is shown here, once."""
    key = secrets.token_urlsafe(32)
    entry = f"{name}:{HASHED}{hashlib.sha256(key.encode()).hexdigest()}:{'+'.join(scopes or ('admin',))}"
    if as_json:
        return print_json({"key": key, "entry": entry})
    click.echo(f"the key, for {name} alone:\n  {key}\nits entry, to add to API_KEYS:\n  {entry}")
    return None


@keys.command()
def rotate() -> None:
    """Explain, with this deployment's own figures, how SECRET_KEYS are replaced while jobs are under way."""
    settings = deployment_settings()
    last = timedelta(seconds=settings.job_deadline) + timedelta(hours=1)
    several = len(settings.secret_keys) > 1
    click.echo(
        f"""The first of SECRET_KEYS signs callback URLs, all of them verify. There {"are" if several else "is"} \
{len(settings.secret_keys)} now.

1. Put a new key in front of the others, in every process's environment:
     SECRET_KEYS={secrets.token_urlsafe(32)},<what it was>
   and restart web and worker. New jobs get URLs with the new key; running jobs keep theirs, which still verify.
2. Paste the new shared URLs into the dashboards of vendors that have the old ones:
     callsheet callback-url VENDOR
3. Wait until no job from before can be called back any more: {last} from now, which is JOB_DEADLINE_SECONDS and
   an hour for vendors that try again. Does the old key have to go at once, because it has become known? Skip the wait:
   callbacks of running jobs are then refused, and the poller finds out what became of them.
4. Take the old key out of SECRET_KEYS, and restart web and worker.

An API key is replaced in the same way: callsheet keys new NAME, add the entry to API_KEYS and restart web; give the
key to whoever uses the old one; then take the old entry out."""
    )
