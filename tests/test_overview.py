"""`GET /v1/overview`: what the sums of the hours, and the store as it stands, add up to."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from service.model import Observation, Source, Status
from tests.support.web import CREDENTIALS, Web, web_process

VERDICTS = "callsheet_verdicts_total"


def add(web: Web, hours_ago: int, **sums: float) -> None:
    """Sums of an hour, as processes have sent them; names of verdicts are `vendor__status__source`."""
    hour = f"{datetime.now(UTC) - timedelta(hours=hours_ago):%Y-%m-%dT%H}"
    for name, value in sums.items():
        vendor, status, source = name.split("__")
        sample = f'{VERDICTS}{{vendor="{vendor}",status="{status}",source="{source}"}}'
        web.redis.hincrbyfloat(web.key("metrics", hour), sample, value)


def overview(web: Web, hours: int = 24) -> dict[str, Any]:
    answer = web.api.get("/v1/overview", params={"hours": hours})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def test_verdicts_stand_in_their_hours(web: Web) -> None:
    add(web, 0, kitta__succeeded__poll=3, chanjing__failed__callback=1)
    add(web, 23, chanjing__succeeded__callback=5, chanjing__succeeded__poll=2)
    add(web, 24, chanjing__succeeded__callback=100)
    add(web, 1, chanjing__expired__deadline=7)
    told = overview(web)
    assert told["verdicts"] == {"failed": [0] * 23 + [1], "succeeded": [7] + [0] * 22 + [3]}
    assert told["by_vendor"] == {"chanjing": [7] + [0] * 22 + [1], "kitta": [0] * 23 + [3]}
    assert told["by_source"] == {"callback": [5] + [0] * 22 + [1], "poll": [2] + [0] * 23}, "kitta never calls back"
    assert told["lost_callbacks"] == 2 / 8
    assert overview(web, 1)["lost_callbacks"] == 0
    since = datetime.fromisoformat(told["since"])
    assert (since.minute, told["step"]) == (0, 1)
    assert timedelta(hours=23) <= datetime.fromisoformat(told["at"]) - since < timedelta(hours=24)


def test_many_hours_are_told_in_few_points_and_those_that_are_over_are_remembered(
    redis_url: str, tmp_path: Path
) -> None:
    with web_process(tmp_path, {"REDIS_URL": redis_url, **CREDENTIALS}) as web:
        for hours_ago in (0, 1, 2, 100, 167):
            add(web, hours_ago, chanjing__succeeded__callback=1)
        told = overview(web, 168)
        [values] = told["verdicts"].values()
        assert (told["step"], len(values), sum(values), values[0], values[-1]) == (4, 42, 5, 1, 3)
        web.redis.flushdb()
        add(web, 0, chanjing__succeeded__callback=1)
        again = overview(web, 168)["verdicts"]["succeeded"]
        assert sum(again) == 1 + 3, "the last two hours are asked for anew"


@pytest.mark.parametrize(
    ("counts", "p50", "p95"),
    [
        ({}, None, None),
        ({"0.1": 0, "+Inf": 0}, None, None),
        ({"0.1": 10, "1.0": 10, "+Inf": 10}, 0.05, 0.095),
        ({"0.1": 0, "1.0": 10, "+Inf": 10}, 0.55, 0.955),
        ({"0.1": 4, "1.0": 8, "+Inf": 10}, 0.325, 1.0),
    ],
)
def test_quantiles_are_prometheus_own(web: Web, counts: dict[str, int], p50: float | None, p95: float | None) -> None:
    hour = web.key("metrics", f"{datetime.now(UTC):%Y-%m-%dT%H}")
    for bound, count in counts.items():
        web.redis.hset(hour, f'callsheet_ack_seconds_bucket{{le="{bound}"}}', count)
    told = overview(web, 1)["ack_seconds"]
    assert [None if value is None else round(value, 6) for value in (*told["p50"], *told["p95"])] == [p50, p95]


def test_it_tells_how_things_stand(web: Web) -> None:
    failed = web.ended(2)
    job = web.track("lipsync_studio", vendor_job_id="a")["id"]
    web.record(Observation(source=Source.CALLBACK, status=Status.PROCESSING), vendor="lipsync_studio", job_id=job)
    web.redis.hset(web.key("vendor", "kitta"), mapping={"failures": 3, "retry_at": 2_000_000_000_000})
    seconds, _ = web.redis.time()
    web.redis.lpush(web.key("calls", "kitta", "read"), seconds * 1000, (seconds - 3600) * 1000)
    told = overview(web)
    assert told["jobs"] == {"kitta": {"failed": len(failed)}, "lipsync_studio": {"processing": 1}}
    assert told["archives"] == {"none": 3}
    assert told["vendors"]["kitta"] == {
        "unwell": {"read": {"failures": 3, "retry_at": "2033-05-18T03:33:20Z"}},
        "calls": {"read": 1},
        "in_line": 0,
        "polls_due": 0,
    }
    assert told["vendors"]["chanjing"]["unwell"] == {}
    assert told["now"]['callsheet_queue_depth{task="archive"}'] == 0
    assert web.api.get("/v1/overview", params={"hours": "170"}).status_code == 422
