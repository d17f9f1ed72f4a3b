"""`make pictures`: what the dashboard looks like, for the documents, from a deployment that really runs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from math import sin
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, cast

from redis import Redis

from tests.support.browser import SHAPES, chromium
from tests.support.processes import ROOT, eventually
from tests.support.show import KEYS, show

FOLDER: Final = ROOT / "docs" / "pictures"

_PAGES: Final = {"overview": "/"} | {name: f"/{name}" for name in ("jobs", "quarantine", "endpoints", "vendors")}
_JOBS: Final = {"job-stored": "lost", "job-failed": "failed", "job-unanswered": "unanswered"}


def main() -> None:
    """Take them all anew."""
    FOLDER.mkdir(exist_ok=True)
    for old in FOLDER.glob("*.png"):
        old.unlink()
    said = "the queue is full, come again"
    with TemporaryDirectory() as folder, show(Path(folder), said) as shown, chromium() as browser:
        a_day_of(shown.redis_url)
        letter = shown.api.get("/v1/quarantine").json()["data"][0]["id"]
        jobs = {name: f"/jobs/{shown.jobs[label]}" for name, label in _JOBS.items()}
        pages = {**_PAGES, **jobs, "letter": f"/quarantine/{letter}"}
        pages["endpoint"] = f"/endpoints/{shown.endpoints['refused']}"
        for shape, options in SHAPES.items():
            size = shape.partition(" ")[0]
            page = browser.new_context(base_url=shown.url, **options).new_page()
            page.goto("/sign-in")
            page.screenshot(path=FOLDER / f"sign-in-{size}.png")
            page.get_by_label("API key").fill(KEYS["team"])
            page.get_by_role("button", name="Sign in").click()
            for name, path in pages.items():
                page.goto(path)
                page.screenshot(path=FOLDER / f"{name}-{size}.png", full_page=size == "wide")


def a_day_of(redis_url: str) -> None:
    """Let the hours before have been like this one, more or less: a plot of one hour shows little."""
    hour = datetime.now(UTC).replace(minute=0)
    with Redis.from_url(redis_url, decode_responses=True) as redis:
        sums = eventually(lambda: _sums(redis, hour), "every verdict is counted", timeout=20)
        for before in range(1, 24):
            times = round(5 + 4 * sin(before / 3) + before % 3)
            key = f"callsheet:metrics:{hour - timedelta(hours=before):%Y-%m-%dT%H}"
            redis.hset(key, mapping={name: float(value) * times for name, value in sums.items()})


def _sums(redis: Redis, hour: datetime) -> dict[str, str]:
    sums = cast("dict[str, str]", redis.hgetall(f"callsheet:metrics:{hour:%Y-%m-%dT%H}"))
    verdicts = sum(float(value) for name, value in sums.items() if name.startswith("callsheet_verdicts_total"))
    return sums if verdicts >= 8 else {}


if __name__ == "__main__":
    main()
