"""The door's own fixture."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.support.desk import Desk, opened_desk


@pytest.fixture
async def desk(redis_url: str) -> AsyncIterator[Desk]:
    async with opened_desk(redis_url) as desk:
        yield desk
