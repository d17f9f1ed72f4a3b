"""What cannot be submitted, and how it is refused: every field named, nothing left behind, however hostile."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

import pytest

from service.api.jobs import MAX_METADATA
from service.api.problems import MAX_BODY
from service.model import MAX_DEPTH
from service.vendors import VENDORS
from tests.support.api import AUDIO, FACE, FILES, IMAGE, TEXT, TWO, VIDEO, bad_fields, nothing_written, problem
from tests.support.web import Web


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
        ({"vendor": "apimodels", "input": VIDEO, "vendor_input": AUDIO}, ["vendor_input.audio_url"]),
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
