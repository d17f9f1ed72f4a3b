"""`python -m sandbox`: the sandbox as a process on loopback."""

from __future__ import annotations

import logging
import re
import signal
import socket
from types import FrameType

import click
import uvicorn

from sandbox.app import create_app
from sandbox.world import World


class Server(uvicorn.Server):
    """Says where it listens once it does, and ends hanging answers before it waits for their connections."""

    def __init__(self, config: uvicorn.Config, world: World, url: str) -> None:
        super().__init__(config)
        self._world = world
        self._url = url

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            click.echo(f"sandbox listening on {self._url}")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._world.stop()
        await super().shutdown(sockets)


def _rate(_: click.Context, __: click.Parameter, value: str) -> tuple[int, float]:
    match = re.fullmatch(r"([1-9]\d*)/(\d+(?:\.\d+)?)", value, re.ASCII)
    if match is None:
        raise click.BadParameter(f"{value!r} is not REQUESTS/SECONDS")
    return int(match[1]), float(match[2])


@click.command()
@click.option("--port", type=click.IntRange(0, 65535), required=True, help="0 picks a free one.")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--seconds", type=click.FloatRange(0), default=2.0, show_default=True, help="How long a job takes.")
@click.option(
    "--speed",
    type=click.FloatRange(0, min_open=True),
    default=1.0,
    show_default=True,
    help="Divides the waits between retries.",
)
@click.option(
    "--chanjing-submits",
    metavar="REQUESTS/SECONDS",
    default="10/60",
    show_default=True,
    callback=_rate,
    help="Submissions that Chanjing takes in so many seconds.",
)
def main(port: int, host: str, seconds: float, speed: float, chanjing_submits: tuple[int, float]) -> None:
    """Play the four vendors at http://HOST:PORT/{vendor}, with faults on demand."""
    app = create_app(seconds, speed, chanjing_submits)
    config = uvicorn.Config(
        app, host=host, port=port, lifespan="on", log_level="warning", access_log=False, timeout_graceful_shutdown=1
    )
    # Cutting an answer short is what was asked for, and no error.
    logging.getLogger("uvicorn.error").addFilter(lambda line: "without completing" not in line.getMessage())
    bound = config.bind_socket()
    address = f"[{host}]" if ":" in host else host
    url = f"http://{address}:{bound.getsockname()[1]}"
    # uvicorn stops in peace and then raises the signal again, for whoever handled it before: that is a good end.
    for stop in (signal.SIGTERM, signal.SIGINT):
        signal.signal(stop, _exit)
    Server(config, app.state.world, url).run(sockets=[bound])


def _exit(_signal: int, _frame: FrameType | None) -> None:
    raise SystemExit(0)


if __name__ == "__main__":
    main()
