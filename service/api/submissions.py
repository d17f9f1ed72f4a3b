"""What `POST /v1/jobs` makes of a request to submit: one shape for all vendors, every bad field named at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import msgspec

from service.api.problems import ApiError
from service.fields import Checks, read_fields
from service.jobs.scripts import Line
from service.model import Cost, Observation, Source, Submission
from service.settings import Account
from service.vendors import catalogue
from service.vendors.catalogue import Misfit, Order

#: No model has as many; each one that is unknown is named in the answer.
Fields = Annotated[dict[str, object], msgspec.Meta(max_length=100)]


class SubmitRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A job that is to be submitted to a vendor. The fields of `input` mean the same for every vendor."""

    vendor: str
    input: Fields = {}
    model: str | None = None  #: None: the vendor's first model that takes this input
    vendor_input: Fields | None = None
    metadata: dict[str, object] = {}


class _Input(msgspec.Struct, frozen=True):
    input: Fields = {}


#: What decides which model is meant. While one of these is wrong, nothing can be said about the fields inside.
_DECISIVE = frozenset({"vendor", "input", "model", "vendor_input"})


def read_submission(given: Mapping[str, object], checks: Checks) -> tuple[SubmitRequest, Order]:
    """The request and the order that it makes.

    Raises:
        ApiError: 422 with every bad field, and (`could_take`) the vendors' models that this input is enough for.
    """
    wanted = read_fields(given, SubmitRequest, checks)
    errors = wanted if isinstance(wanted, list) else []
    parts = {name: given[name] for name in _DECISIVE & given.keys()}
    part = read_fields(parts, SubmitRequest, checks)
    found: Order | Misfit | None = None
    if isinstance(part, SubmitRequest):
        found = catalogue.choose(part.vendor, part.model, part.input, part.vendor_input or {})
        if isinstance(found, Order) and isinstance(wanted, SubmitRequest):
            return wanted, found
        if isinstance(found, Misfit):
            errors = [*errors, *found.errors]
    named = read_fields({name: given[name] for name in {"input"} & given.keys()}, _Input)
    takers = catalogue.takers(named.input) if isinstance(named, _Input) and not isinstance(found, Order) else []
    detail = "the request has fields that cannot be used"
    if takers:
        detail += "; its input is enough for " + ", ".join(f"{vendor} ({model})" for vendor, model in takers)
    could_take = [{"vendor": vendor, "model": model} for vendor, model in takers]
    raise ApiError(422, detail, errors, could_take=could_take)


def accepted(wanted: SubmitRequest, order: Order) -> tuple[Observation, Submission]:
    """The first fact about the new job, and what it asks of its vendor."""
    estimate = order.model.estimate(order.input, order.vendor_input)
    first = catalogue.first_of(order)
    seen = Observation(
        source=Source.SUBMIT,
        model=order.model.name,
        metadata=wanted.metadata,
        cost=estimate or Cost(unit=order.model.unit),
        detail=f"accepted for {order.model.name}" + (f", after {first.model.name}" if first else ""),
    )
    submission = Submission(
        model=order.model.name,
        input=_given(order.input),
        vendor_input=_given(order.vendor_input),
        step=first.model.name if first else None,
    )
    return seen, submission


def place_in_line(account: Account, order: Order) -> Line | None:
    """One that lacks nothing gets its place at once, others once they are ready; None: there is no line."""
    limit = account.limits.get("submit")
    if limit is None or catalogue.to_upload(order) or catalogue.first_of(order):
        return None
    return Line.of(limit)


def _given(value: msgspec.Struct) -> dict[str, object]:
    return {name: field for name, field in msgspec.structs.asdict(value).items() if field is not None}
