"""One poller, whose turns are taken by hand."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import pytest

from service.deployment import opened
from service.settings import Settings
from service.vendors import VENDORS
from tests.support.sandbox import Desk
from workers import outbound
from workers.poller import Poller
from workers.vendor_client import VendorClient

SLUGS: Final = ("apimodels", "chanjing", "kitta", "lipsync_studio")
LISTED: Final = ("chanjing", "kitta")  # the vendors with a list call

#: Other vendors than the sandbox's: a server that a test tells what to answer; and other credentials.
by_wire = pytest.mark.parametrize("settings", ["files"], indirect=True)
minting = pytest.mark.parametrize("settings", ["minting"], indirect=True)
without_credentials = pytest.mark.parametrize("settings", ["nobody"], indirect=True)


@asynccontextmanager
async def poller_of(settings: Settings) -> AsyncIterator[Poller]:
    async with (
        opened(settings) as deployment,
        outbound.client(allow_private_networks=settings.allow_private_networks) as http,
    ):
        yield Poller(deployment, VendorClient(deployment, http))


def first_look(vendor: str) -> float:
    """Seconds until a vendor is asked about a new job."""
    rhythm = VENDORS[vendor].RHYTHM
    return rhythm.every if rhythm.grace is None else rhythm.grace


async def look(poller: Poller, desk: Desk, vendor: str) -> None:
    """One turn, with everything due."""
    desk.make_due("polls", vendor)
    await poller.look_after(vendor)


def let_try_again(desk: Desk, vendor: str) -> None:
    """As if the time had passed for which an unwell vendor is left alone."""
    desk.redis.hset(desk.key("vendor", vendor), "retry_at", 0)
    desk.make_due("polls", vendor)
