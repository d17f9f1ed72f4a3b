"""A deployment whose vendors are the sandbox's, and a poller."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from service.settings import Settings
from tests.support import deployment as deployments
from tests.support.pollers import SLUGS, poller_of
from tests.support.sandbox import Sandbox
from workers.poller import Poller


@pytest.fixture
def settings(request: pytest.FixtureRequest, redis_url: str, sandbox: Sandbox) -> Settings:
    """With accounts at the sandbox's vendors, or where `by_wire`, `minting` or `without_credentials` says."""
    match getattr(request, "param", None):
        case "files":
            accounts = deployments.accounts(request.getfixturevalue("files").url)
        case "minting":
            accounts = sandbox.accounts(minting=True)
        case "nobody":
            accounts = sandbox.accounts(without=SLUGS)
        case _:
            accounts = sandbox.accounts()
    return deployments.settings(redis_url, accounts=accounts)


@pytest.fixture
async def poller(settings: Settings) -> AsyncIterator[Poller]:
    async with poller_of(settings) as made:
        yield made
