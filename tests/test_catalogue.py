"""Which model takes a request; and the vendors, as the sandbox plays them, take what is built of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.model import Observation, Problem, Source
from service.vendors import VENDORS
from service.vendors.base import Refusal, Vendor
from service.vendors.catalogue import Misfit, Order, choose, first_of, prepared, rebuild, takers, to_upload
from service.vendors.inputs import Model
from tests.support import orders
from tests.support.sandbox import Sandbox, sandbox_process
from tests.support.vendors import request_of

VIDEO: Final = {"video_url": "https://example.com/video.mp4"}
IMAGE: Final = {"image_url": "https://example.com/person.png"}
AUDIO: Final = {"audio_url": "https://example.com/voice.mp3"}
TEXT: Final = {"text": "你好", "voice": "C-1"}
TWO: Final = {"left_audio_url": "https://example.com/left.mp3", "right_audio_url": "https://example.com/right.mp3"}
FACE: Final = {"session_id": "session_abc123", "face_id": "face_001"}
LENGTHS: Final = {"duration_seconds": 8, "video_duration_seconds": 9}

#: The vendors that the sandbox plays. Others may be added.
PLAYED: Final = ("apimodels", "chanjing", "kitta", "lipsync_studio")


# -- which model ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("vendor", "input_", "own", "model"),
    [
        ("lipsync_studio", VIDEO | AUDIO, {}, "lipsync-video"),
        ("lipsync_studio", IMAGE | AUDIO, {}, "lipsync-image"),
        ("lipsync_studio", IMAGE | TWO, {}, "lipsync-image-multi"),
        ("lipsync_studio", IMAGE | TWO, {"order": "left_right"}, "lipsync-image-multi"),
        ("kitta", VIDEO | AUDIO, {}, "kitta-lip-sync-v1"),
        ("kitta", IMAGE | AUDIO, {}, "kitta-lip-sync-v1"),
        ("chanjing", VIDEO | AUDIO, {}, "basic"),
        ("chanjing", VIDEO | TEXT, {}, "basic"),
        ("chanjing", AUDIO, {"video_file_id": "v"}, "basic"),
        ("chanjing", {}, {"video_file_id": "v", "audio_file_id": "a"}, "basic"),
        ("apimodels", VIDEO, {}, "kling-identify-face"),
        ("apimodels", VIDEO | AUDIO, {}, "kling-advanced-lip-sync"),
        ("apimodels", VIDEO | AUDIO, {"face": "largest"}, "kling-advanced-lip-sync"),
        ("apimodels", VIDEO | AUDIO, {"face": 1}, "kling-advanced-lip-sync"),
        ("apimodels", AUDIO, FACE, "kling-advanced-lip-sync"),
    ],
)
def test_without_a_model_the_one_that_takes_the_input_is_meant(
    vendor: str, input_: dict[str, Any], own: dict[str, Any], model: str
) -> None:
    order = choose(vendor, None, input_, own)
    assert isinstance(order, Order), order
    assert order.model.name == model
    assert choose(vendor, model, input_, own) == order


@pytest.mark.parametrize(
    ("input_", "expected"),
    [
        (
            VIDEO | AUDIO | {"duration_seconds": 8, "video_duration_seconds": 9.5},
            {
                ("apimodels", "kling-advanced-lip-sync"),
                ("chanjing", "basic"),
                ("chanjing", "high-quality"),
                ("kitta", "kitta-lip-sync-v1"),
                ("lipsync_studio", "lipsync-video"),
            },
        ),
        (IMAGE | AUDIO, {("kitta", "kitta-lip-sync-v1"), ("lipsync_studio", "lipsync-image")}),
        (IMAGE | TWO, {("lipsync_studio", "lipsync-image-multi")}),
        (VIDEO | TEXT, {("chanjing", "basic"), ("chanjing", "high-quality")}),
        (VIDEO, {("apimodels", "kling-identify-face")}),
        (VIDEO | AUDIO | {"resolution": "720p"}, {("lipsync_studio", "lipsync-video")}),
        (VIDEO | AUDIO | {"resolution": "1080p"}, set()),
        (AUDIO, set()),
        ({}, set()),
    ],
)
def test_the_takers_of_an_input_are_all_that_could_do_it(
    input_: dict[str, Any], expected: set[tuple[str, str]]
) -> None:
    assert {taker for taker in takers(input_) if taker[0] in PLAYED} == expected


@pytest.mark.parametrize(
    ("vendor", "model", "input_", "own", "nearest", "bad"),
    [
        ("kitta", None, AUDIO, {}, "kitta-lip-sync-v1", {"input.video_url"}),
        ("kitta", None, VIDEO | IMAGE | AUDIO, {}, "kitta-lip-sync-v1", {"input.video_url", "input.image_url"}),
        (
            "kitta",
            None,
            {"video_url": "ftp://x", "audio_url": 5, "duration_seconds": -1, "colour": "red"},
            {"order": "meanwhile"},
            "kitta-lip-sync-v1",
            {"input.video_url", "input.audio_url", "input.duration_seconds", "input.colour", "vendor_input.order"},
        ),
        (
            "kitta",
            None,
            VIDEO | AUDIO | {"reference_image_url": "https://example.com/r.png"},
            {},
            "kitta-lip-sync-v1",
            {"input.reference_image_url"},
        ),
        ("lipsync_studio", None, IMAGE | TWO | {"seed": "7"}, {}, "lipsync-image-multi", {"input.seed"}),
        ("lipsync_studio", None, IMAGE | TWO | {"seed": 7.5}, {}, "lipsync-image-multi", {"input.seed"}),
        ("lipsync_studio", None, IMAGE, {}, "lipsync-image", {"input.audio_url"}),
        ("lipsync_studio", "lipsync-video", IMAGE | AUDIO, {}, "lipsync-video", {"input.image_url", "input.video_url"}),
        ("chanjing", None, VIDEO | {"text": "hi"}, {}, "basic", {"input.voice"}),
        ("chanjing", None, VIDEO | {"voice": "v"}, {"pitch": 1}, "basic", {"input.text"}),
        ("chanjing", None, VIDEO | AUDIO, {"speed": 3}, "basic", {"vendor_input.speed"}),
        ("chanjing", None, VIDEO | AUDIO, {"speed": 1}, "basic", {"vendor_input.speed"}),
        (
            "chanjing",
            "high-quality",
            VIDEO | AUDIO | TEXT,
            {"video_file_id": "v"},
            "high-quality",
            {"input.video_url", "vendor_input.video_file_id", "input.text", "input.audio_url"},
        ),
        ("apimodels", "kling-advanced-lip-sync", {}, {"face_id": ""}, "kling-advanced-lip-sync", {
            "input.audio_url", "input.video_url", "vendor_input.face_id",
        }),
        ("apimodels", None, AUDIO, {"session_id": "s"}, "kling-advanced-lip-sync", {"vendor_input.face_id"}),
        ("apimodels", None, AUDIO, {"face_id": "f"}, "kling-advanced-lip-sync", {"input.video_url"}),
        ("apimodels", None, VIDEO | AUDIO, {"face_id": "f"}, "kling-advanced-lip-sync", {"vendor_input.face_id"}),
        ("apimodels", None, VIDEO | AUDIO, {"face": -1}, "kling-advanced-lip-sync", {"vendor_input.face"}),
        ("apimodels", None, AUDIO | {"video_duration_seconds": 8}, FACE | {"face": 0}, "kling-advanced-lip-sync", {
            "input.video_duration_seconds", "vendor_input.face",
        }),
        ("apimodels", None, VIDEO | AUDIO, FACE, "kling-advanced-lip-sync", {
            "input.video_url", "vendor_input.session_id",
        }),
        ("apimodels", "kling-3", VIDEO, {}, "kling-3", {"model"}),
    ],
)  # fmt: skip
def test_every_bad_field_is_named_at_once(
    vendor: str, model: str | None, input_: dict[str, Any], own: dict[str, Any], nearest: str, bad: set[str]
) -> None:
    misfit = choose(vendor, model, input_, own)
    assert isinstance(misfit, Misfit)
    assert misfit.model == nearest
    assert {error.field for error in misfit.errors} == bad
    assert len(misfit.errors) == len(bad)
    assert all(error.detail for error in misfit.errors)


@pytest.mark.parametrize(
    "url",
    ["", "x", "//host/x", "ftp://host/x", "https://", "https:///x", "https://h/a b", "https://h/x\n", "\nhttps://h"],
)
def test_what_no_vendor_could_fetch_is_no_url(url: str) -> None:
    misfit = choose("kitta", None, {"video_url": url, **AUDIO}, {})
    assert isinstance(misfit, Misfit)
    assert [error.field for error in misfit.errors] == ["input.video_url"]


@pytest.mark.parametrize("url", ["https://h/" + "a" * 2038, "http://user@h:81/x?y#z", "https://例え.example/声.wav"])
def test_what_can_be_fetched_is_a_url(url: str) -> None:
    assert isinstance(choose("kitta", None, {"video_url": url, **AUDIO}, {}), Order)
    assert isinstance(choose("kitta", None, {"video_url": f"{url}{'a' * 2048}", **AUDIO}, {}), Misfit)


@pytest.mark.parametrize("seed", [7, 7.0, 0.0])
def test_a_whole_number_is_one_however_it_is_written(seed: float) -> None:
    order = choose("lipsync_studio", None, IMAGE | TWO | {"seed": seed}, {})
    assert isinstance(order, Order)
    assert repr(msgspec.structs.asdict(order.input)["seed"]) == str(int(seed))


def test_a_field_in_the_wrong_object_is_told_where_it_goes() -> None:
    misfit = choose("apimodels", None, AUDIO | FACE, {"duration_seconds": 8})
    assert isinstance(misfit, Misfit)
    told = {error.field: error.detail for error in misfit.errors}
    assert told["input.session_id"] == told["input.face_id"] == "goes under vendor_input"
    assert told["vendor_input.duration_seconds"] == "goes under input"


# -- what comes before the submission --------------------------------------------------------------


@pytest.mark.parametrize(
    ("vendor", "input_", "own", "uploads", "first"),
    [
        ("lipsync_studio", VIDEO | AUDIO, {}, {}, None),
        ("kitta", VIDEO | AUDIO, {}, {}, None),
        ("chanjing", VIDEO | AUDIO, {}, VIDEO | AUDIO, None),
        ("chanjing", VIDEO | TEXT, {}, VIDEO, None),
        ("chanjing", AUDIO, {"video_file_id": "v"}, AUDIO, None),
        ("chanjing", TEXT, {"video_file_id": "v"}, {}, None),
        ("apimodels", VIDEO, {}, {}, None),
        ("apimodels", VIDEO | AUDIO, {"face": 1}, {}, VIDEO),
        ("apimodels", VIDEO | AUDIO | LENGTHS, {}, {}, VIDEO | {"video_duration_seconds": 9}),
        ("apimodels", AUDIO, FACE, {}, None),
    ],
)
def test_what_has_to_happen_before_follows_from_what_is_given(
    vendor: str, input_: dict[str, Any], own: dict[str, Any], uploads: dict[str, str], first: dict[str, Any] | None
) -> None:
    order = choose(vendor, None, input_, own)
    assert isinstance(order, Order), order
    assert to_upload(order) == uploads
    assert first_of(order) == (None if first is None else choose(vendor, "kling-identify-face", first, {}))


@pytest.mark.parametrize(
    ("vendor", "input_", "own", "found", "left"),
    [
        ("kitta", VIDEO | AUDIO, {}, {}, VIDEO | AUDIO),
        ("chanjing", VIDEO | AUDIO, {"volume": 5}, {"video_file_id": "v", "audio_file_id": "a"}, {}),
        ("chanjing", VIDEO | AUDIO | LENGTHS, {}, {"video_file_id": "v"}, AUDIO | LENGTHS),
        ("chanjing", VIDEO | TEXT, {"speed": 1.5}, {"video_file_id": "v"}, TEXT),
        ("apimodels", VIDEO | AUDIO | LENGTHS, {}, FACE, AUDIO | {"duration_seconds": 8}),
    ],
)
def test_what_was_found_takes_the_place_of_what_it_was_made_of(
    vendor: str, input_: dict[str, Any], own: dict[str, Any], found: dict[str, Any], left: dict[str, Any]
) -> None:
    order = choose(vendor, None, input_, own)
    assert isinstance(order, Order), order
    assert prepared(order, found) == choose(vendor, order.model.name, left, own | found)


def test_which_face_was_meant_is_spent_once_it_is_found() -> None:
    order = choose("apimodels", None, VIDEO | AUDIO, {"face": "largest"})
    assert isinstance(order, Order), order
    assert prepared(order, FACE) == choose("apimodels", None, AUDIO, FACE)


def test_what_was_kept_of_a_model_that_is_gone_or_has_changed_is_refused() -> None:
    assert rebuild("kitta", "kitta-lip-sync-v1", VIDEO | AUDIO, {}) == choose("kitta", None, VIDEO | AUDIO, {})
    with pytest.raises(LookupError, match="kitta has no model kitta-lip-sync-v0"):
        rebuild("kitta", "kitta-lip-sync-v0", VIDEO | AUDIO, {})
    with pytest.raises(msgspec.ValidationError):
        rebuild("kitta", "kitta-lip-sync-v1", VIDEO, {})


# -- against the sandbox, which refuses whatever a page does not show ------------------------------


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    with sandbox_process(tmp_path_factory.mktemp("sandbox")) as running:
        yield running


def submit(
    sandbox: Sandbox, vendor: Vendor, model: Model[Any, Any], input_: dict[str, Any], own: dict[str, Any]
) -> None:
    """Submit what is built for a request; the vendor has to take it, and to have it as the answer says."""
    sandbox.reset()
    order = choose(vendor.SLUG, model.name, input_, own)
    request = request_of(vendor, order, "http://127.0.0.1:9/callbacks/x")
    headers = vendor.headers(sandbox.accounts()[vendor.SLUG].credentials)
    answer = sandbox.http.request(
        request.method, f"/{vendor.SLUG}{request.path}", params=request.query, json=request.json, headers=headers
    )
    seen = vendor.read_submit(answer.status_code, answer.content)
    assert isinstance(seen, Observation), (seen, request)
    assert seen.source is Source.SUBMIT
    assert seen.problem is None
    [job] = sandbox.jobs(vendor.SLUG)
    assert (job["id"], job["request"]) == (seen.vendor_job_id, request.json)


every_model = pytest.mark.parametrize(
    ("vendor", "model"),
    [
        pytest.param(VENDORS[slug], model, id=f"{slug}/{model.name}")
        for slug in PLAYED
        for model in VENDORS[slug].MODELS
    ],
)


@every_model
def test_the_vendor_takes_the_least_that_a_model_requires(
    sandbox: Sandbox, vendor: Vendor, model: Model[Any, Any]
) -> None:
    submit(sandbox, vendor, model, *orders.least(model))


@every_model
@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_the_vendor_takes_whatever_a_model_takes(
    sandbox: Sandbox, vendor: Vendor, model: Model[Any, Any], data: st.DataObject
) -> None:
    submit(sandbox, vendor, model, *data.draw(orders.given(model)))


@pytest.mark.parametrize("slug", PLAYED)
@pytest.mark.parametrize(
    ("fault", "read"),
    [
        ("vendor_rate_limited", "rate_limited"),
        ("vendor_down", "vendor_unreachable"),
        ("vendor_500", "vendor_error"),
        ("vendor_garbage", Problem.BAD_JSON),
    ],
)
def test_what_the_vendor_says_instead_is_understood(sandbox: Sandbox, slug: str, fault: str, read: str) -> None:
    sandbox.reset()
    sandbox.order(slug, fault, count=1)
    seen = answered(sandbox, slug, "somebody")
    assert read == (seen.code if isinstance(seen, Refusal) else seen.problem)


@pytest.mark.parametrize("slug", PLAYED)
def test_the_vendors_no_is_told_from_its_yes(sandbox: Sandbox, slug: str) -> None:
    sandbox.reset()
    for key, body, code in (("invalid", None, "unauthorized"), ("sandbox-access-token", {}, "invalid_input")):
        seen = answered(sandbox, slug, key, body)
        assert isinstance(seen, Refusal)
        assert (seen.code, bool(seen.message)) == (code, True)
    assert sandbox.jobs(slug) == []


def answered(sandbox: Sandbox, slug: str, key: str, body: dict[str, object] | None = None) -> Observation | Refusal:
    """What is read of the answer to the least request of a vendor's first model, or to another body."""
    vendor = VENDORS[slug]
    model = vendor.MODELS[0]
    request = request_of(vendor, choose(slug, model.name, *orders.least(model)), None)
    headers = {"Authorization": f"Bearer {key}", "access_token": key}
    json = request.json if body is None else body
    answer = sandbox.http.request(request.method, f"/{slug}{request.path}", json=json, headers=headers)
    return vendor.read_submit(answer.status_code, answer.content)
