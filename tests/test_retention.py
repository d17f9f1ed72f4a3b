"""What has ended is forgotten when its time has come, with everything that pointed to it; what is alive is not."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Final, cast

import pytest

from service.deployment import Deployment, opened
from service.jobs import scripts
from service.jobs.scripts import PARKED_SECONDS
from service.model import Archive, Observation, Output, Problem, Source, Status, first_id, new_id
from service.settings import SettingsError, load
from service.vendors import VENDORS
from tests.support.deployment import environment, settings
from workers import outbound
from workers.poller import Poller
from workers.vendor_client import VendorClient

DAY: Final = 86_400_000
VENDOR: Final = "lipsync_studio"
OUTPUT: Final = (Output(url="https://vendor.example/a.mp4"),)


@pytest.fixture
async def deployment(redis_url: str) -> AsyncIterator[Deployment]:
    async with opened(settings(redis_url, job_retention_days=30, raw_retention_days=7)) as made:
        yield made


async def job(deployment: Deployment, days_old: float, *facts: Observation) -> str:
    """A job made so many days ago, of which these facts are known."""
    job_id = new_id("job", await deployment.store.now_ms() - int(days_old * DAY))
    vendor_job_id = f'of "{job_id}" é'
    first = Observation(source=Source.SUBMIT, status=Status.QUEUED, vendor_job_id=vendor_job_id)
    await deployment.tracker.record(first, vendor=VENDOR, job_id=job_id, create=True)
    for fact in facts:
        await deployment.tracker.record(fact, vendor=VENDOR, job_id=job_id, raw=b'{"secret": "payload"}')
    return job_id


def said(status: Status) -> Observation:
    outputs = OUTPUT if status is Status.SUCCEEDED else None
    return Observation(source=Source.CALLBACK, status=status, outputs=outputs)


STORED: Final = Observation(source=Source.ARCHIVE, archive=Archive.STORED)
EXPIRED: Final = Observation(source=Source.DEADLINE, status=Status.EXPIRED)


async def retire(deployment: Deployment) -> None:
    """Turns of the poller until there is nothing more to forget."""
    async with outbound.client(allow_private_networks=True) as http:
        poller = Poller(deployment, VendorClient(deployment, http))
        while await poller.retire():
            pass


#: What is not about single jobs.
BESIDE: Final = {"costs", "stream", "indexes", "metrics", "processes", "counted"}


async def keys(deployment: Deployment) -> set[str]:
    found = {key.decode() async for key in deployment.redis.scan_iter("callsheet:*")}
    return {key for key in found if not set(key.split(":")) & BESIDE}


async def test_jobs_that_have_ended_are_forgotten_whole(deployment: Deployment) -> None:
    before = await keys(deployment)
    old = [
        await job(deployment, 31, said(Status.SUCCEEDED), STORED),
        await job(deployment, 400, said(Status.FAILED)),
        await job(deployment, 30.1, said(Status.CANCELLED)),
        await job(deployment, 40, EXPIRED),
    ]
    await retire(deployment)
    assert [await deployment.store.job(job_id) for job_id in old] == [None] * 4
    assert await keys(deployment) == before
    assert await deployment.store.jobs_json(100) == []


@pytest.mark.parametrize(
    ("days", "facts"),
    [
        (29.9, (said(Status.FAILED),)),
        (29.9, (said(Status.SUCCEEDED), STORED)),
        (400, ()),
        (400, (said(Status.PROCESSING),)),
        (400, (said(Status.SUCCEEDED),)),  # its outputs are still to be stored
    ],
)
async def test_what_is_young_or_not_over_stays(
    deployment: Deployment, days: float, facts: tuple[Observation, ...]
) -> None:
    job_id = await job(deployment, days, *facts)
    known = await deployment.store.job(job_id)
    await retire(deployment)
    assert await deployment.store.job(job_id) == known
    assert known is not None
    assert await deployment.store.find(VENDOR, known.vendor_job_id or "") == job_id


async def test_more_than_one_turn_forgets_is_forgotten_in_several(deployment: Deployment) -> None:
    old = [await job(deployment, 31, said(Status.FAILED)) for _ in range(230)]
    young = await job(deployment, 1, said(Status.FAILED))
    await retire(deployment)
    assert not any([await deployment.store.job(job_id) for job_id in old])
    assert len(await deployment.store.jobs_json(100)) == 1
    assert await deployment.store.job(young) is not None


async def test_payloads_go_before_the_rest(deployment: Deployment) -> None:
    job_id = await job(deployment, 0, said(Status.PROCESSING), said(Status.FAILED))
    store, redis = deployment.store, deployment.redis
    raw = store.key("raw", job_id)
    assert 6.9 * DAY < await redis.pttl(raw) <= 7 * DAY
    entries = [json.loads(entry) for entry in await store.timeline_json(job_id)]
    assert [entry.get("raw") for entry in entries] == [None, '{"secret": "payload"}', '{"secret": "payload"}']
    await redis.delete(raw)  # as its end does
    entries = [json.loads(entry) for entry in await store.timeline_json(job_id)]
    assert [entry.get("raw") for entry in entries] == [None] * 3
    late = Observation(source=Source.CALLBACK, problem=Problem.UNKNOWN_STATUS, detail="odd")
    await deployment.tracker.record(late, vendor=VENDOR, job_id=job_id, raw=b"late")
    entries = [json.loads(entry) for entry in await store.timeline_json(job_id)]
    assert [entry.get("raw") for entry in entries] == [None, None, None, "late"]


async def test_letters_are_forgotten_with_the_payloads(deployment: Deployment) -> None:
    store, redis = deployment.store, deployment.redis
    odd = Observation(source=Source.CALLBACK, problem=Problem.BAD_JSON)
    for body in (b"old", b"new"):
        await deployment.tracker.record(odd, vendor=VENDOR, quarantine=("shared", body))
    rows, _ = await store.quarantined(10)
    letters = {(await store.letter(row["id"].decode()) or {})["body"]: row["id"].decode() for row in rows}
    await redis.zadd(store.key("quarantine"), {letters[b"old"]: await store.now_ms() - 8 * DAY})
    await retire(deployment)
    left, _ = await store.quarantined(10)
    assert [row["id"].decode() for row in left] == [letters[b"new"]]
    assert not await redis.exists(store.key("quarantine", letters[b"old"]))


@pytest.fixture
async def small(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Deployment]:
    """A deployment in which strangers fill what they can fill by a few callbacks."""
    monkeypatch.setattr(scripts, "KEPT_BYTES", 20_000)
    async with opened(settings(redis_url)) as made:
        yield made


async def kept(deployment: Deployment, kind: str) -> tuple[list[str], dict[str, int]]:
    """What is kept of a kind, oldest first, and the bytes that it is believed to take; '' for all."""
    found = cast("list[bytes]", await deployment.redis.zrange(deployment.store.key(kind), 0, -1))
    sizes = cast("dict[bytes, bytes]", await deployment.redis.hgetall(deployment.store.key("kept", kind)))
    return [name.decode() for name in found], {name.decode(): int(size) for name, size in sizes.items()}


async def test_letters_have_a_limit_in_all_and_the_oldest_makes_room(
    small: Deployment, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = Observation(source=Source.CALLBACK, problem=Problem.BAD_JSON)
    for number in range(40):
        await small.tracker.record(odd, vendor=VENDOR, quarantine=("shared", b"%d" % number))
    names, sizes = await kept(small, "quarantine")
    assert 10 < len(names) < 20
    assert sizes.pop("") == sum(sizes.values()) <= 20_000
    assert (await small.store.letter(names[-1]) or {})["body"] == b"39"
    assert len(await small.redis.keys(small.store.key("quarantine", "*"))) == len(names) == len(sizes)
    await small.store.release(names[0])
    assert (await kept(small, "quarantine"))[0] == names[1:]
    await retire(small)
    assert f"quarantine={40 - len(names)}" in capsys.readouterr().out
    await retire(small)
    assert "crowd" not in capsys.readouterr().out


async def test_parked_facts_have_a_limit_in_all_and_the_oldest_make_room(small: Deployment) -> None:
    for number in range(60):
        seen = Observation(source=Source.CALLBACK, status=Status.PROCESSING, vendor_job_id=f"v-{number % 30}")
        assert (await small.tracker.record(seen, vendor=VENDOR, raw=b"x" * 200)).outcome == "parked"
    names, sizes = await kept(small, "parked")
    assert names[-1] == f"{VENDOR}:v-29"
    assert 3 < len(names) < 20
    assert sizes.pop("") == sum(sizes.values()) <= 20_000
    assert len(await small.redis.keys(small.store.key("parked", "*"))) == len(names)
    assert await small.store.crowded_out() == {"parked": 60 - len(names)}

    job_id = new_id("job", await small.store.now_ms())
    first = Observation(source=Source.SUBMIT, status=Status.QUEUED, vendor_job_id="v-29")
    await small.tracker.record(first, vendor=VENDOR, job_id=job_id, create=True)
    job = await small.store.job(job_id)
    assert job is not None
    assert job.status is Status.PROCESSING
    assert (await kept(small, "parked"))[0] == names[:-1]

    old = await small.store.now_ms() - (PARKED_SECONDS + 60) * 1000
    await small.redis.zadd(small.store.key("parked"), dict.fromkeys(names[:-1], old))
    await retire(small)
    assert await kept(small, "parked") == ([], {"": 0})
    assert await small.redis.keys(small.store.key("parked", "*")) == []


def test_a_first_id_parts_the_ids_by_time() -> None:
    ids = [new_id("job", ms) for ms in (1_700_000_000_000, 1_700_000_000_001)]
    assert ids[0] < first_id("job", 1_700_000_000_001) < ids[1]


def test_a_job_cannot_be_forgotten_before_its_deadline(redis_url: str) -> None:
    told = environment(settings(redis_url)) | {"JOB_RETENTION_DAYS": "2", "JOB_DEADLINE_SECONDS": "200000"}
    with pytest.raises(SettingsError, match="JOB_RETENTION_DAYS"):
        load(VENDORS.values(), told)
