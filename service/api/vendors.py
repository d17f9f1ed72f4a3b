"""`/v1/vendors`: what can be asked of whom, for how much, and whether this deployment has an account there."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from service.deployment import Deployment
from service.model import Limit
from service.settings import Account
from service.vendors import VENDORS
from service.vendors.base import Vendor
from service.vendors.inputs import Input, Model

#: JSON Schema.
Schema = dict[str, Any]


class ModelEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A model. Fields in `one_of` and `needs` are named `input.…` or `vendor_input.…`."""

    name: str
    input: Schema
    vendor_input: Schema
    one_of: tuple[tuple[str, ...], ...]  #: of each group exactly one field is given
    needs: dict[str, str]  #: a field → the field without which it means nothing
    limits: str
    price: str
    unit: str
    makes_media: bool


class Credentials(msgspec.Struct, frozen=True, kw_only=True):
    """Whether there are credentials, and which settings hold them; never their values."""

    present: bool
    settings: str


class VendorEntry(msgspec.Struct, frozen=True, kw_only=True):
    vendor: str
    name: str
    docs: str
    callbacks: bool  #: whether the vendor calls back; else it is only polled
    credentials: Credentials
    limits: dict[str, Limit]  #: how often this deployment calls it at most, by kind of call
    models: tuple[ModelEntry, ...]


def routes(deployment: Deployment) -> list[Route]:
    accounts = deployment.settings.accounts
    data = [_vendor(vendor, accounts[slug]) for slug, vendor in VENDORS.items()]
    body = msgspec.json.encode({"data": data})  # settings do not change while a process lives

    async def list_(_request: Request) -> Response:
        return Response(body, media_type="application/json")

    return [Route("/vendors", list_, methods=["GET"])]


def _vendor(vendor: Vendor, account: Account) -> VendorEntry:
    return VendorEntry(
        vendor=vendor.SLUG,
        name=vendor.NAME,
        docs=vendor.DOCS,
        callbacks=vendor.RHYTHM.grace is not None,
        credentials=Credentials(present=account.complete, settings=account.wanted),
        limits=account.limits,
        models=tuple(map(_model, vendor.MODELS)),
    )


def _model(model: Model[Any, Any]) -> ModelEntry:
    return ModelEntry(
        name=model.name,
        input=schema_of(model.input),
        vendor_input=schema_of(model.vendor_input),
        one_of=model.one_of,
        needs=dict(model.needs),
        limits=model.limits,
        price=model.price,
        unit=model.unit,
        makes_media=model.makes_media,
    )


def schema_of(type_: type[Input]) -> Schema:
    """The JSON Schema of a flat type, in one piece."""
    _, named = msgspec.json.schema_components((type_,))
    found: Schema = named[type_.__name__]
    return found
