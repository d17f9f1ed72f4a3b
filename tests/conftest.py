"""Fixtures that talk to real things, and the guard that keeps every test on this machine."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tests.support import network
from tests.support.processes import Processes, processes_in
from tests.support.servers import S3, s3_server, valkey_server

network.guard()


def pytest_configure() -> None:
    """SIGTERM ends a run as Ctrl-C does: through the fixtures' clean-up, so that no server is left running."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Async tests run on asyncio, as the service does."""
    return "asyncio"


@pytest.fixture(autouse=True)
def refused_connections() -> Iterator[list[str]]:
    """Fail a test that tried to reach another machine, even if the code under test swallowed the refusal."""
    network.refused.clear()
    yield network.refused
    assert not network.refused, f"the test tried to {', '.join(network.refused)}"


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a Valkey server that the whole session shares. Tests take `redis_url`, which is empty."""
    with valkey_server(tmp_path_factory.mktemp("valkey")) as server:
        yield server.url


@pytest.fixture
def redis_url(valkey: str) -> str:
    """The URL of an empty Valkey: no keys, and no script that an earlier test has loaded."""
    with redis.Redis.from_url(valkey) as client:
        client.flushall()
        client.script_flush()
    return valkey


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """An S3 server that the whole session shares; keep tests apart by prefix."""
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    """Starts programs that are stopped when the test ends, however it ends."""
    with processes_in(tmp_path) as started:
        yield started
