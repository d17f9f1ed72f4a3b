"""`callsheet up`: everything on this machine until Ctrl-C."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import threading
import time
from typing import Final

import click

from service.cli.client import where
from service.cli.local import Local
from service.cli.output import console

_COLOURS: Final = {"valkey": "magenta", "sandbox": "yellow", "web": "cyan", "worker": "green", "poller": "blue"}


@click.command()
@click.option("--port", type=click.IntRange(1, 65535), default=8000, show_default=True, help="Of the web process.")
@click.option(
    "--seconds", type=click.FloatRange(0), default=5.0, show_default=True, help="How long a sandbox job takes."
)
def up(port: int, seconds: float) -> None:
    """Web, worker, poller and sandbox on this machine, until Ctrl-C. Data stays under var/.

    REDIS_URL and STORAGE_URL are used where they are set. A vendor whose credentials are set is called for real;
    the others are played by the sandbox.
    """
    data = where().data
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with Local(data, {"LOG_FORMAT": _log_format()}, port=port, seconds=seconds, real_vendors=True) as local:
        console.print("Starting… (Ctrl-C stops everything)")
        local.start(_print_line)
        local.note()
        _welcome(local)
        while not stop.wait(0.5):
            local.check()
        console.print("\nStopping…")
    console.print(f"Stopped. The data is in {data}")


def _log_format() -> str:
    return "console" if sys.stdout.isatty() else "json"


def _print_line(name: str, line: str) -> None:
    colour = _COLOURS.get(name, "white")
    console.print(f"[{colour}]{name:>8} |[/] ", end="")
    console.file.write(line + "\n")


def _welcome(local: Local) -> None:
    width = min(shutil.get_terminal_size().columns, 100)
    console.rule(style="dim")
    media = f"{local.sandbox_url}/media/input"
    given = {"video_url": f"{media}/face.mp4", "audio_url": f"{media}/voice.mp3"}
    body = json.dumps({"vendor": "lipsync_studio", "input": given})
    lines = (
        ("Dashboard", local.url),
        ("API", f"{local.url}/v1/jobs"),
        ("API key", local.api_key),
        ("Vendors", f"{local.sandbox_url}/{{vendor}}  (the sandbox)"),
        ("Try", f"curl -s {local.url}/v1/jobs -H 'Authorization: Bearer {local.api_key}' -d '{body}'"),
        ("Or", f"callsheet submit kitta {' '.join(f'{name}={url}' for name, url in given.items())}"),
        ("Then", "callsheet overview · jobs list · jobs show · jobs watch · costs · doctor"),
        ("Up since", time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())),
    )
    for name, value in lines:
        console.print(f"[bold]{name:>9}[/]  {value}", soft_wrap=True, width=max(width, 40))
    console.rule(style="dim")
