"""The vendors, found by looking: every module here but the `SHARED` ones is one, and its name is the slug."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from typing import Final, cast

from service.vendors.base import Vendor

#: What vendor modules stand on, and what reads them all.
SHARED: Final = frozenset({"base", "catalogue", "inputs", "reading"})

#: By slug. What the cast claims, the conformance tests prove of every module.
VENDORS: Final[dict[str, Vendor]] = {
    module.name: cast(Vendor, import_module(f"{__name__}.{module.name}"))
    for module in iter_modules(__path__)
    if module.name not in SHARED
}
