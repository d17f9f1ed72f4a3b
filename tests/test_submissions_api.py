"""Submitting over the API: what is accepted, what is refused and how, what becomes of jobs that nobody answered for."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from types import MappingProxyType
from typing import Any, Final, cast

import httpx
import pytest
from rq.job import Job as RQJob
from rq.serializers import JSONSerializer

from service.api.jobs import MAX_METADATA
from service.api.problems import MAX_BODY
from service.jobs.tasks import PATIENCE
from service.model import MAX_DEPTH, Job, JobError, Observation, Output, Problem, Source, Status
from service.vendors import VENDORS
from service.vendors.catalogue import takers
from tests.support import state
from tests.support.web import API_KEY, OTHER_API_KEY, Web
from tests.test_api import NO_SUCH_JOB, bad_fields, everything, problem, secret_of

VIDEO: Final = {"video_url": "https://example.com/video.mp4"}
IMAGE: Final = {"image_url": "https://example.com/person.png"}
AUDIO: Final = {"audio_url": "https://example.com/voice.mp3"}
TEXT: Final = {"text": "你好", "voice": "C-1"}
TWO: Final = {"left_audio_url": "https://example.com/left.mp3", "right_audio_url": "https://example.com/right.mp3"}
FACE: Final = {"session_id": "session_abc123", "face_id": "face_001"}
FILES: Final = {"video_file_id": "file-v", "audio_file_id": "file-a"}

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


def submit(web: Web, vendor: str, input_: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """Submit a job; the answer, its `callback_url` included."""
    answer = web.api.post("/v1/jobs", json={"vendor": vendor, "input": input_, **fields})
    assert answer.status_code == 202, answer.text
    return dict(answer.json())


def line(web: Web) -> list[str]:
    """The RQ queue of submissions, first in line first."""
    ids = cast("list[bytes]", web.redis.lrange(f"rq:queue:{web.settings.key_prefix}-submit", 0, -1))
    return [rq_id.decode() for rq_id in ids]


def noted(web: Web) -> dict[str, float]:
    """The tasks that should move, and in how many seconds."""
    seconds, micros = web.redis.time()
    rows = cast("list[tuple[bytes, float]]", web.redis.zrange(web.key("tasks"), 0, -1, withscores=True))
    return {rq_id.decode(): at / 1000 - seconds - micros / 1e6 for rq_id, at in rows}


def nothing_written(web: Web) -> bool:
    return state.keys(web.redis) == []


def types(web: Web) -> list[str]:
    return [event["type"] for event in web.events()]


# -- accepted -----------------------------------------------------------------------------------------


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
    request = (
        '{"vendor": "%s", "input": {"video_url": "https://a.example/v.mp4", "audio_url": "https://a.example/a.mp3"}}'
    )
    answers = {
        vendor: web.api.post("/v1/jobs", content=request % vendor)
        for vendor in ("lipsync_studio", "kitta", "chanjing", "apimodels")
    }
    assert {vendor: (answer.status_code, answer.json()["model"]) for vendor, answer in answers.items()} == {
        "lipsync_studio": (202, "lipsync-video"),
        "kitta": (202, "kitta-lip-sync-v1"),
        "chanjing": (202, "basic"),
        "apimodels": (202, "kling-advanced-lip-sync"),
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


# -- refused ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        # At the top.
        ({"input": VIDEO}, ["vendor"]),
        ({"vendor_input": {}}, ["vendor"]),
        ({"vendor": "nobody", "input": VIDEO}, ["vendor"]),
        ({"vendor": None, "input": VIDEO}, ["vendor"]),
        ({"vendor": ["kitta"], "input": VIDEO}, ["vendor"]),
        ({"vendor": "kitta\u0000", "input": VIDEO | AUDIO}, ["vendor"]),
        ({"vendor": "kitta", "input": None}, ["input"]),
        ({"vendor": "kitta", "input": []}, ["input"]),
        ({"vendor": "kitta", "input": "https://example.com/video.mp4"}, ["input"]),
        ({"vendor": "kitta", "input": VIDEO | AUDIO, "vendor_input": []}, ["vendor_input"]),
        ({"vendor": "kitta", "input": VIDEO | AUDIO, "vendor_input": 7}, ["vendor_input"]),
        ({"vendor": "kitta", "input": VIDEO | AUDIO, "model": 7}, ["model"]),
        ({"vendor": "kitta", "input": VIDEO | AUDIO, "model": ""}, ["model"]),
        ({"vendor": "kitta", "input": VIDEO | AUDIO, "model": "lipsync-video"}, ["model"]),
        ({"vendor": "kitta", "input": VIDEO | AUDIO, "metadata": None}, ["metadata"]),
        ({"vendor": "kitta", "input": VIDEO | AUDIO, "metadata": {"a": "x" * MAX_METADATA}}, ["metadata"]),
        ({"vendor": "kitta", "input": VIDEO | AUDIO, "vendor_job_id": "task-1"}, ["vendor_job_id"]),
        (
            {"vendor": "kitta", "input": VIDEO | AUDIO, "Input": {}, "callback_url": "https://example.com"},
            ["Input", "callback_url"],
        ),
        (
            {"vendor": 1, "input": 2, "model": 3, "vendor_input": 4, "metadata": 5, "é": 6},
            ["input", "metadata", "model", "vendor", "vendor_input", "é"],
        ),
        # Inside.
        ({"vendor": "kitta", "input": {}}, ["input.audio_url", "input.video_url"]),
        ({"vendor": "kitta", "input": AUDIO}, ["input.video_url"]),
        ({"vendor": "kitta", "input": VIDEO | IMAGE | AUDIO}, ["input.image_url", "input.video_url"]),
        ({"vendor": "kitta", "input": VIDEO | {"audio_url": None}}, ["input.audio_url"]),
        ({"vendor": "kitta", "input": VIDEO | {"audio_url": "x"}}, ["input.audio_url"]),
        ({"vendor": "kitta", "input": VIDEO | AUDIO | {"duration_seconds": "8"}}, ["input.duration_seconds"]),
        ({"vendor": "kitta", "input": VIDEO | AUDIO | {"duration_seconds": True}}, ["input.duration_seconds"]),
        ({"vendor": "kitta", "input": VIDEO | AUDIO | {"duration_seconds": 0}}, ["input.duration_seconds"]),
        ({"vendor": "kitta", "input": VIDEO | AUDIO | {"": 1}}, ["input."]),
        (
            {"vendor": "kitta", "input": VIDEO | AUDIO | {"reference_image_url": "https://example.com/r.png"}},
            ["input.reference_image_url"],
        ),
        ({"vendor": "lipsync_studio", "input": VIDEO | AUDIO | {"resolution": "1080p"}}, ["input.resolution"]),
        ({"vendor": "lipsync_studio", "input": VIDEO | AUDIO | {"seed": 1.5}}, ["input.seed"]),
        (
            {"vendor": "lipsync_studio", "input": IMAGE | TWO, "vendor_input": {"order": "whenever"}},
            ["vendor_input.order"],
        ),
        ({"vendor": "chanjing", "input": VIDEO | {"text": "hi"}}, ["input.voice"]),
        ({"vendor": "chanjing", "input": VIDEO | AUDIO, "vendor_input": {"speed": 1}}, ["vendor_input.speed"]),
        ({"vendor": "chanjing", "input": VIDEO | TEXT, "vendor_input": {"volume": 0}}, ["vendor_input.volume"]),
        (
            {"vendor": "chanjing", "input": VIDEO | AUDIO | TEXT, "vendor_input": FILES},
            [
                "input.audio_url",
                "input.text",
                "input.video_url",
                "vendor_input.audio_file_id",
                "vendor_input.video_file_id",
            ],
        ),
        ({"vendor": "apimodels", "input": AUDIO, "vendor_input": {"session_id": "s"}}, ["vendor_input.face_id"]),
        # In the other of the two.
        ({"vendor": "apimodels", "input": AUDIO | FACE}, ["input.face_id", "input.session_id", "input.video_url"]),
        (
            {"vendor": "apimodels", "input": VIDEO, "vendor_input": AUDIO},
            ["vendor_input.audio_url"],
        ),
        # All at once.
        (
            {
                "vendor": "chanjing",
                "input": {"video_url": "ftp://x", "text": "", "voice": 5, "volume": 7, "colour": "red"},
                "vendor_input": {"speed": 9, "order": "meanwhile", "duration_seconds": 3},
                "metadata": [],
                "callback_url": "https://example.com",
            },
            [
                "callback_url",
                *(f"input.{name}" for name in ("colour", "text", "video_url", "voice", "volume")),
                "metadata",
                *(f"vendor_input.{name}" for name in ("duration_seconds", "order", "speed")),
            ],
        ),
    ],
)
def test_every_field_that_cannot_be_used_is_named_at_once(web: Web, body: object, fields: list[str]) -> None:
    assert bad_fields(web.api.post("/v1/jobs", json=body)) == sorted(fields)
    assert nothing_written(web)


def test_a_field_in_the_wrong_object_is_told_where_it_goes(web: Web) -> None:
    body = {"vendor": "apimodels", "input": AUDIO | FACE, "vendor_input": {"duration_seconds": 8}}
    told = {error["field"]: error["detail"] for error in web.api.post("/v1/jobs", json=body).json()["errors"]}
    assert told["input.session_id"] == told["input.face_id"] == "goes under vendor_input"
    assert told["vendor_input.duration_seconds"] == "goes under input"


@pytest.mark.parametrize(
    ("body", "could_take", "words"),
    [
        (
            {"vendor": "kitta", "input": VIDEO | TEXT},
            [("chanjing", "basic"), ("chanjing", "high-quality")],
            "its input is enough for chanjing (basic), chanjing (high-quality)",
        ),
        (
            {"vendor": "kitta", "model": "kling-3", "input": VIDEO},
            [("apimodels", "kling-identify-face")],
            "its input is enough for apimodels (kling-identify-face)",
        ),
        (
            {"vendor": "lipsync_studio", "model": "lipsync-video", "input": IMAGE | TWO, "colour": "red"},
            [("lipsync_studio", "lipsync-image-multi")],
            "its input is enough for lipsync_studio (lipsync-image-multi)",
        ),
        ({"vendor": "kitta", "input": AUDIO}, [], None),
        # What is wrong has nothing to do with the model.
        ({"vendor": "kitta", "input": VIDEO | AUDIO, "colour": "red"}, [], None),
    ],
)
def test_a_refusal_says_what_the_input_is_enough_for(
    web: Web, body: object, could_take: list[tuple[str, str]], words: str | None
) -> None:
    answer = problem(web.api.post("/v1/jobs", json=body), 422)
    assert [(taker["vendor"], taker["model"]) for taker in answer["could_take"]] == could_take
    assert all(set(taker) == {"vendor", "model"} for taker in answer["could_take"])
    expected = "the request has fields that cannot be used" + (f"; {words}" if words else "")
    assert answer["detail"] == expected


def document(fields: Mapping[str, bytes]) -> bytes:
    return b"{" + b", ".join(b'"%s": %s' % (name.encode(), value) for name, value in fields.items()) + b"}"


def body_with(input_: Mapping[str, bytes] = MappingProxyType({}), /, **parts: bytes) -> bytes:
    """A good request's JSON in which some fields of `input`, or of the whole, are replaced."""
    good = {name: json.dumps(value).encode() for name, value in (VIDEO | AUDIO).items()}
    return document({"vendor": b'"lipsync_studio"', "input": document(good | dict(input_)), **parts})


#: What no field takes, wherever it is put.
HOSTILE_VALUES: Final = {
    **{f"{depth} lists": b"[" * depth + b"]" * depth for depth in (MAX_DEPTH, 900, 10_000, 100_000)},
    **{f"{depth} objects": b'{"a":' * depth + b"1" + b"}" * depth for depth in (900, 10_000, 100_000)},
    **{f"{digits} digits": b"9" * digits for digits in (20, 40, 400, 5_000, 500_000)},
    "many digits behind the point": b"-1.5" + b"9" * 5_000,
    "a float beyond a float": b"1e999",
    "NaN": b"NaN",
    "Infinity": b"-Infinity",
    "a lone surrogate": rb'"https://example.com/\ud800"',
    "an encoded surrogate": b'"https://example.com/\xed\xa0\x80"',
    "bad UTF-8": b'"https://example.com/\xff"',
    "a NUL": rb'"https://example.com/\u0000"',
    "a raw control character": b'"https://example.com/\x01"',
    "a line break": rb'"https://example.com/\n"',
    "a string without an end": b'"https://example.com/',
    "a long string": b'"https://example.com/%s"' % (b"x" * 500_000),
    "nothing": b"",
}

#: Where it may be put.
PLACES: Final[dict[str, Callable[[bytes], bytes]]] = {
    "vendor": lambda value: body_with(vendor=value),
    "model": lambda value: body_with(model=value),
    "input": lambda value: body_with(input=value),
    "vendor_input": lambda value: body_with(vendor_input=value),
    "a URL": lambda value: body_with({"audio_url": value}),
    "a length": lambda value: body_with({"duration_seconds": value}),
    "a seed": lambda value: body_with({"seed": value}),
    "an unknown field": lambda value: body_with(odd=value),
    "an unknown field of input": lambda value: body_with({"odd": value}),
    "an unknown field of vendor_input": lambda value: body_with(vendor_input=document({"odd": value})),
    "the whole": lambda value: value,
}

HOSTILE: Final = {
    **{f"{what} as {where}": put(value) for what, value in HOSTILE_VALUES.items() for where, put in PLACES.items()},
    "another format": b"vendor=kitta&input=x",
    "cut short": body_with()[:-1],
    "two documents": body_with() * 2,
    "an array": b"[%s]" % body_with(),
    "NaN in metadata": body_with(metadata=b'{"a": NaN}'),
    "deep metadata": body_with(metadata=document({"a": HOSTILE_VALUES["10000 lists"]})),
    "a byte too many": body_with() + b" " * (MAX_BODY + 1 - len(body_with())),
    "odd names": body_with({"\\ud800": b"1", "\\u0000": b"1", "": b"1"}),
    "many unknown parts": body_with(**{f"f{number}": b"1" for number in range(60_000)}),
}


@pytest.mark.parametrize("name", list(HOSTILE))
def test_a_hostile_body_is_refused_and_leaves_nothing_behind(web: Web, name: str) -> None:
    answer = web.api.post("/v1/jobs", content=HOSTILE[name])
    assert answer.status_code in (400, 413, 422), answer.text[:1000]
    problem(answer, answer.status_code)
    assert nothing_written(web)
    assert web.api.post("/v1/jobs", content=body_with()).status_code == 202, "the next one is served"


@pytest.mark.parametrize("part", ["input", "vendor_input"])
def test_a_flood_of_fields_is_refused_in_a_few_words(web: Web, part: str) -> None:
    """Not in a name and a sentence for each, of every model: everybody else would wait for that."""
    flood = document({f"{number:x}": b"0" for number in range(80_000)})
    answer = web.api.post("/v1/jobs", content=body_with(**{part: flood}))
    assert bad_fields(answer) == [part]
    assert len(answer.content) < 1000
    few = web.api.post("/v1/jobs", content=body_with(**{part: document({f"f{n}": b"0" for n in range(50)})}))
    assert len([field for field in bad_fields(few) if field.startswith(f"{part}.f")]) == 50


TWICE: Final = {
    "vendor": body_with()[:-1] + b', "vendor": "kitta"}',
    "vendor, the same": body_with()[:-1] + b', "vendor": "lipsync_studio"}',
    "input": body_with()[:-1] + b', "input": {}}',
    "a URL": body_with(
        input=b'{"video_url": "https://a.example/v", "audio_url": "https://a.example/a", "video_url": "x"}'
    ),
    "an option": body_with(vendor=b'"chanjing"', vendor_input=b'{"volume": 1, "volume" \n: 100}'),
    "metadata": body_with(metadata=b'{"a": {"b": [{"c": 1, "d": 2, "c": 1}]}}'),
    "by another spelling": body_with(metadata=rb'{"a": 1, "\u0061": 2}'),
    "beside a long number": body_with(metadata=b'{"a": %s, "\\":": 1}' % (b"9" * 5_000)),
    "beside what is deep": body_with(metadata=b'{"a": %s, "a": 1}' % HOSTILE_VALUES["900 lists"]),
}


@pytest.mark.parametrize("name", list(TWICE))
def test_a_key_that_is_there_twice_is_refused(web: Web, name: str) -> None:
    """Readers do not agree on what it says, and it is money that is spent by it."""
    answer = web.api.post("/v1/jobs", content=TWICE[name])
    assert answer.status_code in (400, 422), answer.text
    problem(answer, answer.status_code)
    assert nothing_written(web)


@pytest.mark.parametrize("vendor", list(VENDORS))
def test_a_vendor_without_credentials_is_not_submitted_to(blind: Web, vendor: str) -> None:
    body = {"vendor": vendor, "input": VIDEO | AUDIO}
    refused = problem(blind.api.post("/v1/jobs", json=body, headers={"Idempotency-Key": "order-1"}), 409)
    assert [name for names in VENDORS[vendor].CREDENTIALS for name in names if name not in refused["detail"]] == []
    assert nothing_written(blind)
    assert bad_fields(blind.api.post("/v1/jobs", json=body | {"input": {}})), "what is wrong with it comes first"


# -- the same request, again ------------------------------------------------------------------------------

#: One that takes a place in its vendor's line.
REQUEST: Final = {"vendor": "chanjing", "input": {}, "vendor_input": FILES}


def keyed(key: str = "order-1", api_key: str = API_KEY) -> dict[str, str]:
    return {"Idempotency-Key": key, "Authorization": f"Bearer {api_key}"}


def test_the_same_request_with_the_same_key_is_sent_once(web: Web) -> None:
    first, second = (web.api.post("/v1/jobs", json=REQUEST, headers=keyed()) for _ in range(2))
    assert first.status_code == second.status_code == 202
    assert first.content == second.content
    assert first.headers["location"] == second.headers["location"]
    job_id = first.json()["id"]
    assert line(web) == [f"submit-{job_id}"]
    assert web.redis.zcard(web.key("turns", "chanjing")) == 1
    assert [job["id"] for job in web.api.get("/v1/jobs").json()["data"]] == [job_id]
    assert len(web.timeline(job_id)) == 1
    assert 86_390 < web.redis.ttl(web.key("idempotency", "studio:order-1")) <= 86_400


def test_the_same_request_again_after_the_job_is_done_gets_the_job_as_it_is(web: Web) -> None:
    job = web.api.post("/v1/jobs", json=REQUEST, headers=keyed()).json()
    web.record(
        Observation(source=Source.CALLBACK, status=Status.FAILED, error=JobError(code="no_face", message="no face")),
        vendor="chanjing",
        job_id=job["id"],
    )
    again = web.api.post("/v1/jobs", json=REQUEST, headers=keyed())
    assert (again.status_code, again.json()["id"], again.json()["status"]) == (202, job["id"], "failed")
    assert again.json()["callback_url"] == job["callback_url"]
    assert len(line(web)) == 1
    assert noted(web) == {}


def test_the_same_request_many_times_at_once_is_sent_once(web: Web) -> None:
    def post(_: int) -> tuple[int, bytes]:
        answer = web.api.post("/v1/jobs", json=REQUEST, headers=keyed())
        return answer.status_code, answer.content

    with ThreadPoolExecutor(16) as pool:
        [(status, content)] = set(pool.map(post, range(64)))
    assert status == 202
    assert line(web) == [f"submit-{json.loads(content)['id']}"]
    assert list(noted(web)) == line(web)
    assert web.redis.zcard(web.key("turns", "chanjing")) == 1
    assert len(web.api.get("/v1/jobs").json()["data"]) == 1


def test_of_different_requests_with_one_key_at_once_one_is_sent(web: Web) -> None:
    def post(number: int) -> tuple[int, str]:
        answer = web.api.post("/v1/jobs", json=REQUEST | {"metadata": {"n": number}}, headers=keyed())
        body = answer.json()
        return answer.status_code, body["id"] if answer.status_code == 202 else body["job_id"]

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(post, range(24)))
    assert sorted(status for status, _ in answers) == [202] + [409] * 23
    assert {job_id for _, job_id in answers} == {line(web)[0].removeprefix("submit-")}
    assert len(line(web)) == 1


@pytest.mark.parametrize(
    "other",
    [
        REQUEST | {"metadata": {"take": 2}},
        REQUEST | {"vendor_input": FILES | {"volume": 7}},
        {"vendor": "kitta", "input": VIDEO | AUDIO},
        {"vendor": "chanjing"},
    ],
    ids=["metadata", "input", "vendor", "tracking"],
)
def test_another_request_with_the_same_key_is_a_conflict(web: Web, other: dict[str, Any]) -> None:
    job = web.api.post("/v1/jobs", json=REQUEST, headers=keyed()).json()
    keys = state.keys(web.redis)
    assert problem(web.api.post("/v1/jobs", json=other, headers=keyed()), 409)["job_id"] == job["id"]
    assert len(line(web)) == 1
    assert state.keys(web.redis) == keys
    assert web.api.post("/v1/jobs", json=other, headers=keyed("order-2")).status_code in (201, 202)


def test_a_submission_with_the_key_of_a_tracked_job_is_a_conflict(web: Web) -> None:
    job = web.api.post("/v1/jobs", json={"vendor": "chanjing"}, headers=keyed()).json()
    assert problem(web.api.post("/v1/jobs", json=REQUEST, headers=keyed()), 409)["job_id"] == job["id"]
    assert line(web) == []


def test_an_idempotency_key_belongs_to_the_api_key_that_used_it(web: Web) -> None:
    ours, theirs = (
        web.http.post("/v1/jobs", json=REQUEST, headers=keyed(api_key=api_key)) for api_key in (API_KEY, OTHER_API_KEY)
    )
    assert (ours.status_code, theirs.status_code) == (202, 202)
    assert ours.json()["id"] != theirs.json()["id"]
    assert len(line(web)) == 2


def test_a_request_that_was_refused_does_not_use_its_key_up(web: Web, blind: Web) -> None:
    for refused in ({"input": IMAGE}, {"model": "kling-3"}, {"vendor": "nobody"}, {"colour": "red"}):
        problem(web.api.post("/v1/jobs", json=REQUEST | refused, headers=keyed()), 422)
    problem(blind.api.post("/v1/jobs", json=REQUEST, headers=keyed()), 409)
    assert nothing_written(web)
    assert web.api.post("/v1/jobs", json=REQUEST, headers=keyed()).status_code == 202


def test_without_a_key_each_request_is_a_job(web: Web) -> None:
    jobs = [submit(web, "kitta", VIDEO | AUDIO) for _ in range(3)]
    assert len({job["id"] for job in jobs}) == len(set(line(web))) == 3


# -- sent, and not answered -------------------------------------------------------------------------------


def lost(web: Web, vendor: str = "kitta", **fields: Any) -> dict[str, Any]:
    """A job that a worker has sent, and of which nobody knows whether the vendor has taken it."""
    job = submit(web, vendor, **{"input_": VIDEO | AUDIO, **fields})
    web.redis.delete("rq:queue:callsheet-submit")  # the worker has taken it
    for seen, how in (
        (Observation(source=Source.SUBMIT, status=Status.UNCONFIRMED), {"sending": f"sending {job['id']}"}),
        (Observation(source=Source.SUBMIT, problem=Problem.NO_ANSWER, detail="time is up"), {"task": "submit"}),
    ):
        web.record(seen, vendor=vendor, job_id=job["id"], **cast("dict[str, Any]", how))
    assert web.job(job["id"])["status"] == "unconfirmed"
    assert noted(web) == {}
    return job


def resolve(web: Web, job: Mapping[str, Any], action: str, **fields: object) -> httpx.Response:
    return web.api.post(f"/v1/jobs/{job['id']}/resolve", json={"action": action, **fields})


def test_a_lost_job_that_the_vendor_has_is_adopted(web: Web) -> None:
    job = lost(web)
    answer = resolve(web, job, "adopt", vendor_job_id="task-1")
    assert answer.status_code == 200
    assert (answer.json()["status"], answer.json()["vendor_job_id"]) == ("queued", "task-1")
    assert answer.json()["submitted_at"]
    assert answer.json() == web.job(job["id"])
    assert types(web) == ["job.submitted"]
    assert web.redis.zscore(web.key("polls", "kitta"), job["id"]), "and the vendor will be asked"
    assert (line(web), noted(web)) == ([], {})
    entry = web.timeline(job["id"])[-1]
    assert (entry["status"], entry["applied"], entry["vendor_job_id"]) == ("queued", True, "task-1")
    assert "operator" in entry["detail"]


def test_what_came_for_a_lost_job_before_it_was_adopted_counts(web: Web) -> None:
    job = lost(web, "apimodels", input_=VIDEO)
    echo = {"data": {"taskId": "task-1", "state": "processing"}}
    assert web.callback(web.shared_url("apimodels"), echo).status_code == 200
    assert resolve(web, job, "adopt", vendor_job_id="task-1").json()["status"] == "processing"
    assert types(web) == ["job.submitted", "job.processing"]


def test_an_id_that_another_job_has_is_not_adopted(web: Web) -> None:
    other = web.track("kitta", vendor_job_id="task-1")
    job = lost(web)
    before = (web.job(job["id"]), web.timeline(job["id"]))
    answer = problem(resolve(web, job, "adopt", vendor_job_id="task-1"), 409)
    assert answer["job_id"] == other["id"]
    assert [error["field"] for error in answer["errors"]] == ["vendor_job_id"]
    assert (web.job(job["id"]), web.timeline(job["id"])) == before


def test_a_lost_job_whose_id_is_known_by_now_is_not_adopted_under_another(web: Web) -> None:
    """A callback that could not be understood has told the vendor's id; the job is as unconfirmed as before."""
    job = lost(web, "apimodels", input_=VIDEO)
    assert web.callback(job["callback_url"], {"data": {"taskId": "task-1", "state": "paused"}}).status_code == 422
    assert [web.job(job["id"])[name] for name in ("status", "vendor_job_id")] == ["unconfirmed", "task-1"]
    problem(resolve(web, job, "adopt", vendor_job_id="task-2"), 409)
    assert resolve(web, job, "adopt", vendor_job_id="task-1").json()["status"] == "queued"


def test_a_lost_job_whose_id_is_known_by_now_is_not_sent_again(web: Web) -> None:
    """The vendor has it, by its own word: it would be paid for twice, and one of the two would have no job here."""
    job = lost(web, "apimodels", input_=VIDEO)
    web.callback(job["callback_url"], {"data": {"taskId": "task-1", "state": "paused"}})
    problem(resolve(web, job, "resend"), 409)
    assert (web.job(job["id"])["status"], line(web)) == ("unconfirmed", [])


def test_a_lost_job_that_the_vendor_has_not_taken_is_sent_again(web: Web) -> None:
    job = lost(web)
    answer = resolve(web, job, "resend")
    assert (answer.status_code, answer.json()["status"]) == (200, "pending")
    assert line(web) == [f"submit-{job['id']}"]
    assert [0 < wait <= PATIENCE for wait in noted(web).values()] == [True]
    assert types(web) == []
    assert "operator" in web.timeline(job["id"])[-1]["detail"]
    problem(resolve(web, job, "resend"), 409)
    assert len(line(web)) == 1


def test_a_lost_job_that_the_vendor_has_not_taken_is_given_up(web: Web) -> None:
    job = lost(web)
    answer = resolve(web, job, "fail")
    assert (answer.status_code, answer.json()["status"]) == (200, "failed")
    assert (answer.json()["error"]["code"], answer.json()["error"]["retryable"]) == ("not_taken", True)
    assert answer.json()["error"]["message"]
    assert (answer.json()["submitted_at"], answer.json()["vendor_job_id"]) == (None, None)
    assert answer.json()["completed_at"]
    assert types(web) == ["job.failed"], "it was never submitted"
    assert (line(web), noted(web)) == ([], {})
    assert web.redis.zscore(web.key("deadlines"), job["id"]) is None


def test_of_many_who_resolve_a_lost_job_at_once_one_does(web: Web) -> None:
    job = lost(web)
    asked = [("resend", {}), ("fail", {}), ("adopt", {"vendor_job_id": "task-1"})] * 8
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda asked: resolve(web, job, asked[0], **asked[1]).status_code, asked))
    assert sorted(answers) == [200] + [409] * (len(asked) - 1)
    after = {"resend": "pending", "fail": "failed", "adopt": "queued"}[asked[answers.index(200)][0]]
    assert web.job(job["id"])["status"] == after
    assert len(line(web)) == (after == "pending")


@pytest.mark.parametrize("status", [status for status in Status if status is not Status.UNCONFIRMED])
@pytest.mark.parametrize("action", ["adopt", "resend", "fail"])
def test_only_a_lost_job_can_be_resolved(web: Web, status: Status, action: str) -> None:
    job = submit(web, "kitta", VIDEO | AUDIO)
    if status is not Status.PENDING:
        source = Source.DEADLINE if status is Status.EXPIRED else Source.POLL
        web.record(Observation(source=source, status=status), vendor="kitta", job_id=job["id"])
    before = (web.job(job["id"]), web.timeline(job["id"]), line(web), web.events())
    assert before[0]["status"] == status
    answer = problem(resolve(web, job, action, **({"vendor_job_id": "task-1"} if action == "adopt" else {})), 409)
    assert status.value in answer["detail"]
    assert (web.job(job["id"]), web.timeline(job["id"]), line(web), web.events()) == before


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({}, ["action"]),
        ({"action": None}, ["action"]),
        ({"action": "forget"}, ["action"]),
        ({"action": ["fail"]}, ["action"]),
        ({"action": "adopt"}, ["vendor_job_id"]),
        ({"action": "adopt", "vendor_job_id": None}, ["vendor_job_id"]),
        ({"action": "adopt", "vendor_job_id": ""}, ["vendor_job_id"]),
        ({"action": "adopt", "vendor_job_id": "a b"}, ["vendor_job_id"]),
        ({"action": "adopt", "vendor_job_id": "x" * 201}, ["vendor_job_id"]),
        ({"action": "adopt", "vendor_job_id": 7}, ["vendor_job_id"]),
        ({"action": "resend", "vendor_job_id": "task-1"}, ["vendor_job_id"]),
        ({"action": "fail", "vendor_job_id": "task-1"}, ["vendor_job_id"]),
        ({"action": 1, "vendor_job_id": 2, "why": 3}, ["action", "vendor_job_id", "why"]),
    ],
)
def test_a_resolution_that_cannot_be_used_is_refused(web: Web, body: object, fields: list[str]) -> None:
    job = lost(web)
    assert bad_fields(web.api.post(f"/v1/jobs/{job['id']}/resolve", json=body)) == fields
    assert web.job(job["id"])["status"] == "unconfirmed"
    assert line(web) == []


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b"{", b"[" * 10_000 + b"]" * 10_000])
def test_a_resolution_that_is_no_object_is_refused(web: Web, body: bytes) -> None:
    problem(web.api.post(f"/v1/jobs/{lost(web)['id']}/resolve", content=body), 400)


def test_a_job_that_is_not_there_cannot_be_resolved(web: Web) -> None:
    for job_id in (NO_SUCH_JOB, "x", "%00"):
        problem(web.api.post(f"/v1/jobs/{job_id}/resolve", json={"action": "fail"}), 404)
    assert web.http.post(f"/v1/jobs/{NO_SUCH_JOB}/resolve", json={"action": "fail"}).status_code == 401


def test_a_lost_job_is_looked_for_again_when_asked(web: Web) -> None:
    job = lost(web)
    answer = web.api.post(f"/v1/jobs/{job['id']}/refresh")
    assert (answer.status_code, answer.json()["status"]) == (202, "unconfirmed")
    assert line(web) == [f"submit-{job['id']}"]
    assert [0 < wait <= PATIENCE for wait in noted(web).values()] == [True]


def test_a_job_that_was_not_sent_yet_cannot_be_looked_for(web: Web) -> None:
    job = submit(web, "kitta", VIDEO | AUDIO)
    problem(web.api.post(f"/v1/jobs/{job['id']}/refresh"), 409)
    assert len(line(web)) == 1


def test_the_vendors_id_of_a_job_that_still_waits_to_be_sent_takes_it_out_of_the_line(web: Web) -> None:
    """Somebody has sent it by hand: it is not ordered a second time."""
    first, second = (submit(web, "chanjing", {}, vendor_input=FILES) for _ in range(2))
    answer = web.api.patch(f"/v1/jobs/{first['id']}", json={"vendor_job_id": "task-1"})
    assert (answer.status_code, answer.json()["status"]) == (200, "queued")
    assert (answer.json()["vendor_job_id"], answer.json()["scheduled_at"]) == ("task-1", None)
    assert list(noted(web)) == [f"submit-{second['id']}"]
    assert web.redis.zrange(web.key("turns", "chanjing"), 0, -1) == [second["id"].encode()]
    assert types(web) == ["job.submitted"]


# -- a vendor that takes only so many a minute --------------------------------------------------------------

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


# -- secrets ------------------------------------------------------------------------------------------------

SIGNED: Final = "X-Signature=presigned-secret-of-the-bucket"


def test_neither_the_callback_url_nor_the_input_gets_out(web: Web) -> None:
    """The token in the one and the signature in the other let whoever holds them in."""
    input_ = {name: f"{url}?{SIGNED}" for name, url in (VIDEO | AUDIO).items()}
    request = {"vendor": "apimodels", "input": input_, "metadata": {"shot": 7}}
    with web.redis.pubsub() as listener:  # type: ignore[no-untyped-call]
        listener.psubscribe("*")
        made = web.api.post("/v1/jobs", json=request, headers=keyed())
        job, path = made.json(), f"/v1/jobs/{made.json()['id']}"
        secret = secret_of(job)
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
        web.record(
            Observation(source=Source.SUBMIT, status=Status.UNCONFIRMED),
            vendor="apimodels",
            job_id=job["id"],
            sending="sending-1",
        )
        answers.append(web.api.post(f"{path}/refresh"))
        answers.append(web.api.post(f"{path}/resolve", json={"action": "adopt", "vendor_job_id": "task-0"}))
        for seen in (
            Observation(source=Source.POLL, status=Status.SUCCEEDED, vendor_job_id="task-0", result={"face_list": []}),
            Observation(source=Source.SUBMIT, status=Status.QUEUED, vendor_job_id="task-1"),
            Observation(
                source=Source.POLL,
                status=Status.SUCCEEDED,
                outputs=(Output(url="https://cdn.example.com/film.mp4"),),
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
    assert {key for key, value in everything(web) if SIGNED.encode() in value} == {web.key("job", job["id"]).encode()}
    assert [key for key, value in everything(web) if secret.encode() in value] == []
