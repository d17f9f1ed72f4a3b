"""The product's server with its own deadlines, shortened."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.hostile.hasty import start
from tests.support.web import CREDENTIALS, Web, web_process


@pytest.fixture(scope="module")
def running(valkey: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    with web_process(tmp_path_factory.mktemp("server"), {"REDIS_URL": valkey, **CREDENTIALS}, start) as web:
        yield web


@pytest.fixture
def port(web: Web) -> int:
    return web.port
