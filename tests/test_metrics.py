"""What is counted, whoever counted it and however it ended: real processes, a real Valkey, Prometheus' own reader."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import pytest
from msgspec.structs import replace
from prometheus_client.parser import text_string_to_metric_families
from redis import RedisError

from service import metrics
from service.deployment import Deployment, opened
from service.model import Observation, Output, Problem, Source, Status, new_id
from tests.support.deployment import environment, settings
from tests.support.processes import BIN, Processes
from tests.support.sandbox import Sandbox
from tests.support.servers import valkey_server
from tests.support.submissions import FACE, VOICE, faulty, start_worker, web_of
from tests.support.web import Web, web_process

#: Longer than a process keeps its counts to itself.
SOON: Final = 4 * metrics.EVERY


def scraped(web: Web) -> dict[str, float]:
    """Every sample, read as Prometheus reads it and named as it names them."""
    answer = web.api.get("/metrics")
    assert answer.status_code == 200, answer.text
    samples = [sample for family in text_string_to_metric_families(answer.text) for sample in family.samples]
    found = {sample.name + metrics._labels(sample.labels): sample.value for sample in samples}
    assert len(found) == len(samples)
    return found


def counted(web: Web, wanted: Mapping[str, float]) -> dict[str, float]:
    """The samples once they have reached what is wanted of them; labels beside those that are named are anything."""
    answers: list[dict[str, float]] = []

    def all_there() -> bool:
        answers.append(scraped(web))
        return all(total(answers[-1], name) >= value for name, value in wanted.items())

    web.process.wait_until(all_there, f"{dict(wanted)}", timeout=SOON)
    return answers[-1]


def total(samples: Mapping[str, float], name: str) -> float:
    """The sum over all samples that begin so: a name, or a name and its first labels."""
    return sum(value for sample, value in samples.items() if sample.partition("}")[0].startswith(name.rstrip("}")))


# -- counting -------------------------------------------------------------------------------------------


async def test_a_sending_whose_answer_was_lost_counts_once(deployment: Deployment) -> None:
    store, sums = deployment.store, deployment.sums
    for number, amount in ((1, 2.0), (1, 2.0), (2, 0.5), (1, 2.0), (2, 0.5)):
        await sums.add("web:one", number, {"callsheet_ack_seconds_sum": amount})
    await sums.add("web:two", 1, {"callsheet_ack_seconds_sum": 1.0, 'x{vendor="kitta"}': 3})
    assert await sums.counts() == {"callsheet_ack_seconds_sum": 3.5, 'x{vendor="kitta"}': 3.0}
    hour = datetime.fromtimestamp(await store.now_ms() / 1000, UTC).strftime("%Y-%m-%dT%H")
    assert await sums.counts(hour) == await sums.counts()
    assert await sums.counts("2020-01-01T00") == {}
    ttl = await deployment.redis.ttl(store.key("metrics", hour))
    assert 7 * 86_400 < ttl <= 8 * 86_400


async def test_what_could_not_be_sent_is_sent_later_and_only_that(tmp_path: Path) -> None:
    with valkey_server(tmp_path, config={"appendonly": "no"}) as server:
        made = settings(server.url)
        async with Deployment(made).opened("web") as deployment:
            counts = metrics.Counts("web", deployment.sums.add)
            metrics.swept.inc(3)
            server.process.kill()
            with pytest.raises(RedisError):
                await counts.send()
            metrics.swept.inc(4)
            with valkey_server(tmp_path, port=server.port, config={"appendonly": "no"}):
                await counts.send()
                await counts.send()
                assert await deployment.sums.counts() == {"callsheet_swept_total": 7.0}


ENDS: Final = {
    "by callback": ([Observation(source=Source.CALLBACK, status=Status.SUCCEEDED)], "callback"),
    "by callback, twice": ([Observation(source=Source.CALLBACK, status=Status.FAILED)] * 2, "callback"),
    "by poll": ([Observation(source=Source.POLL, status=Status.SUCCEEDED)], "poll"),
    "by poll after a callback": (
        [
            Observation(source=Source.CALLBACK, status=Status.CANCELLED),
            Observation(source=Source.POLL, status=Status.CANCELLED),
        ],
        "callback",
    ),
    "by the deadline": ([Observation(source=Source.DEADLINE, status=Status.EXPIRED)], "deadline"),
    "not yet": (
        [
            Observation(source=Source.CALLBACK, status=Status.PROCESSING),
            Observation(source=Source.CALLBACK, problem=Problem.BAD_JSON),
        ],
        None,
    ),
}


@pytest.mark.parametrize("how", list(ENDS))
@pytest.mark.parametrize("parked", [False, True])
async def test_an_end_is_counted_once_by_who_told_first(deployment: Deployment, how: str, parked: bool) -> None:
    facts, source = ENDS[how]
    before, tracker, job_id = metrics._samples(), deployment.tracker, new_id("job", await deployment.store.now_ms())
    made = Observation(source=Source.SUBMIT, status=Status.QUEUED, vendor_job_id="v1")
    if not parked:
        await tracker.record(made, vendor="kitta", job_id=job_id, create=True)
    for fact in facts:
        end = datetime.now(UTC) - timedelta(seconds=100) if fact.source is Source.POLL else None
        await tracker.record(replace(fact, vendor_job_id="v1", completed_at=end), vendor="kitta")
    if parked:
        await tracker.record(made, vendor="kitta", job_id=job_id, create=True)
    added = {name: value - before.get(name, 0) for name, value in metrics._samples().items()}
    ended = {name: value for name, value in added.items() if name.startswith("callsheet_verdicts_total") and value}
    labels = f'vendor="kitta",status="{facts[0].status}",source="{source}"'
    assert ended == ({f"callsheet_verdicts_total{{{labels}}}": 1.0} if source else {})
    assert total(added, "callsheet_job_seconds_count") == len(ended)
    recovered = total(added, 'callsheet_recovery_seconds_count{vendor="kitta",source="poll"}')
    late = total(added, "callsheet_recovery_seconds_sum")
    assert (recovered == 1 and 100 <= late < 110) if source == "poll" and not parked else recovered == late == 0


# -- all processes as one ----------------------------------------------------------------------------------


def test_every_process_is_in_the_sums_and_none_of_it_is_lost_when_it_stops(
    processes: Processes, sandbox: Sandbox, redis_url: str, tmp_path: Path
) -> None:
    with web_of(tmp_path, redis_url, sandbox.accounts()) as web:
        rest = replace(web.settings, poll_grace=0.1)
        worker = start_worker(processes, rest)
        poller = processes.start("poller", [BIN / "python", "-m", "workers.poller"], env=environment(rest))
        web.api.post("/v1/endpoints", json={"url": "http://127.0.0.1:9/"}).raise_for_status()
        for vendor, fault in (("lipsync_studio", "callback_doubled"), ("kitta", "callback_lost")):
            given = {"video_url": faulty(FACE, fault), "audio_url": VOICE}
            web.api.post("/v1/jobs", json={"vendor": vendor, "input": given}).raise_for_status()
        found = counted(
            web,
            {
                'callsheet_callbacks_total{vendor="lipsync_studio"': 2,
                'callsheet_verdicts_total{vendor="lipsync_studio",status="succeeded"': 1,
                'callsheet_verdicts_total{vendor="kitta",status="succeeded",source="poll"}': 1,
                'callsheet_submissions_total{vendor="kitta",outcome="taken"}': 1,
                'callsheet_archives_total{vendor="kitta",outcome="stored"}': 1,
                'callsheet_archives_total{vendor="lipsync_studio",outcome="stored"}': 1,
                'callsheet_polls_total{vendor="kitta",outcome="apply"}': 1,
                'callsheet_deliveries_total{outcome="again"}': 1,
                'callsheet_processes{part="worker"}': 1,
                'callsheet_processes{part="poller"}': 1,
            },
        )
        assert total(found, "callsheet_verdicts_total") == 2
        assert total(found, "callsheet_ack_seconds_count") >= 2
        jobs = web.api.get("/v1/jobs").json()["data"]
        stored = sum(output["stored"]["bytes"] for job in jobs for output in job["outputs"])
        assert total(found, "callsheet_archive_bytes_total") == stored > 0
        assert (worker.stop(), poller.stop()) == (0, 0)
        before = scraped(web)
        web.callback(web.shared_url("kitta"), b"{")
    with web_process(tmp_path, {"REDIS_URL": redis_url}) as again:
        after = scraped(again)  # of a process that has counted nothing yet
        name = 'callsheet_quarantined_total{vendor="kitta",problem="bad_json"}'
        assert after[name] == before.get(name, 0) + 1, "the web process was stopped within the five seconds"
        assert all(after[name] >= value for name, value in before.items() if "_total" in name)


# -- what is told ------------------------------------------------------------------------------------------


def test_no_stranger_makes_a_label_or_reads_a_secret(web: Web) -> None:
    job = web.track("kitta", vendor_job_id="v1")
    for url in (
        job["callback_url"].replace("kitta", 'kit"ta'),
        f"{web.url}/callbacks/nobody/x.y",
        job["callback_url"] + "x",
    ):
        assert web.callback(url, {}).status_code == 404
    assert web.callback(job["callback_url"], b"{").status_code == 400
    counted(web, {'callsheet_callbacks_total{vendor="kitta",outcome="not_understood"}': 1})
    text = web.api.get("/metrics").text
    found = scraped(web)
    assert found['callsheet_callbacks_total{vendor="unknown",outcome="no_such_url"}'] >= 2
    assert {name for name in found if "nobody" in name or "kit\\" in name} == set()
    assert "callsheet_callbacks_total" in text
    assert job["id"] not in text
    assert job["callback_url"].rpartition(".")[2] not in text


def test_prometheus_own_linter_finds_nothing_wrong(web: Web) -> None:
    promtool = shutil.which("promtool")
    assert promtool, "promtool is in the Debian package prometheus"
    web.ended(3)
    text = web.api.get("/metrics").text
    ran = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout + ran.stderr) == (0, "")


@pytest.mark.parametrize(("headers", "status"), [({}, 401), ({"Authorization": "Bearer wrong"}, 401)])
def test_only_a_key_that_may_read_reads_them(web: Web, headers: dict[str, str], status: int) -> None:
    answer = web.http.get("/metrics", headers=headers)
    assert answer.status_code == status
    assert "callsheet_" not in answer.text


def test_a_key_that_may_only_submit_reads_none(tmp_path: Path, redis_url: str) -> None:
    keys = "reader:a-key-that-only-reads-things:read,sender:a-key-that-only-submits-jobs:submit"
    with web_process(tmp_path, {"REDIS_URL": redis_url, "API_KEYS": keys}) as web:
        for key, status in (("a-key-that-only-reads-things", 200), ("a-key-that-only-submits-jobs", 403)):
            assert web.http.get("/metrics", headers={"Authorization": f"Bearer {key}"}).status_code == status


async def test_how_things_stand(web: Web) -> None:
    assert {name.partition("{")[0] for name in await _gauges(web)} <= set(metrics.GAUGES)
    track = web.track("kitta", vendor_job_id="v1")
    web.track("chanjing", vendor_job_id="v2")
    success = Observation(
        source=Source.CALLBACK, status=Status.SUCCEEDED, outputs=(Output(url="https://cdn.example/1"),)
    )
    web.record(success, vendor="kitta", job_id=track["id"])
    web.callback(web.shared_url("kitta"), b"{")
    web.redis.zadd(web.key("polls", "chanjing"), {"job_a": 1, "job_b": 2e15})
    web.redis.zadd(web.key("deadlines"), {"job_a": 1})
    rq_job = "rq:job:archive-" + track["id"]
    an_hour_ago = datetime.now(UTC) - timedelta(hours=1)
    web.redis.hset(rq_job, "enqueued_at", an_hour_ago.strftime("%Y-%m-%dT%H:%M:%S.%fZ"))
    web.redis.hset(web.key("vendor", "kitta", "submit"), "retry_at", 1)
    web.redis.hset(web.key("routes"), mapping={"ep_1": "", "ep_2": ""})
    web.redis.hset(web.key("endpoints"), mapping={"ep_1": "", "ep_2": "", "ep_3": ""})
    web.redis.hset(web.key("state", "ep_2"), "retry_at", 1)
    web.redis.zadd(web.key("lanes", "ep_1"), {"a": 0, "b": 0})
    found = await _gauges(web)
    assert {name.partition("{")[0] for name in found} == set(metrics.GAUGES)
    oldest = found.pop('callsheet_queue_oldest_seconds{task="archive"}')
    assert 3600 <= oldest < 3660
    wanted = {
        'callsheet_queue_depth{task="archive"}': 1,
        'callsheet_queue_depth{task="submit"}': 0,
        'callsheet_jobs{vendor="kitta",status="succeeded",archive="waiting"}': 1,
        'callsheet_jobs{vendor="chanjing",status="queued",archive="none"}': 1,
        'callsheet_polls_due{vendor="chanjing"}': 1,
        'callsheet_polls_due{vendor="lipsync_studio"}': 0,
        'callsheet_vendor_unwell{vendor="kitta",kind="submit"}': 1,
        'callsheet_vendor_unwell{vendor="kitta",kind="read"}': 0,
        'callsheet_endpoints{state="well"}': 1,
        'callsheet_endpoints{state="failing"}': 1,
        'callsheet_endpoints{state="disabled"}': 1,
        "callsheet_deliveries_waiting": 2,
        "callsheet_deadlines_overdue": 1,
        "callsheet_quarantine": 1,
        "callsheet_tasks": 1,
    }
    assert {name: found[name] for name in wanted} == wanted
    assert found["callsheet_redis_memory_bytes"] > 2**20
    assert found['callsheet_poll_lag_seconds{vendor="chanjing"}'] > 1e9


async def _gauges(web: Web) -> dict[str, float]:
    async with opened(web.settings) as deployment:
        return await deployment.sums.gauges()
