"""Callbacks as the vendors' pages and fixtures have them."""

from __future__ import annotations

import json
from typing import Final

import pytest

from service.vendors import VENDORS

RECEIVED: Final = {"received": True}
every_vendor = pytest.mark.parametrize("vendor", list(VENDORS))


def apimodels(vendor_job_id: str, state: str, **task: object) -> dict[str, object]:
    """A callback as apimodels words it."""
    result = json.dumps({"resultUrls": ["https://cdn.example.com/film.mp4"]}) if state == "completed" else None
    return {"code": 200, "data": {"taskId": vendor_job_id, "state": state, "resultJson": result, **task}}


def token_of(url: str) -> str:
    return url.rpartition("/")[2]


def mac_of(url: str) -> str:
    return url.rpartition(".")[2]
