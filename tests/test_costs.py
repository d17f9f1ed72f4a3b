"""`/v1/costs`: what was estimated and what was charged, each job once, whatever is told of it and however often."""

from __future__ import annotations

import json
from collections import defaultdict
from itertools import chain, combinations, permutations, product
from pathlib import Path
from random import Random
from typing import Any, Final

import pytest

from service.model import Cost, Observation, Output, Source, Status, Submission, new_id
from service.vendors import VENDORS
from tests.support.api import AUDIO, IMAGE, VIDEO, bad_fields, problem
from tests.support.web import Web

FILM: Final = (Output(url="https://cdn.example.com/film.mp4"),)
QUEUED: Final = Observation(source=Source.SUBMIT, status=Status.QUEUED, vendor_job_id="v-1")
SENT: Final = Observation(source=Source.SUBMIT, status=Status.UNCONFIRMED)


def polled(status: Status, charged: float | None = None, **facts: Any) -> Observation:
    cost = None if charged is None else Cost(charged=charged, unit="credits")
    return Observation(source=Source.POLL, status=status, cost=cost, **facts)


def ordered(web: Web, vendor: str = "kitta", model: str = "m", cost: Cost | None = None) -> str:
    """A job that waits to be sent; our id of it."""
    seconds, micros = web.redis.time()
    job_id = new_id("job", seconds * 1000 + micros // 1000)
    web.record(
        Observation(source=Source.SUBMIT, model=model, cost=cost or Cost(unit="credits")),
        vendor=vendor,
        job_id=job_id,
        create=True,
        order=Submission(model=model, input={}, vendor_input={}),
    )
    return job_id


def tell(web: Web, job_id: str, *facts: Observation, vendor: str = "kitta") -> list[str]:
    """Record facts about a job; their outcomes."""
    return [web.record(seen, vendor=vendor, job_id=job_id).outcome for seen in facts]


def costs(web: Web, **query: str) -> list[dict[str, Any]]:
    answer = web.api.get("/v1/costs", params=query)
    assert answer.status_code == 200, answer.text
    assert list(answer.json()) == ["data"]
    return list(answer.json()["data"])


def total(web: Web) -> dict[str, Any]:
    """The one row there is, over all vendors, models and days."""
    [row] = costs(web, group="vendor")
    return {name: value for name, value in row.items() if name != "vendor"}


def summed(
    jobs: int,
    estimated: float | None = None,
    charged: float | None = None,
    *,
    unknown: int = 0,
    difference: float | None = None,
    unit: str = "credits",
) -> dict[str, Any]:
    return {
        "unit": unit,
        "jobs": jobs,
        "unknown": unknown,
        "estimated": estimated,
        "charged": charged,
        "difference": difference,
    }


# -- when a job counts ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("facts", "counts"),
    [
        ([], False),
        ([SENT], False),
        ([SENT, Observation(source=Source.SUBMIT, status=Status.PENDING)], False),
        ([SENT, Observation(source=Source.SUBMIT, status=Status.FAILED)], False),
        ([SENT, Observation(source=Source.OPERATOR, status=Status.FAILED)], False),
        ([Observation(source=Source.DEADLINE, status=Status.EXPIRED)], False),
        ([SENT, Observation(source=Source.DEADLINE, status=Status.EXPIRED)], False),
        ([SENT, QUEUED], True),
        ([SENT, Observation(source=Source.SUBMIT, status=Status.PROCESSING)], True),
        ([SENT, Observation(source=Source.CALLBACK, status=Status.QUEUED)], True),
        ([SENT, Observation(source=Source.CALLBACK, status=Status.PROCESSING)], True),
        ([SENT, Observation(source=Source.CALLBACK, status=Status.SUCCEEDED, outputs=FILM)], True),
        ([SENT, Observation(source=Source.CALLBACK, status=Status.FAILED)], True),
        ([SENT, polled(Status.CANCELLED)], True),
        ([SENT, QUEUED, Observation(source=Source.DEADLINE, status=Status.EXPIRED)], True),
        ([SENT, QUEUED, polled(Status.FAILED)], True),
        ([QUEUED], True),
    ],
)
def test_a_job_counts_once_its_vendor_has_it(web: Web, facts: list[Observation], counts: bool) -> None:
    job_id = ordered(web, cost=Cost(estimated=16, unit="credits"))
    for seen in facts:
        assert tell(web, job_id, seen) == ["apply"]
    assert costs(web) == ([] if not counts else [first_row(web, job_id) | summed(1, 16)])


def first_row(web: Web, job_id: str) -> dict[str, Any]:
    return {"vendor": "kitta", "model": "m", "day": web.job(job_id)["created_at"][:10]}


def test_a_verdict_that_came_by_the_shared_url_counts_once_the_vendor_has_confirmed_it(web: Web) -> None:
    job_id = ordered(web, cost=Cost(estimated=16, unit="credits"))
    tell(web, job_id, QUEUED)
    hint = Observation(
        source=Source.CALLBACK,
        status=Status.SUCCEEDED,
        vendor_job_id="v-1",
        cost=Cost(charged=99, unit="credits"),
        outputs=FILM,
    )
    assert web.record(hint, vendor="kitta", weak_path=True).outcome == "ask"
    assert total(web) == summed(1, 16)
    tell(web, job_id, polled(Status.SUCCEEDED, 15, outputs=FILM))
    assert total(web) == summed(1, 16, 15, difference=-1)


def test_a_job_that_others_submit_counts_once_its_vendor_tells_a_charge(web: Web) -> None:
    job = web.track("kitta", vendor_job_id="v-1")
    assert costs(web) == [], "in which unit would it be counted?"
    tell(web, job["id"], polled(Status.PROCESSING, 7), polled(Status.SUCCEEDED, 7, outputs=FILM))
    assert total(web) == summed(1, None, 7)


# -- once, whatever follows -------------------------------------------------------------------------------

SUCCESS: Final = polled(Status.SUCCEEDED, outputs=FILM)
CHARGED: Final = polled(Status.SUCCEEDED, 15, outputs=FILM)


@pytest.mark.parametrize("estimated", [None, 16.0])
@pytest.mark.parametrize(
    ("facts", "charged"),
    [
        ([QUEUED, QUEUED, QUEUED], None),
        ([QUEUED, polled(Status.PROCESSING), polled(Status.QUEUED), polled(Status.PROCESSING, progress=7)], None),
        ([QUEUED, SUCCESS, SUCCESS, polled(Status.PROCESSING)], None),
        ([SUCCESS, QUEUED], None),
        ([polled(Status.QUEUED, 15), polled(Status.QUEUED, 15), polled(Status.PROCESSING, 15)], 15),
        ([QUEUED, CHARGED, CHARGED], 15),
        ([QUEUED, SUCCESS, CHARGED], 15),
        ([CHARGED, QUEUED, polled(Status.PROCESSING, 99)], 15),
        ([polled(Status.QUEUED, 15), polled(Status.SUCCEEDED, 12.5, outputs=FILM)], 12.5),
        ([CHARGED, polled(Status.SUCCEEDED, 0, outputs=FILM)], 0),
        ([CHARGED, polled(Status.FAILED, 0), polled(Status.FAILED, 0)], 0),
        ([CHARGED, polled(Status.FAILED, 3), CHARGED], 15),
        ([polled(Status.QUEUED, 1), *(polled(Status.QUEUED, n / 10) for n in range(30))], 2.9),
        ([QUEUED, Observation(source=Source.DEADLINE, status=Status.EXPIRED), CHARGED], 15),
        ([CHARGED, Observation(source=Source.OPERATOR, metadata={"a": 1})], 15),
    ],
)
def test_a_job_counts_once_with_what_is_known_at_last(
    web: Web, facts: list[Observation], charged: float | None, estimated: float | None
) -> None:
    job_id = ordered(web, cost=Cost(estimated=estimated, unit="credits"))
    tell(web, job_id, *facts)
    difference = None if charged is None or estimated is None else round(charged - estimated, 6)
    unknown = int(charged is None and estimated is None)
    assert total(web) == summed(1, estimated, charged, unknown=unknown, difference=difference)
    cost = web.job(job_id)["cost"]
    assert (cost["estimated"], cost["charged"]) == (estimated, charged)


def test_a_charge_with_the_noise_of_floats_is_no_news_when_it_is_told_again(web: Web) -> None:
    """As in 0.1 + 0.2. What is news is listed, and a job is asked about every few seconds."""
    job_id = ordered(web, cost=Cost(estimated=16, unit="credits"))
    seen = polled(Status.PROCESSING, 0.1 + 0.2)
    assert tell(web, job_id, seen, seen, seen) == ["apply", "same", "same"]
    assert total(web) == summed(1, 16, 0.3, difference=-15.7)


def test_a_commit_that_is_said_again_counts_once(web: Web) -> None:
    """A client that lost the answer says it again."""
    seconds, micros = web.redis.time()
    seen = Observation(
        source=Source.SUBMIT,
        status=Status.QUEUED,
        vendor_job_id="v-1",
        model="m",
        cost=Cost(charged=5, unit="credits"),
    )
    job_id = new_id("job", seconds * 1000 + micros // 1000)
    for _ in range(3):
        web.record(seen, vendor="kitta", job_id=job_id, create=True)
    assert total(web) == summed(1, None, 5)


def test_a_job_whose_model_is_learned_later_counts_under_that_alone(web: Web) -> None:
    job = web.track("kitta", vendor_job_id="v-1")
    tell(web, job["id"], polled(Status.PROCESSING, 7))
    assert [(row["model"], row["jobs"], row["charged"]) for row in costs(web)] == [(None, 1, 7)]
    tell(web, job["id"], polled(Status.SUCCEEDED, 7, model="kitta-lip-sync-v1", outputs=FILM))
    assert [(row["model"], row["jobs"], row["charged"]) for row in costs(web)] == [("kitta-lip-sync-v1", 1, 7)]
    assert total(web) == summed(1, None, 7)


def test_a_model_that_is_told_late_is_learned_all_the_same(web: Web) -> None:
    job = web.track("kitta", vendor_job_id="v-1")
    tell(web, job["id"], polled(Status.SUCCEEDED, 7, outputs=FILM))
    tell(web, job["id"], Observation(source=Source.CALLBACK, status=Status.PROCESSING, model="m"))
    assert [(row["model"], row["jobs"], row["charged"]) for row in costs(web)] == [("m", 1, 7)]


def test_what_kitta_charges_at_the_submission_is_settled_at_the_end(web: Web) -> None:
    kitta = VENDORS["kitta"]
    answer = json.loads((Path(__file__).parent / "vendors/kitta/submit-created.json").read_text())["body"]
    assert answer["creditsCharged"]
    taken = kitta.read_submit(200, json.dumps(answer).encode())
    done = answer | {"status": "succeeded", "resultVideoUrl": FILM[0].url, "creditsCharged": 2.5}
    settled = kitta.read_status(200, json.dumps(done).encode())
    assert isinstance(taken, Observation)
    assert isinstance(settled, Observation)

    request = {"vendor": "kitta", "input": VIDEO | AUDIO}
    job = web.api.post("/v1/jobs", json=request).json()
    assert costs(web) == []
    tell(web, job["id"], SENT, taken)
    assert total(web) == summed(1, None, answer["creditsCharged"])
    tell(web, job["id"], settled, settled)
    assert total(web) == summed(1, None, 2.5)
    assert web.job(job["id"])["cost"] == {"estimated": None, "charged": 2.5, "unit": "credits"}


# -- sums -----------------------------------------------------------------------------------------------


def test_the_difference_is_of_jobs_of_which_both_prices_are_known(web: Web) -> None:
    for number, (estimated, charged) in enumerate([(10, 12), (20, None), (None, 5), (None, None), (3, 1)]):
        job_id = ordered(web, cost=Cost(estimated=estimated, unit="credits"))
        tell(web, job_id, polled(Status.QUEUED, charged, vendor_job_id=f"v-{number}"))
    assert total(web) == summed(5, 33, 18, unknown=1, difference=0)


@pytest.mark.parametrize(
    ("estimated", "charged", "expected"),
    [
        (None, None, summed(1, unknown=1)),
        (0, None, summed(1, 0)),
        (None, 0, summed(1, None, 0)),
        (0, 0, summed(1, 0, 0, difference=0)),
        (5, 0, summed(1, 5, 0, difference=-5)),
    ],
)
def test_what_nobody_knows_is_null_and_what_is_free_is_zero(
    web: Web, estimated: float | None, charged: float | None, expected: dict[str, Any]
) -> None:
    job_id = ordered(web, cost=Cost(estimated=estimated, unit="credits"))
    tell(web, job_id, polled(Status.QUEUED, charged))
    assert total(web) == expected


def test_units_are_never_added_up(web: Web) -> None:
    for unit, amount in (("credits", 5), ("beans", 7), ("USD", 0.5), ("credits", 1)):
        tell(web, ordered(web, cost=Cost(estimated=amount, unit=unit)), polled(Status.QUEUED))
    rows = [(row["unit"], row["jobs"], row["estimated"]) for row in costs(web, group="vendor")]
    assert rows == [("USD", 1, 0.5), ("beans", 1, 7), ("credits", 2, 6)]


def test_a_thousand_small_prices_add_up(web: Web) -> None:
    jobs = [ordered(web, "apimodels", cost=Cost(estimated=0.0063, unit="USD")) for _ in range(1000)]
    for job_id in jobs:
        tell(web, job_id, Observation(source=Source.POLL, status=Status.QUEUED), vendor="apimodels")
    assert total(web) == summed(1000, 6.3, unit="USD")
    for job_id in jobs:
        seen = Observation(source=Source.POLL, status=Status.QUEUED, cost=Cost(charged=0.0063, unit="USD"))
        tell(web, job_id, seen, vendor="apimodels")
    assert total(web) == summed(1000, 6.3, 6.3, difference=0, unit="USD")
    assert '"difference":0.0' in web.api.get("/v1/costs").text, "and no -0.0"
    for job_id in jobs[:999]:
        seen = Observation(source=Source.POLL, status=Status.FAILED, cost=Cost(charged=0, unit="USD"))
        tell(web, job_id, seen, vendor="apimodels")
    assert total(web) == summed(1000, 6.3, 0.0063, difference=-6.2937, unit="USD")


#: Estimated and charged.
Prices = tuple[float | None, float | None]
#: A job's vendor, model, day and unit, and its prices.
Booked = tuple[dict[str, str], Prices]

GROUPS: Final = ("vendor", "model", "day")
GROUPINGS: Final = [
    ",".join(order) for size in (1, 2, 3) for some in combinations(GROUPS, size) for order in permutations(some)
]
DAYS: Final = ("2025-12-31", "2026-01-01", "2026-01-31", "2026-02-28", "2026-10-05")
RANGES: Final[tuple[dict[str, str], ...]] = (
    {},
    {"since": "2026-01-01"},
    {"until": "2026-01-31"},
    {"since": "2026-01-01", "until": "2026-02-27"},
    {"since": "2026-01-31", "until": "2026-01-31"},
    {"since": "2026-02-01", "until": "2026-02-27"},
    {"since": "2026-02-28", "until": "2026-01-01"},
)


def test_sums_are_right_by_every_grouping_and_between_any_days(web: Web) -> None:
    chance = Random(7)
    booked: list[Booked] = []
    for number, (vendor, model, day, unit) in enumerate(
        chain.from_iterable(
            [each] * chance.randrange(4)
            for each in product(("kitta", "chanjing"), ("basic", "high-quality"), DAYS, ("credits", "beans"))
        )
    ):
        estimated, charged = (chance.choice((None, round(chance.uniform(0, 50), 4))) for _ in range(2))
        job_id = ordered(web, vendor, model, Cost(estimated=estimated, unit=unit))
        web.redis.hset(web.key("job", job_id), "created_at", f'"{day}T23:59:59.999Z"')  # it was not made just now
        cost = None if charged is None else Cost(charged=charged, unit=unit)
        seen = Observation(source=Source.POLL, status=Status.QUEUED, vendor_job_id=f"v-{number}", cost=cost)
        assert web.record(seen, vendor=vendor, job_id=job_id).outcome == "apply"
        booked.append(({"vendor": vendor, "model": model, "day": day, "unit": unit}, (estimated, charged)))
    for grouping, between in product(GROUPINGS, RANGES):
        group: list[str] = [name for name in GROUPS if name in grouping.split(",")]
        chosen = [
            (job, prices)
            for job, prices in booked
            if between.get("since", "") <= job["day"] <= between.get("until", "9")
        ]
        assert costs(web, group=grouping, **between) == expected(chosen, group)
    assert costs(web) == costs(web, group="vendor,model,day")


def expected(booked: list[Booked], group: list[str]) -> list[dict[str, Any]]:
    """What the costs of these jobs come to."""
    rows: dict[tuple[str, ...], list[Prices]] = defaultdict(list)
    for job, prices in booked:
        rows[tuple(job[name] for name in (*group, "unit"))].append(prices)

    def added(amounts: list[float]) -> float | None:
        return round(sum(amounts), 6) if amounts else None

    return [
        dict(zip((*group, "unit"), key, strict=True))
        | {
            "jobs": len(prices),
            "unknown": prices.count((None, None)),
            "estimated": added([estimated for estimated, _ in prices if estimated is not None]),
            "charged": added([charged for _, charged in prices if charged is not None]),
            "difference": added([c - e for e, c in prices if c is not None and e is not None]),
        }
        for key, prices in sorted(rows.items())
    ]


def test_a_job_belongs_to_the_day_on_which_it_was_made(web: Web) -> None:
    job_id = ordered(web, cost=Cost(estimated=16, unit="credits"))
    web.redis.hset(web.key("job", job_id), "created_at", '"2026-01-01T00:00:00.000Z"')
    tell(web, job_id, QUEUED, CHARGED)
    assert [row["day"] for row in costs(web, group="day")] == ["2026-01-01"]


# -- what is asked -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "fields"),
    [
        ("group=", ["group"]),
        ("group=colour", ["group"]),
        ("group=vendor,colour", ["group"]),
        ("group=vendor,", ["group"]),
        ("group=Vendor", ["group"]),
        ("group=vendor%0A", ["group"]),
        ("group=vendor%20,model", ["group"]),
        ("group=unit", ["group"]),
        ("since=", ["since"]),
        ("since=yesterday", ["since"]),
        ("since=2026-1-1", ["since"]),
        ("since=2026-13-01", ["since"]),
        ("since=2026-01-32", ["since"]),
        ("since=2026-01-01T00:00:00Z", ["since"]),
        ("since=2026-01-01%0A", ["since"]),
        ("since=%D9%A2%D9%A0%D9%A2%D9%A6-01-01", ["since"]),
        ("until=20260101", ["until"]),
        ("until=2026-01-1%D9%A1", ["until"]),
        ("day=2026-01-01", ["day"]),
        ("vendor=kitta&limit=5", ["limit", "vendor"]),
        ("group=colour&since=x&until=y&z=1", ["group", "since", "until", "z"]),
    ],
)
def test_what_cannot_be_asked_is_named(web: Web, query: str, fields: list[str]) -> None:
    assert bad_fields(web.api.get(f"/v1/costs?{query}")) == fields


def test_a_grouping_may_name_a_column_twice(web: Web) -> None:
    tell(web, ordered(web, cost=Cost(estimated=16, unit="credits")), QUEUED)
    assert costs(web, group="vendor,vendor") == costs(web, group="vendor")


def test_costs_are_for_those_who_have_a_key(web: Web) -> None:
    problem(web.http.get("/v1/costs"), 401)
    problem(web.api.post("/v1/costs"), 405)
    assert costs(web) == []


# -- the examples on lipsync.studio's page ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "resolution", "credits_"),
    [(3, "720p", 20), (10, "480p", 20)],
    ids=["3 秒音訊,720p = 5 秒 × 4 = 20 點", "10 秒音訊,480p = 10 × 2 = 20 點"],
)
@pytest.mark.parametrize("face", [VIDEO, IMAGE], ids=["video", "image"])
def test_the_examples_on_lipsync_studios_page(
    web: Web, face: dict[str, str], seconds: int, resolution: str, credits_: int
) -> None:
    input_ = face | AUDIO | {"duration_seconds": seconds, "resolution": resolution}
    answer = web.api.post("/v1/jobs", json={"vendor": "lipsync_studio", "input": input_})
    assert answer.status_code == 202
    assert answer.json()["cost"] == {"estimated": credits_, "charged": None, "unit": "credits"}
    taken = Observation(source=Source.SUBMIT, status=Status.PROCESSING, vendor_job_id="v-1")
    tell(web, answer.json()["id"], SENT, taken, vendor="lipsync_studio")
    assert total(web) == summed(1, credits_)
