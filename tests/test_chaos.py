"""The fault suite in its short form: some of its scenarios with a few jobs each, and no patience with clocks.

`make chaos` is the long one.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

import pytest

from tests.chaos.audit import Row
from tests.chaos.play import Show
from tests.chaos.scenarios import SCENARIOS

#: Scenario → how many of its jobs.
PLAYED: Final = {"shutdown": 0.06, "kills": 0.05, "redis": 0.06}

Playing = dict[tuple[str, str], Future[list[Row]]]


@pytest.fixture(scope="module")
def playing() -> Iterator[Playing]:
    """All at once: most of their time they wait. By scenario, and by the safeguard that it is played without."""
    shows = {(name, ""): Show(seed=7, scale=scale, tell=lambda _: None) for name, scale in PLAYED.items()}
    with ThreadPoolExecutor(len(shows)) as threads:
        yield {played: threads.submit(show.play, SCENARIOS[played[0]]) for played, show in shows.items()}
        for show in shows.values():
            show.stop()


@pytest.mark.parametrize("name", PLAYED)
def test_nothing_is_lost_and_nothing_is_done_twice(name: str, playing: Playing) -> None:
    rows = playing[name, ""].result()
    assert sum(row.jobs for row in rows) >= 60
    assert [row.findings for row in rows] == [[] for _ in rows]
