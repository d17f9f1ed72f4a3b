"""What every vendor keeps about submission: its models, its prices, its requests, and what it reads of the answer.

As in test_vendors.py, nothing here names a vendor: a new one is one module and its fixtures.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.model import Cost
from service.vendors import VENDORS
from service.vendors.base import Refusal, Vendor
from service.vendors.catalogue import Order, choose, first_of, fit, model_of, rebuild, takers, to_upload
from service.vendors.inputs import Choice, Input, Model
from tests.support import orders
from tests.support.vendors import ALL, REFUSALS, Fixture, choices, each, every_vendor, ready, request_of, told

MODELS = [(vendor, model) for vendor in VENDORS.values() for model in vendor.MODELS]
CALLBACK_URL = "https://callsheet.example/callbacks/vendor/job_0.0123456789abcdef"

every_model = pytest.mark.parametrize(
    ("vendor", "model"), [pytest.param(*pair, id=f"{pair[0].SLUG}/{pair[1].name}") for pair in MODELS]
)


every_second = pytest.mark.parametrize(
    ("vendor", "model"), [pytest.param(*pair, id=f"{pair[0].SLUG}/{pair[1].name}") for pair in MODELS if pair[1].first]
)


def schema(type_: type[Input]) -> dict[str, Any]:
    _, named = msgspec.json.schema_components((type_,))
    return dict(named[type_.__name__])


def of_value(described: dict[str, Any]) -> dict[str, Any]:
    """What a field's schema says of its value, required or not."""
    *_, found = [one for one in described.get("anyOf", [described]) if one != {"type": "null"}]
    return {key: value for key, value in found.items() if key != "default"}


# -- the models -----------------------------------------------------------------------------------


@every_vendor
def test_a_vendors_models_are_told_apart_by_name(vendor: Vendor) -> None:
    names = [model.name for model in vendor.MODELS]
    assert len(set(names)) == len(names)
    assert [model_of(vendor.SLUG, name) for name in names] == list(vendor.MODELS)
    assert model_of(vendor.SLUG, "no such model") is None


@every_model
def test_a_model_says_what_people_need(vendor: Vendor, model: Model[Any, Any]) -> None:
    assert all((model.name.strip(), model.price.strip(), model.limits.strip(), model.unit.strip()))
    for type_ in (model.input, model.vendor_input):
        assert issubclass(type_, Input)
        assert schema(type_)["additionalProperties"] is False
        assert "$ref" not in json.dumps(schema(type_))  # flat: each field can be shown, and named in an error


@every_model
def test_the_rules_of_a_model_are_about_its_optional_fields(vendor: Vendor, model: Model[Any, Any]) -> None:
    optional = orders.fields(model).keys() - orders.required(model)
    assert {name for group in model.one_of for name in group} <= optional
    assert {*model.needs, *model.needs.values()} <= optional


def test_a_canonical_name_means_the_same_for_every_vendor() -> None:
    meanings: dict[str, set[str]] = {}
    for _, model in MODELS:
        for name, described in schema(model.input)["properties"].items():
            assert of_value(described)["description"]
            meanings.setdefault(name, set()).add(json.dumps(of_value(described), sort_keys=True))
    assert [name for name, found in meanings.items() if len(found) > 1] == []
    own = {name for _, model in MODELS for name in schema(model.vendor_input)["properties"]}
    assert own & meanings.keys() == set()


@every_model
def test_the_length_of_what_a_model_takes_may_be_told(vendor: Vendor, model: Model[Any, Any]) -> None:
    """Else a request that tells it, for one vendor's estimate, could not move to another vendor."""
    lengths = {
        "video_url": "video_duration_seconds",
        "audio_url": "duration_seconds",
        "text": "duration_seconds",
        "left_audio_url": "left_duration_seconds",
        "right_audio_url": "right_duration_seconds",
    }
    taken = schema(model.input)["properties"].keys()
    assert {lengths[name] for name in taken & lengths.keys()} == taken & set(lengths.values())


@every_vendor
def test_what_has_to_be_uploaded_is_an_input_of_the_vendors_and_asked_for_by_its_ending(vendor: Vendor) -> None:
    assert {field for model in vendor.MODELS for field in model.uploads} == vendor.UPLOADS.keys()
    seen = []
    for field, endings in vendor.UPLOADS.items():
        for ending in endings:
            request = vendor.upload_request(field, ending)
            assert ending in json.dumps(msgspec.to_builtins(request))
            assert request not in seen
            seen.append(request)


@every_model
def test_the_file_of_an_upload_takes_the_place_of_its_input(vendor: Vendor, model: Model[Any, Any]) -> None:
    for field, target in model.uploads.items():
        assert any({f"input.{field}", f"vendor_input.{target}"} <= set(group) for group in model.one_of)


@every_second
def test_what_a_first_job_finds_takes_the_place_of_its_input(vendor: Vendor, model: Model[Any, Any]) -> None:
    assert model.first
    first = model_of(vendor.SLUG, model.first.model)
    assert first
    assert (first.first, first.uploads) == (None, {})
    found = [choice for choice in choices(model) if isinstance(choice, Choice)]
    assert found
    for choice in found:
        [group] = [group for group in model.one_of if f"input.{model.first.field}" in group]
        assert {f"vendor_input.{name}" for name in choice.vendor_input} & set(group)
        assert choice.words
        assert msgspec.convert(choice.vendor_input, model.vendor_input)


# -- orders and requests --------------------------------------------------------------------------


@every_model
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_whatever_a_model_takes_becomes_a_request(vendor: Vendor, model: Model[Any, Any], data: st.DataObject) -> None:
    input_, own = data.draw(orders.given(model))
    order = choose(vendor.SLUG, model.name, input_, own)
    assert isinstance(order, Order), order
    assert order.model is model

    plain, told_where = (request_of(vendor, order, url) for url in (None, CALLBACK_URL))
    assert (plain.method, plain.query) == ("POST", {})
    assert set(plain.path) & set("?# ") == set()
    assert msgspec.json.decode(msgspec.json.encode(plain.json)) == plain.json
    assert None not in leaves(plain.json)
    has_webhook = vendor.RHYTHM.grace is not None
    assert (CALLBACK_URL in json.dumps(told_where.json)) == has_webhook
    assert (told_where == plain) != has_webhook

    sent = ready(order)
    assert fit(model, said(sent.input), said(sent.vendor_input)) == sent
    assert (to_upload(sent), first_of(sent)) == ({}, None)

    # What is kept of a job makes the same order again.
    for one in (order, sent):
        kept = msgspec.json.decode(msgspec.json.encode([one.input, one.vendor_input]))
        assert rebuild(vendor.SLUG, model.name, *kept) == one

    cost = model.estimate(order.input, order.vendor_input)
    if cost is not None:
        assert cost == Cost(estimated=cost.estimated, unit=model.unit)
        assert (cost.estimated or 0) > 0


def said(part: Input) -> dict[str, Any]:
    """An input as a request has it."""
    return {name: value for name, value in msgspec.to_builtins(part).items() if value is not None}


@every_second
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_what_has_to_be_done_before_is_an_order_of_the_same_input(
    vendor: Vendor, model: Model[Any, Any], data: st.DataObject
) -> None:
    assert model.first
    input_, own = data.draw(orders.given(model))
    order = choose(vendor.SLUG, model.name, input_, own)
    assert isinstance(order, Order)
    before = first_of(order)
    assert (before is not None) == (model.first.field in input_)
    if before:
        assert before.model is model_of(vendor.SLUG, model.first.model)
        shared = {name: value for name, value in input_.items() if name in before.model.input.__struct_fields__}
        assert fit(before.model, shared, {}) == before


def leaves(value: object) -> list[object]:
    """All that is in a request's JSON."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [value] if not isinstance(value, dict | list) else [leaf for item in inner for leaf in leaves(item)]


@every_model
def test_what_is_required_is_enough_and_nothing_of_it_can_be_missing(vendor: Vendor, model: Model[Any, Any]) -> None:
    input_, own = orders.least(model)
    assert isinstance(fit(model, input_, own), Order)
    for part, given_, other in (("input", input_, own), ("vendor_input", own, input_)):
        for name in given_:
            less = {key: value for key, value in given_.items() if key != name}
            misfit = fit(model, less, other) if part == "input" else fit(model, other, less)
            assert not isinstance(misfit, Order)
            [error] = misfit.errors
            group = next((group for group in model.one_of if f"{part}.{name}" in group), (f"{part}.{name}",))
            assert error.field == group[0]
            assert "is required" in error.detail


@every_model
def test_an_unknown_field_is_named_wherever_it_is(vendor: Vendor, model: Model[Any, Any]) -> None:
    input_, own = orders.least(model)
    misfit = fit(model, {**input_, "colour": "red"}, {**own, "taste": None})
    assert not isinstance(misfit, Order)
    assert {error.field for error in misfit.errors} == {"input.colour", "vendor_input.taste"}


@every_model
def test_a_model_that_needs_nothing_of_its_own_is_a_taker(vendor: Vendor, model: Model[Any, Any]) -> None:
    input_, own = orders.least(model)
    assert ((vendor.SLUG, model.name) in takers(input_)) == (own == {})


@every_vendor
def test_every_model_has_a_request_among_the_fixtures(vendor: Vendor) -> None:
    shown = {
        order.model.name
        for fixture in ALL
        if fixture.vendor is vendor and fixture.call == "submit_request"
        for order in [choose(fixture.slug, *fixture.data["args"][:3])]
        if isinstance(order, Order)
    }
    # Models of the same types make the same requests.
    types = [(model.input, model.vendor_input) for model in vendor.MODELS if model.name in shown]
    assert [model.name for model in vendor.MODELS if (model.input, model.vendor_input) not in types] == []


# -- answers --------------------------------------------------------------------------------------


@every_vendor
def test_the_fixtures_of_a_vendor_show_every_kind_of_answer_to_a_submission(vendor: Vendor) -> None:
    answers = [told(fixture.read()) for fixture in ALL if fixture.vendor is vendor and fixture.call == "submit"]
    kinds = {
        key
        for answer in answers
        if isinstance(answer, dict)
        for key in ("status", "problem", "refusal")
        if key in answer
    }
    assert kinds == {"status", "problem", "refusal"}


@each(lambda fixture: fixture.call == "submit" and "status" in fixture.data["expected"])
def test_an_answer_under_an_http_error_never_counts_as_taken(fixture: Fixture) -> None:
    for http_status in (302, 400, 401, 402, 429, 500, 502, 503, 504):
        answer = fixture.vendor.read_submit(http_status, fixture.body)
        if isinstance(answer, Refusal):
            assert answer.code in REFUSALS
            assert http_status not in (302, 500, 502, 504)  # the job is named: it may well exist
        else:
            assert (answer.status, answer.problem is not None) == (None, True)
