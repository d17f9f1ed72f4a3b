"""A deployment whose vendors are the sandbox's, whose callbacks a real web process receives."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from msgspec.structs import replace

from service.model import Limit
from service.settings import Settings
from tests.support.sandbox import Sandbox
from tests.support.submissions import web_of
from tests.support.web import Web


@pytest.fixture(scope="module")
def callsheet(one_sandbox: Sandbox, valkey: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    with web_of(tmp_path_factory.mktemp("web"), valkey, one_sandbox.accounts()) as web:
        yield web


@pytest.fixture
def settings(callsheet: Web, sandbox: Sandbox, redis_url: str) -> Settings:
    """As `callsheet` has them, but the vendors may be asked as often as a test wants to."""
    accounts = {
        slug: replace(account, limits=account.limits | {"read": Limit(requests=1000, seconds=1)})
        for slug, account in callsheet.settings.accounts.items()
        if slug != "chanjing"  # the sandbox counts
    }
    return replace(callsheet.settings, accounts=callsheet.settings.accounts | accounts)
