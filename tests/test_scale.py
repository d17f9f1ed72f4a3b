"""Many processes do what one of each does; `make scale` shows it with ten thousand jobs."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import redis

from tests.scale import MANY, ONE, run
from tests.support import deployment
from tests.support.processes import BIN, environment, eventually, free_port
from tests.support.servers import valkey_server
from tests.support.web import CREDENTIALS, web_process

JOBS = 24


def test_many_processes_have_the_ledger_of_one_of_each(tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "many"]
    for folder in folders:
        folder.mkdir()
    one, many = (run(folder, JOBS, processes) for folder, processes in zip(folders, (ONE, MANY), strict=True))
    assert one.findings == many.findings == []
    assert one.ledger == many.ledger
    assert len(one.ledger) == JOBS


@contextlib.contextmanager
def cluster(folder: Path, shards: int) -> Iterator[tuple[str, list[redis.Redis]]]:
    """One of so many servers, which have an equal part of the slots each: the first one's URL, and clients of all."""
    with contextlib.ExitStack() as stack:
        urls, clients = list[str](), list[redis.Redis]()
        for shard in range(shards):
            (data := folder / str(shard)).mkdir()
            config = {"cluster-enabled": "yes", "cluster-port": str(free_port())}
            server = stack.enter_context(valkey_server(data, config=config))
            urls.append(server.url)
            clients.append(stack.enter_context(redis.Redis.from_url(server.url, decode_responses=True)))
            clients[0].cluster("MEET", "127.0.0.1", server.port, config["cluster-port"])
            first, behind = (16384 * edge // shards for edge in (shard, shard + 1))
            clients[-1].cluster("ADDSLOTSRANGE", first, behind - 1)
        states = [partial(client.cluster, "INFO") for client in clients]
        eventually(lambda: all(state()["cluster_state"] == "ok" for state in states), "the cluster")
        yield urls[0], clients


@pytest.mark.parametrize("shards", [1, 3])
def test_a_cluster_takes_no_commit_and_nothing_is_acknowledged(tmp_path: Path, shards: int) -> None:
    """As docs/deploying.md says: one step writes keys of many slots, with one shard too."""
    with cluster(tmp_path, shards) as (url, clients), web_process(tmp_path, {"REDIS_URL": url, **CREDENTIALS}) as web:
        job = web.api.post("/v1/jobs", json={"vendor": "kitta"})
        callback = web.callback(web.shared_url("apimodels"), {"task_id": "t1", "status": "failed"})
        assert [(one.status_code, "retry-after" in one.headers) for one in (job, callback)] == [(503, True)] * 2
        assert [key for client in clients for key in client.scan_iter("*:job:*")] == []
        env = environment(deployment.environment(web.settings))
        doctor = subprocess.run([BIN / "callsheet", "doctor", "--json"], env=env, stdout=subprocess.PIPE, check=False)
    wrong = [finding["about"] for finding in json.loads(doctor.stdout) if finding["level"] == "error"]
    assert "Redis Cluster" in wrong
    assert "Redis" not in wrong, "it answers, only not for others"
