"""Fixtures that talk to real things, and the guard that keeps every test on this machine."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import redis

from service.deployment import Deployment, opened
from service.jobs.calls import Calls
from service.jobs.store import Store
from service.settings import Settings
from tests.support import deployment as deployments
from tests.support import network
from tests.support.files import Files, file_server
from tests.support.processes import Processes, processes_in
from tests.support.sandbox import Desk, Sandbox, desk_of, sandbox_process
from tests.support.servers import S3, s3_server, valkey_server
from tests.support.submissions import Crew, crew_of
from tests.support.web import CREDENTIALS, Web, web_process
from tests.support.workers import Workers

network.guard()


def pytest_configure() -> None:
    """SIGTERM ends a run as Ctrl-C does: through the fixtures' clean-up, so that no server is left running."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # What is started from a script's background ignores Ctrl-C, and so would every program that a test starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)


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


# -- a deployment, for tests that move its jobs by hand; what is particular to some is in their `settings` ----------


@pytest.fixture
def settings(redis_url: str) -> Settings:
    """Those of a deployment on an empty Valkey, whose vendors nobody answers for."""
    return deployments.settings(redis_url)


@pytest.fixture
async def deployment(settings: Settings) -> AsyncIterator[Deployment]:
    async with opened(settings) as made:
        yield made


@pytest.fixture
def store(deployment: Deployment) -> Store:
    return deployment.store


@pytest.fixture
def calls(deployment: Deployment) -> Calls:
    return deployment.calls


@pytest.fixture
def desk(settings: Settings) -> Iterator[Desk]:
    with desk_of(settings) as made:
        yield made


@pytest.fixture
async def crew(desk: Desk) -> AsyncIterator[Crew]:
    async with crew_of(desk) as made:
        yield made


@pytest.fixture
def workers(processes: Processes, settings: Settings) -> Iterator[Workers]:
    made = Workers(processes, settings)
    yield made
    made.kill()


# -- the product's own processes, one for a file of tests ------------------------------------------


@pytest.fixture(scope="module")
def running(valkey: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    with web_process(tmp_path_factory.mktemp("web"), {"REDIS_URL": valkey, **CREDENTIALS}) as web:
        yield web


@pytest.fixture
def web(running: Web, redis_url: str) -> Web:
    """A web process whose vendors can all be asked, on an empty Valkey."""
    return running


@pytest.fixture(scope="module")
def running_blind(valkey: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    with web_process(tmp_path_factory.mktemp("blind"), {"REDIS_URL": valkey}) as web:
        yield web


@pytest.fixture
def blind(running_blind: Web, redis_url: str) -> Web:
    """A web process that has credentials of no vendor, on an empty Valkey."""
    return running_blind


@pytest.fixture(scope="module")
def one_sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    with sandbox_process(tmp_path_factory.mktemp("sandbox")) as running:
        yield running


@pytest.fixture
def sandbox(one_sandbox: Sandbox) -> Sandbox:
    """The vendors, played, with nothing behind them yet."""
    one_sandbox.reset()
    return one_sandbox


@pytest.fixture
def files() -> Iterator[Files]:
    """A file server that answers as a test tells it to."""
    with file_server() as server:
        yield server
