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
    input_ = read_fields(given, model.input, within="input.")
    vendor_input = read_fields(vendor_given, model.vendor_input, within="vendor_input.")
    broken = list(_broken(model, _named(given, "input.") | _named(vendor_given, "vendor_input.")))
    if isinstance(input_, Input) and isinstance(vendor_input, Input) and not broken:
        return Order(model=model, input=input_, vendor_input=vendor_input)
    once: dict[str, FieldError] = {}
    for found in (input_, vendor_input, broken):
        for error in found if isinstance(found, list) else ():
            once.setdefault(error.field, error)
    return Misfit(model=model.name, errors=list(once.values()))


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
            instead = any(needed in group and given & set(group) for group in model.one_of)
            yield (
                FieldError(name, f"goes only with {needed}")
                if instead
                else FieldError(needed, f"is required with {name}")
            )
