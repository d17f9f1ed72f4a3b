"""The fixtures in `tests/vendors/<slug>/`: how one is read, and what it is compared with.

A fixture is one call: `source` says where it comes from, `call` what is called with `body` (JSON), `raw` (where the
bytes matter) or `args`, and `expected` is all that is read, as JSON without its defaults and without the observation's
source. The `args` of a submission are the model or null, `input`, `vendor_input` and the callback URL or null.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

import service.vendors
from service.model import JobError
from service.vendors import VENDORS
from service.vendors.base import Refusal, Request, Vendor
from service.vendors.catalogue import Misfit, Order, choose, first_of, prepared, to_upload
from service.vendors.inputs import Choice, Model

FIXTURES = Path(__file__).parents[1] / "vendors"
MODULES = Path(service.vendors.__file__).parent

#: What a fixture of a call is given: one of the first, and perhaps one of the second.
CALLS: dict[str, tuple[set[str], set[str]]] = {
    "callback": ({"body", "raw"}, set()),
    "status": ({"body", "raw"}, {"http_status"}),
    "submit": ({"body", "raw"}, {"http_status"}),
    "list": ({"body", "raw"}, {"http_status"}),
    "token": ({"body", "raw"}, set()),
    "upload": ({"body", "raw"}, {"http_status"}),
    "file": ({"body", "raw"}, {"http_status"}),
    "upload_request": ({"args"}, set()),
    "file_request": ({"args"}, set()),
    "status_request": ({"args"}, set()),
    "submit_request": ({"args"}, set()),
    "list_request": ({"args"}, set()),
    "token_request": ({"args"}, set()),
    "headers": ({"args"}, set()),
}

REFUSALS = {
    "invalid_input",
    "unauthorized",
    "insufficient_credit",
    "forbidden",
    "not_found",
    "rate_limited",
    "vendor_error",
    "vendor_unreachable",
}


def request_of(vendor: Vendor, order: Order | Misfit, callback_url: str | None) -> Request:
    """The request that an order makes, which has to be one, once it is ready."""
    assert isinstance(order, Order), order
    order = ready(order)
    return vendor.submit_request(order.model.name, order.input, order.vendor_input, callback_url)


def ready(order: Order) -> Order:
    """The order once its files are uploaded and the job before it is done: with ids that the sandbox knows."""
    found = [order.model.uploads[field] for field in to_upload(order)]
    if first_of(order):
        found += [name for choice in choices(order.model) if isinstance(choice, Choice) for name in choice.vendor_input]
    return prepared(order, dict.fromkeys(found, "sandbox-x"))


def choices(model: Model[Any, Any]) -> list[Choice | JobError]:
    """What is chosen of the results, among the fixtures, of the job that goes before one of `model`."""
    assert model.first
    told_ = [fixture.data["expected"] for fixture in ALL if model in fixture.vendor.MODELS and "body" in fixture.data]
    done = [one for one in told_ if (one.get("model"), one.get("status")) == (model.first.model, "succeeded")]
    return [model.first.choose(model.vendor_input(), one["result"]) for one in done]


class Fixture(msgspec.Struct, frozen=True):
    slug: str
    name: str
    data: dict[str, Any]

    @property
    def id(self) -> str:
        return f"{self.slug}/{self.name}"

    @property
    def vendor(self) -> Vendor:
        return VENDORS[self.slug]

    @property
    def call(self) -> str:
        return str(self.data["call"])

    @property
    def body(self) -> bytes:
        """The bytes of the body; in `raw`, lone surrogates stand for bytes that are not UTF-8."""
        raw = self.data.get("raw")
        return encoded(self.data["body"]) if raw is None else raw.encode("utf-8", "surrogateescape")

    @property
    def task(self) -> dict[str, Any] | None:
        """The task in a body that reads as a status: with an envelope that reports no error, or without one."""
        body = self.data.get("body")
        if not isinstance(body, dict) or "status" not in self.data["expected"]:
            return None
        task = body.get("data", body) if str(body.get("code", 0)) in ("0", "200") else {}
        return task if isinstance(task, dict) and len(task.keys() & {"status", "state"}) == 1 else None

    def read(self) -> object:
        match self.call:
            case "callback":
                return self.vendor.read_callback(self.body)
            case "status":
                return self.vendor.read_status(self.data.get("http_status", 200), self.body)
            case "submit":
                return self.vendor.read_submit(self.data.get("http_status", 200), self.body)
            case "submit_request":
                model, given, vendor_given, callback_url = self.data["args"]
                return request_of(self.vendor, choose(self.slug, model, given, vendor_given), callback_url)
            case "list" | "upload" | "file":
                return getattr(self.vendor, f"read_{self.call}")(self.data.get("http_status", 200), self.body)
            case "token":
                return self.vendor.read_token(self.body)
            case _:
                return getattr(self.vendor, self.call)(*self.data["args"])


ALL = [
    Fixture(path.parent.name, path.stem, json.loads(path.read_text(encoding="utf-8")))
    for path in sorted(FIXTURES.glob("*/*.json"))
]


def each(chosen: Callable[[Fixture], bool]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        "fixture", [pytest.param(fixture, id=fixture.id) for fixture in ALL if chosen(fixture)]
    )


every_vendor = pytest.mark.parametrize("vendor", [pytest.param(VENDORS[slug], id=slug) for slug in VENDORS])


def encoded(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def told(value: object) -> object:
    """`value` as a fixture's `expected` has it."""
    if isinstance(value, tuple):
        return [told(item) for item in value]
    if not isinstance(value, msgspec.Struct):
        return msgspec.to_builtins(value)
    fields = {
        field.name: told(getattr(value, field.name))
        for field in msgspec.structs.fields(value)
        if field.name != "source" and (field.required or getattr(value, field.name) != default(field))
    }
    return {"refusal": fields} if isinstance(value, Refusal) else fields


def default(field: msgspec.structs.FieldInfo) -> object:
    return field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
