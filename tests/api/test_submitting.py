"""Submitting: one request for any vendor, answered before the vendor hears of it, and nothing secret follows."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any, Final, cast

import pytest
from rq.job import Job as RQJob
from rq.serializers import JSONSerializer

from service.jobs.tasks import PATIENCE
from service.model import Job, Observation, Output, Source, Status
from service.vendors import VENDORS
from service.vendors.catalogue import takers
from tests.support import state
from tests.support.api import (
    AUDIO,
    FACE,
    FILES,
    IMAGE,
    TEXT,
    TWO,
    VIDEO,
    keyed,
    line,
    noted,
    nothing_written,
    problem,
    submit,
)
from tests.support.callbacks import mac_of
from tests.support.web import Web

#: Requests without a vendor, as JSON.
INPUTS: Final[dict[str, dict[str, Any]]] = {
    "video and voice": VIDEO | AUDIO,
    "with durations": VIDEO | AUDIO | {"duration_seconds": 8, "video_duration_seconds": 9.5},
    "image and voice": IMAGE | AUDIO,
    "image and voice, with a duration": IMAGE | AUDIO | {"duration_seconds": 3.5},
    "image and two voices": IMAGE | TWO,
    "video and text": VIDEO | TEXT,
    "video alone": VIDEO,
}


# -- accepted -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("vendor", "model", "input_", "cost"),
    [
        ("lipsync_studio", "lipsync-video", VIDEO | AUDIO | {"duration_seconds": 8}, (16, "credits")),
        ("lipsync_studio", "lipsync-video", VIDEO | AUDIO, (None, "credits")),
        ("kitta", "kitta-lip-sync-v1", VIDEO | AUDIO | {"duration_seconds": 8}, (None, "credits")),
        ("chanjing", "basic", VIDEO | AUDIO | {"duration_seconds": 8}, (8, "beans")),
        ("apimodels", "kling-advanced-lip-sync", VIDEO | AUDIO | {"duration_seconds": 8}, (0.0133, "USD")),
        ("apimodels", "kling-advanced-lip-sync", VIDEO | AUDIO, (None, "USD")),
        ("apimodels", "kling-identify-face", VIDEO, (0.0007, "USD")),
    ],
)
def test_a_submission_is_answered_with_the_job_before_its_vendor_hears_of_it(
    web: Web, vendor: str, model: str, input_: dict[str, Any], cost: tuple[float | None, str]
) -> None:
    body = {"vendor": vendor, "input": input_, "model": model, "metadata": {"shot": 7, "take": {"n": [1, "二"]}}}
    answer = web.api.post("/v1/jobs", json=body)
    assert answer.status_code == 202
    job = answer.json()
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
    assert answer.headers["cache-control"] == "no-store"
    assert job.pop("callback_url").startswith(f"{web.url}/callbacks/{vendor}/{job['id']}.")
    assert set(job) == set(Job.__struct_fields__)
    assert (job["vendor"], job["model"], job["status"], job["archive"]) == (vendor, model, "pending", "none")
    assert (job["vendor_job_id"], job["submitted_at"], job["scheduled_at"]) == (None, None, None)
    assert job["cost"] == {"estimated": cost[0], "charged": None, "unit": cost[1]}
    assert job["metadata"] == body["metadata"]
    assert job["created_at"] < job["expires_at"]
    assert web.api.get(answer.headers["location"]).json() == job
    assert web.events() == [], "nobody hears of it before the vendor has it"
    [entry] = web.timeline(job["id"])
    assert (entry["source"], entry["status"], entry["applied"]) == ("submit", None, True)
    assert model in entry["detail"]


def test_the_timeline_tells_that_another_of_the_vendors_jobs_comes_before(web: Web) -> None:
    [one], [two] = (
        web.timeline(submit(web, "apimodels", input_, **more)["id"])
        for input_, more in ((VIDEO | AUDIO, {}), (AUDIO, {"vendor_input": FACE}))
    )
    assert one["detail"] == "accepted for kling-advanced-lip-sync, after kling-identify-face"
    assert two["detail"] == "accepted for kling-advanced-lip-sync"


@pytest.mark.parametrize("vendor", list(VENDORS))
def test_the_task_that_sends_the_job_is_on_its_queue(web: Web, vendor: str) -> None:
    jobs = [submit(web, vendor, VIDEO | AUDIO) for _ in range(3)]
    rq_ids = [f"submit-{job['id']}" for job in jobs]
    assert line(web) == rq_ids
    assert {rq_id: PATIENCE - 5 < wait <= PATIENCE for rq_id, wait in noted(web).items()} == dict.fromkeys(rq_ids, True)
    for job, rq_id in zip(jobs, rq_ids, strict=True):
        task = RQJob.fetch(rq_id, connection=web.redis, serializer=JSONSerializer)
        assert (task.func_name, list(task.args)) == ("workers.submit.send_order", [job["id"]])
        assert task.origin == f"{web.settings.key_prefix}-submit"


def test_the_row_and_its_task_are_one_commit(web: Web) -> None:
    """All that is written of a submission is written by one run of one script."""
    submit(web, "chanjing", {}, vendor_input=FILES)  # Redis knows the scripts from now on
    reads = {"HGETALL", "HGET", "HMGET", "EXISTS", "TIME", "ZCARD", "ZRANGE", "LINDEX", "LLEN", "GET"}
    with web.redis.monitor() as monitor:  # type: ignore[no-untyped-call]
        job = web.api.post(
            "/v1/jobs",
            json={"vendor": "chanjing", "input": {}, "vendor_input": FILES},
            headers={"Idempotency-Key": "order-1"},
        ).json()
        web.redis.echo("the end")
        runs: list[list[str]] = []
        for said in monitor.listen():
            words = said["command"].split(" ")
            if "the end" in said["command"]:
                break
            if said["client_type"] != "lua":
                assert words[0].upper() in {"HELLO", "CLIENT", "PING", "TIME", "EVALSHA"}, said
                runs.append([])
            elif words[0].upper() not in reads:
                runs[-1].append(" ".join(words[:2]))
    [written] = [run for run in runs if run]
    rq_id = f"submit-{job['id']}"
    for command in (
        f"HSET callsheet:job:{job['id']}",
        f"RPUSH callsheet:timeline:{job['id']}",
        f"HSET rq:job:{rq_id}",
        "RPUSH rq:queue:callsheet-submit",
        "ZADD callsheet:tasks",
        "ZADD callsheet:turns:chanjing",
        "SET callsheet:idempotency:studio:order-1",
    ):
        assert command in written


def test_what_was_asked_for_is_kept_as_it_was_accepted(web: Web) -> None:
    job = submit(web, "chanjing", VIDEO | TEXT | {"duration_seconds": None}, vendor_input={"speed": 1.5, "volume": 7})
    order = json.loads(cast("bytes", web.redis.hget(web.key("job", job["id"]), "_order")))
    assert order == {
        "model": "basic",
        "input": VIDEO | TEXT,
        "vendor_input": {"speed": 1.5, "volume": 7},
        "step": None,
    }


# -- one request, any vendor ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "vendor"),
    [(name, vendor) for name, input_ in INPUTS.items() for vendor in dict(takers(input_))],
)
def test_a_request_moves_to_another_vendor_by_one_word(web: Web, name: str, vendor: str) -> None:
    models = [model for slug, model in takers(INPUTS[name]) if slug == vendor]
    job = submit(web, vendor, INPUTS[name], metadata={"shot": 7})
    assert (job["vendor"], job["model"], job["status"]) == (vendor, models[0], "pending")
    for model in models:
        assert submit(web, vendor, INPUTS[name], model=model)["model"] == model


@pytest.mark.parametrize(
    ("name", "vendor"),
    [(name, vendor) for name, input_ in INPUTS.items() for vendor in VENDORS if vendor not in dict(takers(input_))],
)
def test_a_vendor_that_cannot_do_it_says_who_could(web: Web, name: str, vendor: str) -> None:
    answer = problem(web.api.post("/v1/jobs", json={"vendor": vendor, "input": INPUTS[name]}), 422)
    assert [(taker["vendor"], taker["model"]) for taker in answer["could_take"]] == takers(INPUTS[name])
    assert nothing_written(web)


def test_all_four_vendors_take_the_same_request(web: Web) -> None:
    assert {vendor: submit(web, vendor, VIDEO | AUDIO)["model"] for vendor in VENDORS} == {
        "lipsync_studio": "lipsync-video",
        "kitta": "kitta-lip-sync-v1",
        "chanjing": "basic",
        "apimodels": "kling-advanced-lip-sync",
    }
    assert len(line(web)) == 4


@pytest.mark.parametrize(
    ("vendor", "input_", "own", "model"),
    [
        ("lipsync_studio", IMAGE | AUDIO, {}, "lipsync-image"),
        ("lipsync_studio", IMAGE | TWO, {}, "lipsync-image-multi"),
        ("lipsync_studio", IMAGE | TWO, {"order": "left_right"}, "lipsync-image-multi"),
        ("kitta", IMAGE | AUDIO, {}, "kitta-lip-sync-v1"),
        ("chanjing", VIDEO | TEXT, {}, "basic"),
        ("chanjing", {}, FILES, "basic"),
        ("apimodels", VIDEO, {}, "kling-identify-face"),
        ("apimodels", VIDEO | AUDIO, {"face": "largest"}, "kling-advanced-lip-sync"),
        ("apimodels", AUDIO, FACE, "kling-advanced-lip-sync"),
    ],
)
@pytest.mark.parametrize("unnamed", [{}, {"model": None}], ids=["without a model", "with null for it"])
def test_a_model_that_is_not_named_is_chosen(
    web: Web, vendor: str, input_: dict[str, Any], own: dict[str, Any], model: str, unnamed: dict[str, Any]
) -> None:
    assert submit(web, vendor, input_, vendor_input=own, **unnamed)["model"] == model


def test_either_input_makes_a_request_a_submission(web: Web) -> None:
    answer = web.api.post("/v1/jobs", json={"vendor": "chanjing", "vendor_input": FILES})
    assert (answer.status_code, answer.json()["model"]) == (202, "basic")
    assert web.api.post("/v1/jobs", json={"vendor": "chanjing"}).status_code == 201, "without, it is tracked"
    assert len(line(web)) == 1


# -- a vendor that takes only so many a minute ----------------------------------------------------------

#: The limit is 10 in 60 s; there is a little air in it.
MINUTE: Final = range(60_000, 63_001)


def turn(job: dict[str, Any]) -> int:
    """In how many milliseconds, counted from its creation, a job is expected to be sent."""
    if job["scheduled_at"] is None:
        return 0
    waits = datetime.fromisoformat(job["scheduled_at"]) - datetime.fromisoformat(job["created_at"])
    return round(waits.total_seconds() * 1000)


def test_jobs_are_told_when_their_turn_should_come(web: Web) -> None:
    jobs = [submit(web, "chanjing", {}, vendor_input=FILES) for _ in range(25)]
    assert [job["scheduled_at"] for job in jobs[:10]] == [None] * 10
    turns = [datetime.fromisoformat(job["scheduled_at"] or job["created_at"]) for job in jobs]
    assert turns == sorted(turns)
    for earlier, later in zip(turns, turns[10:], strict=False):  # no minute holds more than ten
        assert round((later - earlier).total_seconds() * 1000) in MINUTE
    assert [web.job(job["id"])["scheduled_at"] for job in jobs] == [job["scheduled_at"] for job in jobs]


def test_jobs_that_come_together_get_turns_by_tens(web: Web) -> None:
    with ThreadPoolExecutor(25) as pool:
        jobs = list(pool.map(lambda _: submit(web, "chanjing", {}, vendor_input=FILES), range(25)))
    minutes = sorted(round(turn(job) / 61_400) for job in jobs)
    assert minutes == [0] * 10 + [1] * 10 + [2] * 5
    assert sum(job["scheduled_at"] is None for job in jobs) == 10
    waiting = web.redis.zrange(web.key("turns", "chanjing"), 0, -1, withscores=True)
    scores = [at for _, at in cast("list[tuple[bytes, float]]", waiting)]
    assert len(scores) == 25
    assert all(later - earlier in MINUTE for earlier, later in zip(scores, scores[10:], strict=False))


@pytest.mark.parametrize(
    ("input_", "own"),
    [(VIDEO | AUDIO, {}), (VIDEO | TEXT, {}), (AUDIO, {"video_file_id": "v"}), (VIDEO, {"audio_file_id": "a"})],
)
def test_a_job_that_needs_uploads_first_has_no_turn_yet(web: Web, input_: dict[str, Any], own: dict[str, Any]) -> None:
    jobs = [submit(web, "chanjing", input_, vendor_input=own) for _ in range(12)]
    assert {job["scheduled_at"] for job in jobs} == {None}
    assert web.redis.zcard(web.key("turns", "chanjing")) == 0
    assert submit(web, "chanjing", {}, vendor_input=FILES)["scheduled_at"] is None, "and nobody waits for it"


def test_there_is_no_line_for_a_vendor_without_a_limit(web: Web) -> None:
    jobs = [submit(web, "kitta", VIDEO | AUDIO) for _ in range(12)]
    assert {job["scheduled_at"] for job in jobs} == {None}
    assert web.redis.keys(web.key("turns", "*")) == []


SIGNED: Final = "X-Signature=presigned-secret-of-the-bucket"


def test_neither_the_callback_url_nor_the_input_gets_out(web: Web) -> None:
    """The token in the one and the signature in the other let whoever holds them in."""
    input_ = {name: f"{url}?{SIGNED}" for name, url in (VIDEO | AUDIO).items()}
    request = {"vendor": "apimodels", "input": input_, "metadata": {"shot": 7}}
    with web.redis.pubsub() as listener:  # type: ignore[no-untyped-call]
        listener.psubscribe("*")
        made = web.api.post("/v1/jobs", json=request, headers=keyed())
        job, path = made.json(), f"/v1/jobs/{made.json()['id']}"
        secret = mac_of(job["callback_url"])
        spoilt = [
            request | {"input": input_ | {"text": input_["video_url"]}},
            request | {"input": input_ | {"audio_url": f"ftp://x?{SIGNED}"}},
            request | {"vendor": "kitta", "vendor_input": {"face": f"x?{SIGNED}"}},
            request | {"model": "kling-3"},
        ]
        answers = [made, web.api.post("/v1/jobs", json=request, headers=keyed())]
        answers += [web.api.post("/v1/jobs", json=body, headers=keyed()) for body in spoilt]
        answers.append(web.api.post("/v1/jobs", json=request | {"metadata": {}}, headers=keyed()))
        answers.append(web.api.post(f"{path}/resolve", json={"action": "fail"}))
        sent = Observation(source=Source.SUBMIT, status=Status.UNCONFIRMED)
        web.record(sent, vendor="apimodels", job_id=job["id"], sending="sending-1")
        answers.append(web.api.post(f"{path}/refresh"))
        answers.append(web.api.post(f"{path}/resolve", json={"action": "adopt", "vendor_job_id": "task-0"}))
        for seen in (
            Observation(source=Source.POLL, status=Status.SUCCEEDED, vendor_job_id="task-0", result={"face_list": []}),
            Observation(source=Source.SUBMIT, status=Status.QUEUED, vendor_job_id="task-1"),
            Observation(
                source=Source.POLL, status=Status.SUCCEEDED, outputs=(Output(url="https://cdn.example/1.mp4"),)
            ),
        ):
            assert web.record(seen, vendor="apimodels", job_id=job["id"]).outcome == "apply"
        answers += [
            web.api.get(url)
            for url in (path, "/v1/jobs", f"{path}/timeline", f"{path}/outputs/0", "/v1/costs", "/v1/vendors")
        ]
        answers.append(web.api.patch(path, json={"metadata": {"take": 1}}))
        heard = []
        while message := listener.get_message():
            heard.append(str(message["data"]))
    assert len([message for message in heard if "job.succeeded" in message]) == 2
    assert [answer.status_code for answer in answers[:2]] == [202, 202]
    said = [answer.text + str(answer.headers) for answer in answers]
    assert [SIGNED in text for text in said] == [False] * len(said)
    assert [secret in text for text in said] == [True, True] + [False] * (len(said) - 2)
    for kept in (*heard, *map(str, web.events()), web.process.output()):
        assert secret not in kept
        assert SIGNED not in kept
    assert state.holding(web.redis, SIGNED) == {web.key("job", job["id"])}
    assert state.holding(web.redis, secret) == set()
