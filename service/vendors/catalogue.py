"""Which model of which vendor takes a request. Pure; every bad field is named at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from service.fields import FieldError, read_fields
from service.vendors import VENDORS
from service.vendors.inputs import Input, Model


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """A request that a model takes."""

    model: Model[Any, Any]
    input: Input
    vendor_input: Input


class Misfit(msgspec.Struct, frozen=True, kw_only=True):
    """A request that cannot be used, and all that is wrong with it."""

    model: str | None  #: the one that was asked for, or that the request comes nearest to
    errors: list[FieldError]  #: fields are named `model`, `input.…` and `vendor_input.…`


def model_of(vendor: str, name: str) -> Model[Any, Any] | None:
    """A vendor's model by its name."""
    return next((model for model in VENDORS[vendor].MODELS if model.name == name), None)


def choose(
    vendor: str, model: str | None, given: Mapping[str, object], vendor_given: Mapping[str, object]
) -> Order | Misfit:
    """The order that `input` and `vendor_input` make; without `model`, of the vendor's first model that takes them."""
    models = VENDORS[vendor].MODELS
    wanted = [one for one in models if model in (None, one.name)]
    if not wanted:
        known = ", ".join(one.name for one in models)
        return Misfit(
            model=model, errors=[FieldError("model", f"must be one of {known}" if known else "there is none")]
        )
    misfits = []
    for one in wanted:
        found = fit(one, given, vendor_given)
        if isinstance(found, Order):
            return found
        misfits.append(found)
    return min(misfits, key=lambda misfit: len(misfit.errors))


def takers(given: Mapping[str, object]) -> list[tuple[str, str]]:
    """The vendors' models for which this `input` is enough, each as vendor and model."""
    return [
        (slug, model.name)
        for slug, vendor in VENDORS.items()
        for model in vendor.MODELS
        if isinstance(fit(model, given, {}), Order)
    ]


def fit(model: Model[Any, Any], given: Mapping[str, object], vendor_given: Mapping[str, object]) -> Order | Misfit:
    """The order that `input` and `vendor_input` make of one model."""
    own, ours = model.vendor_input.__struct_fields__, model.input.__struct_fields__
    misplaced = [FieldError(f"input.{name}", "goes under vendor_input") for name in given if name in own]
    misplaced += [FieldError(f"vendor_input.{name}", "goes under input") for name in vendor_given if name in ours]
    input_ = read_fields(given, model.input, within="input.")
    vendor_input = read_fields(vendor_given, model.vendor_input, within="vendor_input.")
    broken = list(_broken(model, _named(given, "input.") | _named(vendor_given, "vendor_input.")))
    if isinstance(input_, Input) and isinstance(vendor_input, Input) and not broken:
        return Order(model=model, input=input_, vendor_input=vendor_input)
    once: dict[str, FieldError] = {}
    for found in (misplaced, input_, vendor_input, broken):
        for error in found if isinstance(found, list) else ():
            once.setdefault(error.field, error)
    return Misfit(model=model.name, errors=list(once.values()))


def rebuild(vendor: str, model: str, input: object, vendor_input: object) -> Order:
    """The order that was kept as JSON.

    Raises:
        LookupError: the vendor no longer has the model.
        msgspec.ValidationError: the model no longer takes it.
    """
    found = model_of(vendor, model)
    if found is None:
        raise LookupError(f"{vendor} has no model {model}")
    return Order(
        model=found,
        input=msgspec.convert(input, found.input),
        vendor_input=msgspec.convert(vendor_input, found.vendor_input),
    )


# -- what comes before the submission -------------------------------------------------------------


def first_of(order: Order) -> Order | None:
    """The order of the job that has to be done before, of the same input; None where none is needed."""
    first = order.model.first
    if first is None or getattr(order.input, first.field) is None:
        return None
    (models,) = (vendor.MODELS for vendor in VENDORS.values() if order.model in vendor.MODELS)
    (model,) = (model for model in models if model.name == first.model)
    input_ = msgspec.convert(order.input, model.input, from_attributes=True)
    return Order(model=model, input=input_, vendor_input=model.vendor_input())


def to_upload(order: Order) -> dict[str, str]:
    """The fields that the vendor takes only as files of its own, and the URLs that are given in them."""
    urls = {field: getattr(order.input, field) for field in order.model.uploads}
    return {field: url for field, url in urls.items() if url is not None}


def prepared(order: Order, found: Mapping[str, object]) -> Order:
    """The order with what was `found` in its `vendor_input`, and without the fields that this takes the place of."""
    model, new = order.model, {f"vendor_input.{name}" for name in found}
    spent = {name for group in model.one_of if new & set(group) for name in group} - new
    spent |= {name for name, needed in model.needs.items() if needed in spent}

    def without(within: str) -> dict[str, object]:
        return {name.removeprefix(within): None for name in spent if name.startswith(within)}

    return Order(
        model=model,
        input=msgspec.structs.replace(order.input, **without("input.")),
        vendor_input=msgspec.structs.replace(order.vendor_input, **without("vendor_input."), **found),
    )


# -- the fields that are given --------------------------------------------------------------------


def _named(given: Mapping[str, object], within: str) -> set[str]:
    return {within + name for name, value in given.items() if value is not None}


def _broken(model: Model[Any, Any], given: set[str]) -> Iterator[FieldError]:
    """Where the fields that are given do not go together."""
    for group in model.one_of:
        present = [name for name in group if name in given]
        words = " or ".join(group)
        if not present:
            yield FieldError(group[0], f"is required: {words}")
        elif len(present) > 1:
            yield from (FieldError(name, f"is one too many: {words}") for name in present)
    for name, needed in model.needs.items():
        if name in given and needed not in given:
            choices = [given & set(group) for group in model.one_of if needed in group]
            if any(choices):
                yield FieldError(name, f"goes only with {needed}")
            elif not choices:  # else something of the group is required anyway
                yield FieldError(needed, f"is required with {name}")
