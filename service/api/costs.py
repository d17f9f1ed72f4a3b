"""`/v1/costs`: what jobs were estimated at and what vendors charged, summed up."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from service.api.problems import read_query
from service.deployment import Deployment

GROUPS: Final = ("vendor", "model", "day")
#: Jobs that vendors took, and those of them without any price.
COUNTS: Final = ("jobs", "unknown")
#: Sums in the vendor's unit; null where no job has that price.
SUMS: Final = ("estimated", "charged", "difference")

_GROUP: Final = f"({'|'.join(GROUPS)})"
_DAY: Final = re.compile(r"[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])")
QUERY: Final[dict[str, re.Pattern[str] | frozenset[str]]] = {
    "group": re.compile(f"{_GROUP}(,{_GROUP})*"),
    "since": _DAY,
    "until": _DAY,
}


def routes(deployment: Deployment) -> list[Route]:
    kept = deployment.sums

    async def costs(request: Request) -> Response:
        """Rows by `group` and unit, the days (UTC) on which the jobs were made from `since` to `until`, both included.

        `difference` is charged less estimated, over the jobs of which both are known.
        """
        query = read_query(request, QUERY)
        group = query.get("group", ",".join(GROUPS)).split(",")
        rows: dict[tuple[str | None, ...], dict[str, float]] = defaultdict(dict)
        for found in await kept.costs(query.get("since", ""), query.get("until", "9")):
            key = tuple(getattr(found, name) if name in group else None for name in GROUPS)
            sums = rows[(*key, found.unit)]
            sums[found.what] = sums.get(found.what, 0.0) + found.amount
        ordered = sorted(rows.items(), key=lambda row: [str(name) for name in row[0]])
        # Without a job: it has gone to another row, since its model was learned.
        data = [_row(group, key, sums) for key, sums in ordered if sums["jobs"]]
        return Response(msgspec.json.encode({"data": data}), media_type="application/json")

    return [Route("/costs", costs, methods=["GET"])]


def _row(group: list[str], key: tuple[str | None, ...], sums: dict[str, float]) -> dict[str, object]:
    """Sums are counted in floats; the smallest price has four digits behind the point."""
    named = {name: value for name, value in zip(GROUPS, key, strict=False) if name in group}
    counts = {what: int(sums.get(what, 0)) for what in COUNTS}
    amounts = {what: round(sums[what], 6) + 0.0 if what in sums else None for what in SUMS}  # + 0.0: no minus before it
    return {**named, "unit": key[-1], **counts, **amounts}
