"""What a callback costs, from its first byte to its answer: our web process, the floors, and other people's stacks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from redis import Redis

from tests.support.processes import BIN, Process, free_port, listening
from tests.support.servers import valkey_server
from tests.support.web import CREDENTIALS, web_process

from . import load
from .callbacks import Callback, tracked, unaccounted
from .measure import CLIENT_CORE, OURS, SERVER_CORE, Row, cpu_seconds, pin, rotated

FLOORS: Final = ("bare uvicorn", "bare + one EVALSHA", "documented RQ")
_APPS: Final = {"bare uvicorn": "bare", "bare + one EVALSHA": "evalsha", "documented RQ": "rq"}
_OPEN_RATE: Final = 500.0


@dataclass(frozen=True)
class Subject:
    """A server that takes callbacks."""

    name: str
    pid: int
    port: int


@dataclass(frozen=True)
class Stand:
    """Where the subjects stand side by side, each with what it needs, on one Valkey."""

    subjects: dict[str, Subject]
    callbacks: Callable[[int], list[Callback]]  #: so many that are news to ours
    missing: Callable[[Sequence[Callback]], list[str]]  #: what ours has not kept of those it answered

    def requests(self, name: str, callbacks: Sequence[Callback]) -> list[bytes]:
        if name == OURS:
            return [callback.request() for callback in callbacks]
        return [callback.request(f"/{callback.job_id}") for callback in callbacks]


@contextlib.contextmanager
def stand(folder: Path, peers: Sequence[str] = (), appendfsync: str = "everysec") -> Iterator[Stand]:
    with contextlib.ExitStack() as stack:
        valkey = stack.enter_context(valkey_server(folder, config={"appendfsync": appendfsync}))
        pin(valkey.process.pid, CLIENT_CORE)
        web = stack.enter_context(web_process(folder, {"REDIS_URL": valkey.url, **CREDENTIALS}))
        subjects = {OURS: Subject(OURS, web.process.pid, int(web.url.rpartition(":")[2]))}
        for name in FLOORS:
            port = free_port()
            words = [
                BIN / "python",
                "-m",
                "tests.bench.apps",
                _APPS[name],
                "--port",
                str(port),
                "--redis-url",
                valkey.url,
            ]
            process = stack.enter_context(Process(words, log=folder / f"{_APPS[name]}.log"))
            process.wait_until(lambda port=port: listening(port), "a listening server")  # type: ignore[misc]
            subjects[name] = Subject(name, process.pid, port)
        for subject in subjects.values():
            pin(subject.pid, SERVER_CORE)
        redis: Redis = stack.enter_context(Redis.from_url(valkey.url))
        yield Stand(
            subjects,
            lambda count: tracked(web.settings, count),
            lambda sent: unaccounted(redis, web.settings.key_prefix, sent),
        )


def cpu_row(at: Stand, connections: int, count: int, rounds: int, limits: dict[str, float]) -> Row:
    """CPU of the server's processes for each callback, with so many connections at once."""
    row = Row(f"CPU per callback, {connections} connection{'s' * (connections > 1)}", "µs", limits)
    for number in range(rounds):
        for name in rotated(at.subjects, number):
            subject, news = at.subjects[name], at.callbacks(count)
            requests = at.requests(name, news)
            load.closed(subject.port, requests[: count // 20], connections)
            before = cpu_seconds(subject.pid)
            load.closed(subject.port, requests[count // 20 :], connections)
            row.add(name, (cpu_seconds(subject.pid) - before) / (count - count // 20) * 1e6)
            if name == OURS and (missing := at.missing(news)):
                raise AssertionError(f"answered by 200 and not kept: {missing[:5]}")
    return row
