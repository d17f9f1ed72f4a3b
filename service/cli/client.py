"""The terminal's own client of the API, and where it finds the deployment it talks to.

In this order: what `--url` and `--api-key` say; the deployment that `callsheet up` runs on this machine; `PUBLIC_URL`
and the first of `API_KEYS`, as in a one-off process of a platform.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import httpx
import msgspec

from service import settings
from service.settings import HASHED, Settings, SettingsError, key_entry
from service.vendors import VENDORS


class Where(msgspec.Struct, frozen=True):
    """Which deployment a command is about."""

    url: str | None
    api_key: str | None
    data: Path  #: where `callsheet up` keeps its data and its note


def where() -> Where:
    """What the program's own options say."""
    found: Where = click.get_current_context().find_root().obj
    return found


class Client:
    """Calls the API; an answer that is a problem ends the command with the problem's words and exit code 1."""

    def __init__(self, url: str = "", key: str = "") -> None:
        """Of the deployment that the options or the environment name, where no `url` is given."""
        if not url:
            url, key = _address()
        self._http = httpx.Client(
            base_url=url,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=30,
            trust_env=False,
            follow_redirects=False,
        )

    def get(self, path: str, **params: str | int | None) -> Any:
        return self.call("GET", path, params={name: value for name, value in params.items() if value is not None})

    def call(self, method: str, path: str, **more: Any) -> Any:
        try:
            answer = self._http.request(method, path, **more)
        except httpx.HTTPError as error:
            raise click.ClickException(f"{self._http.base_url} does not answer: {error}") from None
        if answer.is_success:
            return answer.json() if answer.content else None
        raise click.ClickException(_words(answer))

    @contextmanager
    def stream(self, path: str, **params: str | tuple[str, ...] | None) -> Iterator[Iterator[str]]:
        """The lines of an answer that does not end by itself. Errors of httpx are the caller's, 5xx among them."""
        given = {name: value for name, value in params.items() if value is not None}
        with self._http.stream("GET", path, params=given, timeout=45) as answer:
            if answer.is_error:
                answer.read()
            if answer.is_server_error:
                raise httpx.RemoteProtocolError(_words(answer))
            if answer.is_error:
                raise click.ClickException(_words(answer))
            yield _lines(answer.iter_bytes())


def _lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """Lines, which end with a line feed and nothing else: JSON may hold U+2028, where httpx would break them too."""
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        yield from map(bytes.decode, whole)


def _words(answer: httpx.Response) -> str:
    try:
        problem = answer.json()
    except ValueError:
        return f"HTTP {answer.status_code}"
    fields = "".join(f"\n  {error['field']}: {error['detail']}" for error in problem.get("errors", ()))
    return f"{problem.get('detail', problem)} (HTTP {answer.status_code}){fields}"


def _running() -> dict[str, Any]:
    """What `callsheet up` noted about itself, where it runs."""
    try:
        noted: dict[str, Any] = json.loads((where().data / "up.json").read_text())
    except (OSError, ValueError):
        return {}
    return noted


def _address() -> tuple[str, str]:
    options = where()
    if options.url:
        return options.url, options.api_key or ""
    if running := _running():
        return running["url"], first_key(running["environ"])
    if os.environ.get("PUBLIC_URL") and os.environ.get("API_KEYS"):
        return os.environ["PUBLIC_URL"], first_key(os.environ)
    raise click.ClickException(
        "no deployment to talk to: run 'callsheet up', or give --url and --api-key (CALLSHEET_URL, CALLSHEET_API_KEY)"
    )


def first_key(environ: Mapping[str, str]) -> str:
    """The first of `API_KEYS` that is there itself, and not only as a hash."""
    for word in environ["API_KEYS"].split(","):
        _, key, _ = key_entry(word)
        if not key.startswith(HASHED):
            return key
    raise click.ClickException("API_KEYS has only hashes of keys: give one with --api-key (CALLSHEET_API_KEY)")


def environment() -> dict[str, str]:
    """The deployment's environment: this process's own, or that of `callsheet up` where this one says nothing."""
    if os.environ.get("REDIS_URL"):
        return dict(os.environ)
    return {**os.environ, **_running().get("environ", {})}


def deployment_settings() -> Settings:
    """The settings behind `environment()`; unusable ones end the command with all that is wrong."""
    try:
        return settings.load(VENDORS.values(), environment())
    except SettingsError as error:
        raise click.ClickException(str(error)) from None
