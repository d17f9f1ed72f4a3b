"""`python -m tests.audit`: what is pinned, against what is installed and against the advisories that OSV knows.

The first needs nothing. The second asks api.osv.dev, for which no file in this repository can stand in: the advisories
that come as a package (safety-db) end in 2021. Where OSV cannot be reached, its last answer about these very pins
counts, and its age is told; where there is none, this says that nothing was audited.
"""

from __future__ import annotations

import hashlib
import re
import sys
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path
from typing import Final

import httpx
import msgspec
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.processes import ROOT

LOCK: Final = ROOT / "requirements.lock"
OSV: Final = "https://api.osv.dev/v1/querybatch"
#: The last answer; `make clean` takes it away with the environment.
KEPT: Final = Path(sys.prefix) / ".audit.json"
#: What a virtual environment has by itself, and this project.
_OWN: Final = frozenset({"pip", "setuptools", "callsheet"})


class Audit(msgspec.Struct, frozen=True):
    """What OSV said about one lock."""

    lock: str  #: its SHA-256
    at: datetime
    advisories: dict[str, list[str]]  #: pin → ids


def pins(lock: str) -> dict[str, str]:
    """Name → version, of what applies to this machine. ValueError for a line without an exact version and a hash."""
    found = {}
    for entry in re.split(r"(?<!\\)\n", re.sub(r"^ *#.*\n", "", lock, flags=re.MULTILINE).strip()):
        line, *hashes = entry.replace("\\\n", "").split("--hash=sha256:")
        wanted = Requirement(line.strip())
        [specifier] = wanted.specifier
        if specifier.operator != "==" or not hashes:
            raise ValueError(f"{wanted.name} is not pinned by version and hash")
        if wanted.marker is None or wanted.marker.evaluate():
            found[str(canonicalize_name(wanted.name))] = specifier.version
    return found


def differences(pinned: dict[str, str]) -> tuple[list[str], list[str]]:
    """What is installed otherwise than pinned, and what is installed beside it."""
    installed = {str(canonicalize_name(found.name)): found.version for found in distributions()}
    wrong = [
        f"{name} {version} is pinned, {installed.get(name, 'none')} is installed"
        for name, version in pinned.items()
        if installed.get(name) != version
    ]
    return wrong, sorted(installed.keys() - pinned.keys() - _OWN)


def asked(pinned: dict[str, str], lock: str) -> Audit:
    """What OSV says now. httpx.HTTPError where it says nothing."""
    package = [{"package": {"ecosystem": "PyPI", "name": name}, "version": version} for name, version in pinned.items()]
    answer = httpx.post(OSV, json={"queries": package}, timeout=10).raise_for_status().json()
    found = {
        f"{name} {version}": [advisory["id"] for advisory in result["vulns"]]
        for (name, version), result in zip(pinned.items(), answer["results"], strict=True)
        if result.get("vulns")
    }
    return Audit(_digest(lock), datetime.now(UTC), found)


def _digest(lock: str) -> str:
    return hashlib.sha256(lock.encode()).hexdigest()


def main() -> int:
    lock = LOCK.read_text()
    pinned = pins(lock)
    wrong, beside = differences(pinned)
    print("\n".join(wrong) or f"{len(pinned)} packages are installed as they are pinned")
    if beside:
        print(f"installed beside them: {', '.join(beside)}")
    trouble = ""
    try:
        audit: Audit | None = asked(pinned, lock)
        KEPT.write_bytes(msgspec.json.encode(audit))
    except (httpx.HTTPError, OSError) as error:
        trouble = f"{httpx.URL(OSV).host} cannot be reached ({type(error).__name__})"
        audit = msgspec.json.decode(KEPT.read_bytes(), type=Audit) if KEPT.is_file() else None
    if audit is None or audit.lock != _digest(lock):
        print(f"NOT AUDITED for known vulnerabilities: {trouble}, and no answer about these pins is kept")
        return bool(wrong)
    days = (datetime.now(UTC) - audit.at).days
    print(f"known vulnerabilities: {len(audit.advisories)}, as OSV knew them {days} days ago ({audit.at:%Y-%m-%d})")
    for pin, ids in audit.advisories.items():
        print(f"  {pin}: {', '.join(f'https://osv.dev/{id_}' for id_ in ids)}")
    return bool(wrong or audit.advisories)


if __name__ == "__main__":
    sys.exit(main())
