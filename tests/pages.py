"""`python -m tests.pages`: writes the pages of docs/ that are made of the code; a test tells which are old.

`settings.md` from `service/settings.py` and the vendors, `states.md` and `states.svg` from `service/jobs/rules.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import product
from math import hypot
from typing import Any, Final

import msgspec

from service.jobs.rules import RANK, Decision, Witness, decide
from service.model import Status
from service.settings import Settings, load
from service.vendors import VENDORS
from service.vendors.base import Vendor
from tests.support.processes import ROOT

DOCS: Final = ROOT / "docs"
_MADE: Final = "<!-- Made by `python -m tests.pages`: change what it is made of. -->\n\n"


def pages() -> dict[str, str]:
    """File name → what has to be in it."""
    return {"settings.md": _settings(), "states.md": _states(), "states.svg": _drawing()}


# -- settings -------------------------------------------------------------------------------------------------


class _Spy(dict[str, str]):
    """An environment with what is required; knows what it was asked for, in order."""

    def __init__(self) -> None:
        super().__init__(
            REDIS_URL="redis://x", STORAGE_URL="s3://x", PUBLIC_URL="https://x", SECRET_KEYS="x", API_KEYS="x:x"
        )
        self.asked: dict[str, None] = {}

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.setdefault(key)
        return super().get(key, default)


def _settings() -> str:
    spy = _Spy()
    load((), spy)
    meanings = dict(re.findall(r"^    (\w+): .*  #: (.*)$", (ROOT / "service/settings.py").read_text(), re.MULTILINE))
    fields = [field for field in msgspec.structs.fields(Settings) if field.name != "accounts"]
    rows = "\n".join(
        f"| `{name}` | {_default(field)} | {meanings[field.name]} |"
        for name, field in zip((name for name in spy.asked if not name.startswith("AWS_")), fields, strict=True)
    )
    vendors = "\n".join(_vendor(vendor) for vendor in VENDORS.values())
    return f"""{_MADE}# Settings

All are environment variables. Whatever is missing or wrong is said by name, all at once, when a process starts, and by
`callsheet doctor`. Sizes are in bytes.

| setting | default | |
|---|---|---|
{rows}

The Procfile takes three more: `HOST` (of `web`; all addresses), `PORT` (8000), and `WEB_CONCURRENCY`, how many web
processes share the port (1). Credentials of the object storage have their provider's names: `AWS_ACCESS_KEY_ID`,
`AWS_SECRET_ACCESS_KEY`, `AWS_REGION` and `AWS_ENDPOINT_URL`; `GOOGLE_APPLICATION_CREDENTIALS`;
`AZURE_STORAGE_ACCOUNT_NAME` and `AZURE_STORAGE_ACCOUNT_KEY`. They have to be able to sign URLs. How objects are
encrypted is the bucket's own default.

## Of each vendor

Without a vendor's credentials its callbacks are received, but nobody submits to it or asks it. `<VENDOR>_BASE_URL` is
another address for it: the sandbox, a proxy. A limit is `requests/seconds`, over all processes, in place of what the
vendor's page says; `<VENDOR>_READ_LIMIT` and `<VENDOR>_SUBMIT_LIMIT` are there for every vendor.

| vendor | credentials | limits |
|---|---|---|
{vendors}
"""


def _default(field: msgspec.structs.FieldInfo) -> str:
    if field.required:
        return "required"
    return {None: "", "": "", True: "on", False: "off"}.get(field.default, f"`{field.default}`")


def _vendor(vendor: Vendor) -> str:
    sets = " or ".join(" + ".join(f"`{name}`" for name in names) for names in vendor.CREDENTIALS)
    limits = [
        f"`{vendor.SLUG.upper()}_{kind.upper()}_LIMIT={limit.requests}/{limit.seconds:g}`"
        for kind, limit in vendor.LIMITS.items()
    ]
    return f"| {vendor.NAME} | {sets} | {' '.join(limits)} |"


# -- states ---------------------------------------------------------------------------------------------------

_SAYS: Final = {Decision.APPLY: "**yes**", Decision.SAME: "known", Decision.STALE: "stale", Decision.ASK: "ask"}
_WITNESSES: Final = {
    Witness.ASKED: "The vendor was asked: answers to submissions, polls",
    Witness.TOLD: "The vendor told it, by the job's own callback URL",
    Witness.HINTED: "The vendor's shared callback URL, which others may know",
    Witness.OWN: "The service itself, or its operator",
}


def _states() -> str:
    tables = "\n".join(f"\n## {words}\n\n{_table(witness)}" for witness, words in _WITNESSES.items())
    return f"""{_MADE}# States of a job

![The states of a job, and how it goes from one to another](states.svg)

A fact may skip states, and only moves a job forward. Full lines are facts that are applied at once; a dashed line is a
second verdict that contradicts the first: it counts only where the vendor itself, asked, says so. `expired` is a guess
of the service's own, and every verdict overrules it. `archive` is another matter: it is what became of our copy.

What a fact does depends on who says it. Rows are what the job is, columns what the fact says: **yes**, it is applied;
*known* already; *stale*, it says less than what is known; *ask*: the vendor is asked, and its answer decides.
{tables}"""


def _table(witness: Witness) -> str:
    head = f"| | {' | '.join(f'`{status}`' for status in Status)} |\n|---|{'---|' * len(Status)}\n"
    return head + "".join(
        f"| `{now}` | {' | '.join(_SAYS[decide(witness, now, seen)] for seen in Status)} |\n" for now in Status
    )


_WIDTH, _HEIGHT = 118, 36
#: The middle of each state's box.
_AT: Final = {
    Status.PENDING: (70, 150),
    Status.UNCONFIRMED: (170, 60),
    Status.QUEUED: (270, 150),
    Status.PROCESSING: (440, 150),
    Status.SUCCEEDED: (640, 60),
    Status.FAILED: (640, 150),
    Status.CANCELLED: (640, 240),
    Status.EXPIRED: (440, 260),
}
_STYLE: Final = """
svg{color:#333;font:15px system-ui,sans-serif}rect{fill:none;stroke:currentColor}
text{fill:currentColor;text-anchor:middle}path{stroke:currentColor;fill:none}
.ask{stroke-dasharray:4 4}.guess rect{stroke-dasharray:2 3}@media(prefers-color-scheme:dark){svg{color:#ddd}}"""
_HEAD: Final = (
    '<marker id="head" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8"'
    ' orient="auto-start-reverse"><path d="M0 0 8 4 0 8z" style="fill:currentColor"/></marker>'
)


def _drawing() -> str:
    boxes = "".join(
        f'<g class="{"guess" if status is Status.EXPIRED else ""}">'
        f'<rect x="{x - _WIDTH / 2:g}" y="{y - _HEIGHT / 2:g}" width="{_WIDTH}" height="{_HEIGHT}" rx="8"/>'
        f'<text x="{x}" y="{y + 5}">{status}</text></g>\n'
        for status, (x, y) in _AT.items()
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 20 760 280"><style>{_STYLE}</style>\n'
        f"<defs>{_HEAD}</defs>\n{''.join(_arrows())}{boxes}</svg>\n"
    )


def _arrows() -> Iterator[str]:
    """One for each step that no other state has to lie between."""
    applied = {(a, b) for a, b in product(Status, Status) if any(decide(by, a, b) is Decision.APPLY for by in Witness)}
    between = set(Status) - {Status.EXPIRED, Status.UNCONFIRMED}
    for a, b in sorted(applied, key=lambda pair: [list(Status).index(status) for status in pair]):
        if any({(a, c), (c, b)} <= applied and RANK[a] < RANK[c] < RANK[b] for c in between):
            continue
        both = (b, a) in applied
        if both and list(Status).index(a) > list(Status).index(b):
            continue
        told = decide(Witness.TOLD, a, b) is Decision.APPLY or decide(Witness.OWN, a, b) is Decision.APPLY
        kind, start = "" if told else ' class="ask"', ' marker-start="url(#head)"' if both else ""
        yield f'<path{kind}{start} marker-end="url(#head)" d="{_line(a, b)}"/>\n'


def _line(a: Status, b: Status) -> str:
    (ax, ay), (bx, by) = _AT[a], _AT[b]
    if ax == bx and abs(ay - by) > 150:  # around what lies between
        edge = ax + _WIDTH / 2
        return f"M{edge:g} {ay}C{edge + 40:g} {ay} {edge + 40:g} {by} {edge:g} {by}"
    (sx, sy), (ex, ey) = _edge(ax, ay, bx, by), _edge(bx, by, ax, ay)
    return f"M{sx:.0f} {sy:.0f}L{ex:.0f} {ey:.0f}"


def _edge(x: float, y: float, to_x: float, to_y: float) -> tuple[float, float]:
    """Where the line from the middle of a box leaves it, with a little air."""
    dx, dy = to_x - x, to_y - y
    scale = min(_WIDTH / 2 / abs(dx) if dx else 9, _HEIGHT / 2 / abs(dy) if dy else 9)
    air = 3 / hypot(dx, dy)
    return x + dx * (scale + air), y + dy * (scale + air)


if __name__ == "__main__":
    for name, text in pages().items():
        (DOCS / name).write_text(text)
