"""A desk for jobs that take two of a vendor's."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.support.desk import opened_desk
from tests.support.steps import Steps


@pytest.fixture
async def desk(redis_url: str) -> AsyncIterator[Steps]:
    async with opened_desk(redis_url) as desk:
        yield Steps(desk.redis, desk.settings)
