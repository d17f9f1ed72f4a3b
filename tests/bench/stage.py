"""What the rows outside the web process need: a Valkey, settings, the outside world, and our own worker."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redis import Redis

from service.model import Limit
from service.settings import Account, Settings
from tests.support import deployment as deployments
from tests.support.processes import BIN, Process, free_port, listening
from tests.support.servers import S3, valkey_server

from .measure import SERVER_CORE, pin


@dataclass(frozen=True)
class Stage:
    folder: Path
    settings: Settings
    redis: Redis
    outside: str  #: URL of the outside world
    extra: Mapping[str, str]  #: what the processes need beside the settings

    @property
    def env(self) -> dict[str, str]:
        return {**deployments.environment(self.settings), **self.extra}

    def run(self, *words: str) -> float:
        """Let `asker` do one kind of work on the server's core. Seconds of CPU."""
        command: list[str | Path] = [BIN / "python", "-m", "tests.bench.asker", *words]
        with Process(command, log=self.folder / "asker.log", env=self.env) as asker:
            pin(asker.pid, SERVER_CORE)
            if asker.wait(timeout=300):
                raise AssertionError(f"it ended with {asker.exit_code}\n{asker.describe()}")
            return float(re.findall(r"seconds of CPU: (\S+)", asker.output())[-1])


@contextlib.contextmanager
def stage(folder: Path, s3: S3 | None = None, **overrides: Any) -> Iterator[Stage]:
    folder.mkdir(parents=True)
    with contextlib.ExitStack() as stack:
        valkey = stack.enter_context(valkey_server(folder, config={"appendfsync": "everysec"}))
        port = free_port()
        words: list[str | Path] = [BIN / "python", "-m", "tests.bench.outside", "--port", str(port)]
        outside = stack.enter_context(Process(words, log=folder / "outside.log"))
        outside.wait_until(lambda: listening(port), "a listening server")
        url = f"http://127.0.0.1:{port}"
        storage = s3.storage_url(folder.name) if s3 else (folder / "files").as_uri()
        made = deployments.settings(valkey.url, accounts=_unlimited(url), storage_url=storage, **overrides)
        redis = stack.enter_context(Redis.from_url(valkey.url))
        yield Stage(folder, made, redis, url, s3.environment if s3 else {})


def _unlimited(url: str) -> dict[str, Account]:
    """The vendors behind `url`, which may be asked as often as one likes."""
    often = Limit(requests=100_000, seconds=1)
    return {
        slug: Account(
            vendor=slug,
            base_url=account.base_url,
            credentials=account.credentials,
            wanted=account.wanted,
            limits=dict.fromkeys(account.limits, often),
        )
        for slug, account in deployments.accounts(url).items()
    }


@contextlib.contextmanager
def our_worker(at: Stage) -> Iterator[Process]:
    at.redis.delete("rq:workers")
    with Process([BIN / "python", "-m", "tests.bench.worker"], log=at.folder / "worker.log", env=at.env) as worker:
        worker.wait_until(lambda: at.redis.scard("rq:workers"), "a worker that RQ sees", timeout=20)
        pin(worker.pid, SERVER_CORE)
        yield worker
