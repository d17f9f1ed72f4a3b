"""A sandbox that is stopped as a platform would, what is asked of it, and a receiver for its callbacks."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.support.customers import Receiver, stop
from tests.support.sandbox import Sandbox, sandbox_process


@pytest.fixture(scope="module")
def one_sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    with sandbox_process(tmp_path_factory.mktemp("sandbox")) as running:
        yield running
        stop(running.process)


@pytest.fixture
def api(sandbox: Sandbox) -> httpx.Client:
    return sandbox.http


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    server = Receiver()
    yield server
    server.stop()
