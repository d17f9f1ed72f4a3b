"""Subscribers' endpoints, with a worker and a poller or without."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from service.deployment import opened
from service.settings import Settings
from service.vendors import VENDORS
from tests.support import deployment as deployments
from tests.support.hooks import hooks_server
from tests.support.posts import Post, working


@pytest.fixture
def settings(redis_url: str) -> Settings:
    silent = deployments.accounts(without=tuple(VENDORS))
    return deployments.settings(redis_url, accounts=silent)


@pytest.fixture
async def post(settings: Settings) -> AsyncIterator[Post]:
    """Nobody sends yet."""
    async with opened(settings) as deployment, hooks_server() as hooks:
        yield Post(deployment, hooks)


@pytest.fixture
async def at_work(settings: Settings, post: Post) -> AsyncIterator[Post]:
    async with working(settings):
        yield post
