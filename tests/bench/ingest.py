"""What a callback costs, from its first byte to its answer: our web process, the floors, and other people's stacks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from redis import Redis

from tests.hostile.measure import quantile
from tests.support.processes import BIN, ROOT, Process, free_port, listening
from tests.support.servers import valkey_server
from tests.support.web import CREDENTIALS, web_process

from . import load
from .callbacks import Callback, tracked, unaccounted
from .measure import OURS, SERVER_CORE, Row, cpu_seconds, pin, rotated
from .others import Peer

#: The servers of apps.py.
FLOORS: Final = {
    name: Peer(name, (BIN / "python", "-m", "tests.bench.apps", app), ROOT)
    for name, app in {"bare uvicorn": "bare", "bare + one EVALSHA": "evalsha", "documented RQ": "rq"}.items()
}
#: At most so many times what they cost, by connections.
LIMITS: Final[Mapping[int, Mapping[str, float]]] = {
    64: {
        "bare uvicorn": 1.6,
        "bare + one EVALSHA": 0.5,
        "Fastify + BullMQ": 0.7,
        "documented RQ": 0.11,
        "FastAPI + Celery": 0.07,
    },
    1: {"bare uvicorn": 2.6, "bare + one EVALSHA": 1.0},
}
#: Callbacks a second that come at random, whatever became of those before.
_RATE: Final = 500.0


@dataclass(frozen=True)
class Subject:
    """A server that takes callbacks."""

    pid: int
    port: int


@dataclass(frozen=True)
class Stand:
    """The subjects side by side, on one Valkey."""

    subjects: dict[str, Subject]
    callbacks: Callable[[int], list[Callback]]  #: so many that are news to ours
    missing: Callable[[Sequence[Callback]], list[str]]  #: what ours has not kept of those it answered

    def requests(self, name: str, callbacks: Sequence[Callback]) -> list[bytes]:
        if name == OURS:
            return [callback.request() for callback in callbacks]
        return [callback.request(f"/{callback.job_id}") for callback in callbacks]


@contextlib.contextmanager
def stand(folder: Path, others: Sequence[Peer], appendfsync: str = "everysec") -> Iterator[Stand]:
    folder.mkdir(parents=True)
    with contextlib.ExitStack() as stack:
        valkey = stack.enter_context(valkey_server(folder, config={"appendfsync": appendfsync}))
        web = stack.enter_context(web_process(folder, {"REDIS_URL": valkey.url, **CREDENTIALS}))
        subjects = {OURS: Subject(web.process.pid, web.port)}
        for peer in others:
            port = free_port()
            words = [*peer.command, "--port", str(port), "--redis-url", valkey.url]
            process = stack.enter_context(Process(words, log=folder / f"{peer.name}.log", cwd=peer.folder))
            process.wait_until(lambda port=port: listening(port), "a listening server")  # type: ignore[misc]
            subjects[peer.name] = Subject(process.pid, port)
        for subject in subjects.values():
            pin(subject.pid, SERVER_CORE)
        redis: Redis = stack.enter_context(Redis.from_url(valkey.url))
        prefix = web.settings.key_prefix
        yield Stand(subjects, lambda count: tracked(web.settings, count), lambda sent: unaccounted(redis, prefix, sent))


def cpu_row(at: Stand, connections: int, count: int, rounds: int) -> Row:
    """CPU of the server's processes for each callback, with so many connections at once."""
    row = Row(f"CPU per callback, {connections} connection{'s' * (connections > 1)}", "µs", LIMITS[connections])
    first = count // 20  # they make the connections to Redis, and load its scripts
    for number in range(rounds):
        for name in rotated(at.subjects, number):
            subject, news = at.subjects[name], at.callbacks(count)
            requests = at.requests(name, news)
            load.closed(subject.port, requests[:first], connections)
            before = cpu_seconds(subject.pid)
            load.closed(subject.port, requests[first:], connections)
            row.add(name, (cpu_seconds(subject.pid) - before) / (count - first) * 1e6)
            _account(at, name, news)
    return row


def ack_row(at: Stand, fsync: str, limit: float, count: int, rounds: int) -> Row:
    """From the moment that a callback was due to its answer, the 99th of 100, while they come at random."""
    row = Row(f"ack p99, 500 a second at random, appendfsync {fsync}", "ms", {"bare uvicorn": limit}, digits=2)
    for number in range(rounds):
        for name in rotated(at.subjects, number):
            news = at.callbacks(count)
            took = load.opened(at.subjects[name].port, at.requests(name, news), 64, _RATE, seed=number)
            row.add(name, quantile(took, 0.99) * 1e3)
            _account(at, name, news)
    return row


def _account(at: Stand, name: str, sent: Sequence[Callback]) -> None:
    """The bench's own honesty: what was answered by 200 is there."""
    if name == OURS and (missing := at.missing(sent)):
        raise AssertionError(f"answered by 200 and not kept: {missing[:5]}")
