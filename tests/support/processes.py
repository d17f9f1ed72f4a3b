"""Real programs for tests: start, wait for a condition, stop by pid, leave nothing behind.

Owns the only sleeps of the test suite. A fixed sleep is either too short on a slow machine or too long
on a fast one; what a test means is "when this has become true", and `eventually` says exactly that.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import itertools
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self, TypeVar

ROOT: Final = Path(__file__).resolve().parents[2]

#: Where the programs of this environment are: `rclone`, `callsheet`, `python`.
BIN: Final = Path(sys.executable).parent

T = TypeVar("T")

_INTERVAL: Final = 0.02  #: seconds between two looks at a condition


def eventually(condition: Callable[[], T | None], what: str = "the condition", *, timeout: float = 30.0) -> T:
    """Ask until the answer is truthy, and return it. AssertionError after `timeout` seconds, with the last answer."""
    deadline = time.monotonic() + timeout
    while not (answer := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come true in {timeout} s; the last answer was {answer!r}")
        time.sleep(_INTERVAL)
    return answer


async def eventually_async(
    condition: Callable[[], Awaitable[T | None]],
    what: str = "the condition",
    *,
    timeout: float = 30.0,  # noqa: ASYNC109 (the same call as `eventually`)
) -> T:
    """`eventually` for a condition that is awaited; the event loop goes on meanwhile."""
    deadline = time.monotonic() + timeout
    while not (answer := await condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come true in {timeout} s; the last answer was {answer!r}")
        await asyncio.sleep(_INTERVAL)
    return answer


def _own_ports() -> Iterator[int]:
    """Below those that the system gives to connections, and apart from those of the test processes beside this one."""
    first = 10_000 + 5_000 * (int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % 4)
    begin = random.randrange(5_000)
    return itertools.cycle([first + (begin + number) % 5_000 for number in range(5_000)])


_PORTS: Final = _own_ports()


def free_port() -> int:
    """A loopback port that nobody listens on now. Somebody may by the time it is used: let a server pick, if it can."""
    for port in _PORTS:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("there is no end of ports")


def listening(port: int) -> bool:
    """Whether something accepts connections on this loopback port."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """What a child process sees: this environment's programs and `extra`, and none of the developer's settings."""
    kept = {name: os.environ[name] for name in ("HOME", "LANG", "TMPDIR") if name in os.environ}
    path = f"{BIN}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    return {**kept, "PATH": path, "PYTHONUNBUFFERED": "1", **(extra or {})}


class Process:
    """A started program. It leads its own process group, so whatever it starts ends with it."""

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        log: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path = ROOT,
    ) -> None:
        """Start `command`; both its outputs go to `log`. `env` is added to `environment()`."""
        self.command = [str(word) for word in command]
        self.log = log
        with log.open("ab") as output:
            self._popen = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment(env),
                cwd=cwd,
                start_new_session=True,
            )
        # For a run that ends without its fixtures' clean-up; stop() may be called any number of times.
        atexit.register(self.kill)

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; -N when signal N ended it."""
        return self._popen.poll()

    def output(self) -> str:
        """Everything that it has written so far."""
        return self.log.read_text(errors="replace")

    def lines(self, event: str) -> list[dict[str, Any]]:
        """The whole lines of JSON that it has logged under this name so far."""
        lines = (json.loads(line) for line in self.output().split("\n")[:-1] if line.startswith("{"))
        return [line for line in lines if line["event"] == event]

    def wait_until(self, condition: Callable[[], T | None], what: str = "the condition", *, timeout: float = 30.0) -> T:
        """`eventually`, which gives up at once when the process has ended, and shows its log when it fails."""

        def condition_of_the_living() -> T | None:
            if self.exit_code is not None:
                raise AssertionError(f"it ended with {self.exit_code} before {what} came true")
            return condition()

        try:
            return eventually(condition_of_the_living, what, timeout=timeout)
        except AssertionError as failure:
            raise AssertionError(f"{failure}\n{self.describe()}") from None

    def wait(self, *, timeout: float = 30.0) -> int:
        """Wait for it to end by itself, and return the exit code."""
        try:
            return self._popen.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it did not end in {timeout} s\n{self.describe()}") from None

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the process itself, and not to what it has started."""
        self._popen.send_signal(number)

    def stop(self, *, timeout: float = 10.0) -> int:
        """SIGTERM, as a platform sends it, then SIGKILL after `timeout` seconds; what it left behind is killed too."""
        self._popen.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(timeout)
        return self.kill()

    def kill(self) -> int:
        """SIGKILL, to it and to everything that it has started."""
        # The group outlives its leader for as long as a member does, and then there is none to signal.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        atexit.unregister(self.kill)
        return self._popen.wait()

    def describe(self) -> str:
        """The command and the end of its log, for a failure's message."""
        return f"$ {' '.join(self.command)}\n{self.output()[-4000:]}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class Processes:
    """The programs of one test, stopped in reverse order. Each writes to `<name>.log` in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started: list[Process] = []

    def start(
        self,
        name: str,
        command: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path = ROOT,
    ) -> Process:
        """Start a program that is stopped when the test ends, however it ends."""
        process = Process(command, log=self._folder / f"{name}.log", env=env, cwd=cwd)
        self._started.append(process)
        return process

    def stop(self) -> None:
        """Stop what still runs."""
        while self._started:
            self._started.pop().stop()


@contextlib.contextmanager
def processes_in(folder: Path) -> Iterator[Processes]:
    """A `Processes` for the length of a block."""
    started = Processes(folder)
    try:
        yield started
    finally:
        started.stop()
