"""What every vendor keeps, proved from data: the fixtures in `vendors/<slug>/` and the contract in `vendors/base.py`.

A new vendor is one module and its fixtures; nothing here names one. What a fixture is says tests/support/vendors.py.
Submissions have a file of their own, test_submission.py.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Iterator
from typing import Any, get_type_hints
from urllib.parse import urlsplit

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.model import Observation, Problem, Source, Status
from service.vendors import SHARED, VENDORS
from service.vendors.base import ListPage, Refusal, Slot, Vendor
from tests.support.vendors import ALL, CALLS, MODULES, REFUSALS, Fixture, each, encoded, every_vendor, told

#: What only we say of a job, never a vendor.
OURS = {Status.PENDING, Status.UNCONFIRMED, Status.EXPIRED}


# -- the fixtures ---------------------------------------------------------------------------------


@each(lambda fixture: True)
def test_a_fixture_reads_as_its_source_means_it(fixture: Fixture) -> None:
    seen, expected = told(fixture.read()), fixture.data["expected"]
    assert seen == expected
    assert json.dumps(seen, sort_keys=True) == json.dumps(expected, sort_keys=True)  # 1 is neither 1.0 nor true


@each(lambda fixture: True)
def test_a_fixture_says_where_it_comes_from_and_holds_nothing_else(fixture: Fixture) -> None:
    one_of, perhaps = CALLS[fixture.call]
    keys = set(fixture.data) - {"source", "call", "expected"}
    assert len(keys & one_of) == 1
    assert keys <= one_of | perhaps
    assert fixture.data.keys() >= {"source", "call", "expected"}
    assert fixture.data["source"].strip()
    assert fixture.name.startswith(fixture.call.replace("_", "-"))


def test_vendors_modules_and_folders_of_fixtures_are_the_same() -> None:
    modules = {path.stem for path in MODULES.glob("*.py")} - {"__init__"} - SHARED
    assert modules == set(VENDORS) == {vendor.SLUG for vendor in VENDORS.values()} == {fixture.slug for fixture in ALL}
    assert [slug for slug, vendor in VENDORS.items() if slug != vendor.SLUG] == []


@every_vendor
def test_every_call_that_a_vendor_supports_has_fixtures(vendor: Vendor) -> None:
    supported = {"callback", "status", "status_request", "headers", "submit", "submit_request"}
    if vendor.LIST_PAGE:
        supported |= {"list", "list_request"}
    if any(asks_for_a_token(vendor, names) for names in vendor.CREDENTIALS):
        supported |= {"token", "token_request"}
    if vendor.UPLOADS:
        supported |= {"upload_request", "upload", "file_request", "file"}
    assert {fixture.call for fixture in ALL if fixture.slug == vendor.SLUG} >= supported


@every_vendor
def test_the_fixtures_of_a_vendor_show_every_kind_of_answer(vendor: Vendor) -> None:
    readings = [
        told(fixture.read()) for fixture in ALL if fixture.vendor is vendor and fixture.call in ("callback", "status")
    ]
    seen = {str(reading.get(key)) for reading in readings for key in ("status", "problem") if isinstance(reading, dict)}
    assert seen >= {"processing", "succeeded", "failed", "unknown_status", "no_output"}
    assert any(isinstance(reading, dict) and "refusal" in reading for reading in readings)


# -- the contract ---------------------------------------------------------------------------------


def asks_for_a_token(vendor: Vendor, names: tuple[str, ...]) -> bool:
    return vendor.token_request(dict.fromkeys(names, "s3cret")) is not None


def members(kind: type) -> list[str]:
    return [name for name, member in vars(Vendor).items() if isinstance(member, kind) and not name.startswith("_")]


@every_vendor
@pytest.mark.parametrize("name", members(property))
def test_a_constant_is_of_its_type(vendor: Vendor, name: str) -> None:
    declared = get_type_hints(getattr(Vendor, name).fget)["return"]
    assert msgspec.convert(getattr(vendor, name), declared) == getattr(vendor, name)


@every_vendor
@pytest.mark.parametrize("name", members(type(lambda: None)))
def test_a_function_has_the_signature_of_the_contract(vendor: Vendor, name: str) -> None:
    promised = inspect.signature(getattr(Vendor, name))
    without_self = promised.replace(parameters=list(promised.parameters.values())[1:])
    assert inspect.signature(getattr(vendor, name)) == without_self


@every_vendor
def test_constants_are_sane(vendor: Vendor) -> None:
    assert urlsplit(vendor.BASE_URL)._replace(scheme="https", path="").geturl() == vendor.BASE_URL
    assert urlsplit(vendor.DOCS).scheme == "https"
    assert all(name.startswith(f"{vendor.SLUG.upper()}_") for names in vendor.CREDENTIALS for name in names)
    grace = vendor.RHYTHM.every if vendor.RHYTHM.grace is None else vendor.RHYTHM.grace
    assert 0 < vendor.RHYTHM.every <= grace <= vendor.RHYTHM.slowest
    assert {"read"} <= vendor.LIMITS.keys() <= {"read", "submit", "upload"}
    assert ("upload" in vendor.LIMITS) <= bool(vendor.UPLOADS)
    assert all(limit.requests > 0 and limit.seconds > 0 for limit in vendor.LIMITS.values())
    for field, endings in vendor.UPLOADS.items():
        assert endings
        assert all(re.fullmatch(r"\.[a-z0-9]+", ending) for ending in endings), field


@every_vendor
def test_every_set_of_credentials_leads_to_headers_that_carry_the_secret(vendor: Vendor) -> None:
    for names in vendor.CREDENTIALS:
        if asks_for_a_token(vendor, names):
            (name,) = vendor.CREDENTIALS[0]  # the token takes the place of the setting that is one
            request = vendor.token_request(dict.fromkeys(names, "s3cret"))
            assert request is not None
            assert "s3cret" in str(request.json)
            assert "s3cret" not in request.path + str(request.query)
        else:
            (name,) = names
        assert any("s3cret" in value for value in vendor.headers({name: "s3cret"}).values())


@every_vendor
def test_what_a_vendor_does_not_have_says_so(vendor: Vendor) -> None:
    if not vendor.LIST_PAGE:
        with pytest.raises(LookupError, match="no list call"):
            vendor.list_request(0)
        assert isinstance(vendor.read_list(200, b'{"data": []}'), Refusal)
    if not any(asks_for_a_token(vendor, names) for names in vendor.CREDENTIALS):
        assert isinstance(vendor.read_token(b'{"data": {"access_token": "t", "expire_in": 1721289220}}'), Refusal)
    if not vendor.UPLOADS:
        with pytest.raises(LookupError, match="no uploads"):
            vendor.upload_request("video_url", ".mp4")
        with pytest.raises(LookupError, match="no uploads"):
            vendor.file_request("x")
        slot = b'{"data": {"sign_url": "https://files.example/x", "file_id": "x", "status": 1}}'
        assert isinstance(vendor.read_upload(200, slot), Refusal)
        assert isinstance(vendor.read_file(200, slot), Refusal)


@every_vendor
@pytest.mark.parametrize("id_", ["x", "../../keys", "a?b=c&d", "a#b", "中 %2F"])
def test_an_id_cannot_leave_its_place_in_a_request(vendor: Vendor, id_: str) -> None:
    for ask in (vendor.status_request, *([vendor.file_request] if vendor.UPLOADS else [])):
        request, plain = ask(id_), ask("x")
        assert request.method == plain.method == "GET"
        assert request.path.count("/") == plain.path.count("/")
        assert set(request.path) & set("?# 中") == set()
        assert request.query.keys() == plain.query.keys()


@pytest.mark.parametrize("slug", VENDORS)
def test_a_vendor_module_is_pure(slug: str) -> None:
    tree = list(ast.walk(ast.parse((MODULES / f"{slug}.py").read_text(encoding="utf-8"))))
    imported = {node.module for node in tree if isinstance(node, ast.ImportFrom)}
    assert [node for node in tree if isinstance(node, ast.Try | ast.TryStar | ast.Import | ast.AsyncFunctionDef)] == []
    ours = {f"service.{name}" for name in ("model", "vendors.base", "vendors.inputs", "vendors.reading")}
    allowed = {"__future__", "collections.abc", "math", "msgspec", "typing", "urllib.parse", *ours}
    assert imported <= allowed
    of_msgspec = [node.names for node in tree if isinstance(node, ast.ImportFrom) and node.module == "msgspec"]
    assert {alias.name for aliases in of_msgspec for alias in aliases} <= {"Meta"}  # it decodes in reading.py alone
    names = {node.id for node in tree if isinstance(node, ast.Name)}
    assert names & {"Any", "open", "print", "eval", "exec", "getattr", "__import__"} == set()


# -- what holds for every reading -----------------------------------------------------------------


def assert_honest(seen: object, source: Source) -> None:
    """A reading says one thing: a status with all that belongs to it, or why there is none."""
    assert isinstance(seen, Observation)
    assert seen.source is source
    if seen.problem is not None:
        only = Observation(source=source, problem=seen.problem, detail=seen.detail, vendor_job_id=seen.vendor_job_id)
        assert seen == only
        assert seen.detail
        assert len(seen.detail) < 400
        return
    assert seen.status is not None
    assert seen.status not in OURS
    assert (seen.error is not None) == (seen.status is Status.FAILED)
    assert seen.outputs is None or (seen.outputs and seen.status is Status.SUCCEEDED)
    assert seen.status is not Status.SUCCEEDED or seen.outputs or seen.result
    assert seen.progress is None or 0 <= seen.progress <= 100
    assert seen.vendor_job_id != ""
    # It can be kept, and comes back as it was.
    assert msgspec.json.decode(msgspec.json.encode(seen), type=Observation) == seen


def assert_honest_of_a_submission(answer: Observation | Refusal, http_status: int) -> None:
    """The vendor has the job and its id is told; or it said no; or nobody can tell."""
    if isinstance(answer, Refusal):
        assert answer.code in REFUSALS
        return
    assert_honest(answer, Source.SUBMIT)
    if answer.problem is None:
        assert 200 <= http_status < 300
        assert answer.status in (Status.QUEUED, Status.PROCESSING)
        assert answer.vendor_job_id
        assert (answer.outputs, answer.result, answer.error, answer.completed_at) == (None, None, None, None)


def assert_all_reads_are_honest(vendor: Vendor, http_status: int, body: bytes) -> None:
    assert_honest(vendor.read_callback(body), Source.CALLBACK)
    assert_honest_of_a_submission(vendor.read_submit(http_status, body), http_status)
    answer = vendor.read_status(http_status, body)
    page = vendor.read_list(http_status, body)
    slot, file = vendor.read_upload(http_status, body), vendor.read_file(http_status, body)
    for no in (answer, page, slot, file, vendor.read_token(body)):
        if isinstance(no, Refusal):
            assert no.code in REFUSALS
            assert no.message
    if not isinstance(answer, Refusal):
        assert 200 <= http_status < 300
        assert_honest(answer, Source.POLL)
    if isinstance(slot, Slot):
        assert 200 <= http_status < 300
        assert msgspec.convert(msgspec.to_builtins(slot), Slot) == slot
        assert urlsplit(slot.url).scheme in ("http", "https")
        assert slot.file_id
        assert all(value.isascii() and value.isprintable() for value in slot.headers.values())
    assert isinstance(file, bool | Refusal)
    assert file is not True or 200 <= http_status < 300
    if isinstance(page, ListPage):
        assert 200 <= http_status < 300
        for row in page.observations:
            assert_honest(row, Source.POLL)


@each(lambda fixture: "args" not in fixture.data)
def test_a_fixture_reads_honestly_by_every_call(fixture: Fixture) -> None:
    assert_all_reads_are_honest(fixture.vendor, fixture.data.get("http_status", 200), fixture.body)


@each(lambda fixture: fixture.call in ("callback", "status") and fixture.task is not None)
def test_a_task_reads_alike_with_its_envelope_and_without_it(fixture: Fixture) -> None:
    assert told(fixture.vendor.read_callback(encoded(fixture.task))) == fixture.data["expected"]
    assert told(fixture.vendor.read_callback(encoded({"data": fixture.task}))) == fixture.data["expected"]


@each(lambda fixture: fixture.call in ("callback", "status") and fixture.task is not None)
def test_a_callback_and_a_status_answer_read_alike(fixture: Fixture) -> None:
    pushed, polled = fixture.vendor.read_callback(fixture.body), fixture.vendor.read_status(200, fixture.body)
    assert polled == msgspec.structs.replace(pushed, source=Source.POLL)


@each(lambda fixture: fixture.call in ("callback", "status") and fixture.task is not None)
def test_a_status_word_reads_alike_in_any_case(fixture: Fixture) -> None:
    task = fixture.task or {}
    (key,) = task.keys() & {"status", "state"}
    for said in (str(task[key]).upper(), str(task[key]).title(), f" {task[key]}\n"):
        assert told(fixture.vendor.read_callback(encoded({**task, key: said}))) == fixture.data["expected"]


@every_vendor
@pytest.mark.parametrize(
    ("http_status", "code"),
    [
        (400, "invalid_input"),
        (401, "unauthorized"),
        (402, "insufficient_credit"),
        (403, "forbidden"),
        (404, "not_found"),
        (422, "invalid_input"),
        (429, "rate_limited"),
        (500, "vendor_error"),
        (503, "vendor_unreachable"),
        (199, "vendor_error"),
        (300, "vendor_error"),
        (418, "vendor_error"),
    ],
)
@pytest.mark.parametrize("body", [b"", b"<html>", b"null", b"[]", b"{}", b'"no"', b'{"error": null, "msg": ""}'])
def test_an_http_error_is_a_refusal_whatever_the_body(vendor: Vendor, http_status: int, code: str, body: bytes) -> None:
    refusal = Refusal(code=code, message=f"HTTP {http_status}")
    assert vendor.read_status(http_status, body) == refusal
    submitted = vendor.read_submit(http_status, body)
    if http_status in (199, 300, 500):  # who knows what became of the job: perhaps it was made, and is paid for
        assert isinstance(submitted, Observation)
        assert (submitted.problem is not None, submitted.detail) == (True, f"HTTP {http_status}")
    else:
        assert submitted == refusal
    if vendor.LIST_PAGE:
        assert vendor.read_list(http_status, body) == refusal
    if vendor.UPLOADS:
        assert vendor.read_upload(http_status, body) == vendor.read_file(http_status, body) == refusal


@pytest.mark.parametrize("code", sorted(REFUSALS))
def test_a_refusal_is_retryable_where_the_same_request_may_yet_succeed(code: str) -> None:
    passing = {"rate_limited", "vendor_error", "vendor_unreachable"}
    assert Refusal(code=code, message="no").retryable == (code in passing)


# -- hostile input --------------------------------------------------------------------------------


def paths(value: object, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Where there is something in a JSON value: its own place, and those of all within."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield from paths(item, (*path, key))


def replaced(value: Any, path: tuple[str | int, ...], new: object) -> object:
    if not path:
        return new
    key, *rest = path
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    changed = {name: replaced(item, tuple(rest), new) if name == key else item for name, item in pairs}
    return changed if isinstance(value, dict) else list(changed.values())


BODIES = {
    slug: [fixture.data["body"] for fixture in ALL if fixture.slug == slug and "body" in fixture.data]
    for slug in VENDORS
}


def leaves(value: object) -> Iterator[object]:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    yield from (leaf for item in inner for leaf in leaves(item))
    if not isinstance(value, dict | list):
        yield value


#: The vendors' own keys and values, so that junk reaches behind the first look.
KEYS = sorted({str(key) for bodies in BODIES.values() for body in bodies for path in paths(body) for key in path})
VALUES = [
    json.loads(leaf) for leaf in sorted({json.dumps(leaf) for bodies in BODIES.values() for leaf in leaves(bodies)})
]

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**40), 10**40)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
    | st.sampled_from(VALUES),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=8), inner, max_size=6)
    ),
    max_leaves=16,
)
http_statuses = st.sampled_from([200, 201, 202, 204, 301, 400, 401, 404, 429, 500, 503])


@every_vendor
@given(http_status=http_statuses, body=st.binary(max_size=200))
@settings(max_examples=50, deadline=None)
def test_bytes_of_any_kind_read_honestly(vendor: Vendor, http_status: int, body: bytes) -> None:
    assert_all_reads_are_honest(vendor, http_status, body)


@every_vendor
@given(http_status=http_statuses, value=json_values)
@settings(max_examples=100, deadline=None)
def test_json_of_any_kind_reads_honestly(vendor: Vendor, http_status: int, value: object) -> None:
    assert_all_reads_are_honest(vendor, http_status, encoded(value))
    assert vendor.read_callback(encoded(value)).problem is not Problem.BAD_JSON


@every_vendor
@given(data=st.data(), http_status=http_statuses, junk=json_values)
@settings(max_examples=150, deadline=None)
def test_a_fixture_with_one_odd_value_reads_honestly(
    vendor: Vendor, data: st.DataObject, http_status: int, junk: object
) -> None:
    body = data.draw(st.sampled_from(BODIES[vendor.SLUG]))
    path = data.draw(st.sampled_from(list(paths(body))))
    assert_all_reads_are_honest(vendor, http_status, encoded(replaced(body, path, junk)))


@every_vendor
@pytest.mark.parametrize("depth", [50, 500, 900, 940, 960, 980, 1000, 100_000])
def test_nesting_of_any_depth_reads_honestly(vendor: Vendor, depth: int) -> None:
    for body in BODIES[vendor.SLUG][:20]:
        for path in paths(body):
            nested = encoded(replaced(body, path, "@deep@")).replace(b'"@deep@"', b"[" * depth + b"]" * depth)
            assert_all_reads_are_honest(vendor, 200, nested)
