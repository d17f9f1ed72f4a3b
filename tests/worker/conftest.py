"""A deployment that stores in a folder and asks no vendor."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.settings import Settings
from service.vendors import VENDORS
from tests.support import deployment as deployments


@pytest.fixture
def settings(redis_url: str, tmp_path: Path) -> Settings:
    return deployments.settings(
        redis_url,
        storage_url=(tmp_path / "objects").as_uri(),
        worker_concurrency=8,
        accounts=deployments.accounts(without=tuple(VENDORS)),
    )
