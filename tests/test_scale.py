"""Many processes do what one of each does; `make scale` shows it with ten thousand jobs."""

from __future__ import annotations

from pathlib import Path

import redis

from tests.scale import MANY, ONE, run
from tests.support.processes import eventually
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


def test_a_cluster_takes_no_commit_and_nothing_is_acknowledged(tmp_path: Path) -> None:
    """As docs/deploying.md says: one step writes keys of many slots, with one shard too."""
    with (
        valkey_server(tmp_path, config={"cluster-enabled": "yes"}) as server,
        redis.Redis.from_url(server.url) as client,
    ):
        client.execute_command("CLUSTER ADDSLOTSRANGE 0 16383")
        eventually(lambda: "ok" in str(client.execute_command("CLUSTER INFO")["cluster_state"]), "the cluster")
        with web_process(tmp_path, {"REDIS_URL": server.url, **CREDENTIALS}) as web:
            answer = web.api.post("/v1/jobs", json={"vendor": "kitta"})
            assert (answer.status_code, "retry-after" in answer.headers) == (503, True)
        assert list(client.scan_iter("*:job:*")) == []
