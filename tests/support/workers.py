"""Workers and pollers as processes, and what RQ's lists and the storage hold of their work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, cast

from rq import Queue
from rq.serializers import JSONSerializer

from service.model import Archive
from service.settings import Settings
from tests.support import deployment as deployments
from tests.support.processes import BIN, Process, Processes
from tests.support.sandbox import Desk

FILM: Final = b"film " * 1000


class Workers:
    """Starts processes of a deployment, which are killed when the test ends: how they stop is for some tests only."""

    def __init__(self, processes: Processes, settings: Settings) -> None:
        self._processes = processes
        self._settings = settings
        self._started: list[Process] = []

    def start(self, *command: str, settings: Settings | None = None, **env: str) -> Process:
        """A worker that has said that it works; `command` stands in for the usual one."""
        process = self._start(command or ("-m", "workers.main"), settings, env)
        process.wait_until(lambda: "worker started" in process.output(), "its start")
        return process

    def start_several(self, count: int, settings: Settings) -> list[Process]:
        """So many workers that have said that they work."""
        found = [self._start(("-m", "workers.main"), settings, {}) for _ in range(count)]
        for process in found:
            process.wait_until(lambda each=process: "worker started" in each.output(), "its start")  # type: ignore[misc]
        return found

    def start_poller(self, settings: Settings | None = None) -> Process:
        """A poller that has said that it works."""
        process = self._start(("-m", "workers.poller"), settings, {})
        process.wait_until(lambda: "poller started" in process.output(), "its start")
        return process

    def _start(self, command: Sequence[str], settings: Settings | None, env: Mapping[str, str]) -> Process:
        variables = {**deployments.environment(settings or self._settings), **env}
        name = f"process-{len(self._started)}"
        process = self._processes.start(name, [BIN / "python", *command], env=variables)
        self._started.append(process)
        return process

    def kill(self) -> None:
        for process in self._started:
            process.kill()


def is_stored(desk: Desk, *job_ids: str) -> bool:
    return all(desk.job(job_id).archive is Archive.STORED for job_id in job_ids)


def queue_of(desk: Desk) -> Queue:
    return Queue(desk.settings.queue("archive"), connection=desk.redis, serializer=JSONSerializer)


def intermediate(desk: Desk) -> list[bytes]:
    key = f"rq:queue:{desk.settings.queue('archive')}:intermediate"
    return cast("list[bytes]", desk.redis.lrange(key, 0, -1))
