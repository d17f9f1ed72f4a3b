"""The recipes of docs/subscribing.md, run as they stand there: who was away, or was killed, has what the ledger has."""

from __future__ import annotations

import asyncio
import re
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import pytest

from service.deployment import opened
from service.jobs.endpoints import Endpoints
from service.model import Endpoint, new_id
from tests.support import node
from tests.support.processes import ROOT, Process, Processes, environment, eventually, free_port, listening
from tests.support.web import Web
from workers import notify
from workers.notify import Notifier

RECIPES: Final = dict(
    re.findall(
        r"`([\w.]+)`:\n\n```(?:python|javascript)\n(.*?)```", (ROOT / "docs/subscribing.md").read_text(), re.DOTALL
    )
)


class Kitchen:
    """Runs recipes."""

    def __init__(self, processes: Processes, folder: Path) -> None:
        self._processes = processes
        self._folder = folder
        self._count = 0

    def start(self, recipe: str, *arguments: str, **env: str) -> Process:
        program = sys.executable
        if recipe.endswith(".mjs"):
            program = node.installed()
            if not (self._folder / "node_modules").exists():
                (self._folder / "node_modules").symlink_to(node.FOLDER / "node_modules")
        (self._folder / recipe).write_text(RECIPES[recipe])
        self._count += 1
        command = [program, str(self._folder / recipe), *arguments]
        return self._processes.start(f"{recipe}-{self._count}", command, env=environment(env))


@pytest.fixture
def kitchen(processes: Processes, tmp_path: Path) -> Kitchen:
    return Kitchen(processes, tmp_path)


def ledger(web: Web) -> list[str]:
    return [event["id"] for event in web.events()]


def heard(*subscribers: Process) -> list[str]:
    return [line for each in subscribers for line in each.output().splitlines() if line.startswith("evt_")]


@pytest.mark.parametrize("recipe", ["subscriber.py", "subscriber.mjs"])
def test_a_subscriber_that_was_away_has_exactly_the_ledger(web: Web, kitchen: Kitchen, recipe: str) -> None:
    web.ended(20)
    first = kitchen.start(recipe, REDIS_URL=web.settings.redis_url)
    first.wait_until(lambda: heard(first) == ledger(web), "what was there before it")
    web.ended(5)  # sooner than the next look that it would take by itself
    first.wait_until(lambda: heard(first) == ledger(web), "what it was woken for")
    first.kill()
    web.ended(150)
    second = kitchen.start(recipe, REDIS_URL=web.settings.redis_url)
    web.ended(20)
    second.wait_until(lambda: len({*heard(first, second)}) == len(ledger(web)), "what happened meanwhile")
    assert heard(first, second) == ledger(web)
    assert len(ledger(web)) == 390


@pytest.mark.parametrize("recipe", ["subscriber.py", "subscriber.mjs"])
def test_a_subscriber_is_told_that_the_stream_has_let_go_of_events(web: Web, kitchen: Kitchen, recipe: str) -> None:
    web.ended(5)
    web.redis.xtrim(web.key("stream"), maxlen=3, approximate=False)
    subscriber = kitchen.start(recipe, REDIS_URL=web.settings.redis_url)
    assert subscriber.wait() == 1
    assert "are gone" in subscriber.output()
    assert heard(subscriber) == []


def test_workers_of_a_group_share_what_there_is_and_what_the_dead_left(web: Web, kitchen: Kitchen) -> None:
    env = {"REDIS_URL": web.settings.redis_url, "DEAD_AFTER_MS": "300"}
    workers = [kitchen.start("worker.py", **env) for _ in range(3)]
    web.ended(30)
    workers[0].kill()  # while it may have some in its hands
    consumer = "of the dead"
    eventually(lambda: web.redis.exists(web.key("stream")), "the stream")
    web.ended(5)
    web.redis.xreadgroup("shop", consumer, {web.key("stream"): ">"}, count=3)
    web.ended(30)
    eventually(lambda: set(heard(*workers)) == set(ledger(web)), "everything")
    eventually(lambda: web.redis.xpending(web.key("stream"), "shop")["pending"] == 0, "nothing in anybody's hands")
    assert all(heard(worker) for worker in workers[1:])


@pytest.mark.parametrize("recipe", ["receiver.py", "receiver.mjs"])
async def test_a_receiver_takes_what_is_ours_and_nothing_else(web: Web, kitchen: Kitchen, recipe: str) -> None:
    port = free_port()
    async with opened(web.settings) as deployment, notify.client(allow_private_networks=True) as http:
        endpoints = Endpoints(deployment.redis, deployment.store, deployment.settings)
        now, url = await deployment.store.now_ms(), f"http://127.0.0.1:{port}/hooks"
        endpoint = Endpoint(id=new_id("ep", now), url=url, created_at=datetime.now(UTC))
        receiver = kitchen.start(recipe, str(port), SECRET=await endpoints.add(endpoint))
        receiver.wait_until(lambda: listening(port), "its start")
        await asyncio.to_thread(web.ended, 5)
        await Notifier(deployment, http, asyncio.Event()).deliver(endpoint.id)
        assert sorted(heard(receiver)) == sorted(ledger(web))
        forged = notify.signature(["whsec_AAAA"], "evt_forged", int(datetime.now(UTC).timestamp()), b"{}")
        assert (await http.post(url, content=b"{}", headers=forged)).status_code == 401
