"""Each kind of storage, empty."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from uuid import uuid4

import pytest

from service.settings import Settings
from tests.support import deployment as deployments
from tests.support.archives import Lying, stored_in
from tests.support.servers import S3


@pytest.fixture
def settings(
    request: pytest.FixtureRequest, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Settings:
    """Settings with an empty storage, of the kind that `both_storages` or `in_a_bucket` asks for."""
    if getattr(request, "param", "file") == "file":
        return deployments.settings(redis_url, storage_url=(tmp_path / "objects").as_uri())
    s3: S3 = request.getfixturevalue("s3")
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    return deployments.settings(redis_url, storage_url=s3.storage_url(uuid4().hex))


@pytest.fixture
def lying_there(request: pytest.FixtureRequest, settings: Settings) -> Lying:
    """Looks at what lies in the storage."""
    s3 = None if settings.storage_url.startswith("file") else request.getfixturevalue("s3")
    return partial(stored_in, settings, s3)
