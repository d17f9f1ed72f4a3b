"""The fault suite in its short form: some of its scenarios with a few jobs each, and no patience with clocks.

`make chaos` is the long one.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

import pytest

from tests.chaos.audit import Row
from tests.chaos.cast import Cast, Scenario
from tests.chaos.orders import orders
from tests.chaos.play import Show
from tests.chaos.scenarios import SCENARIOS
from tests.chaos.stage import Plan

#: Scenario → how many of its jobs.
PLAYED: Final = {"shutdown": 0.06, "kills": 0.05, "redis": 0.06, "storage": 0.06, "hints": 0.06}


def one_death(cast: Cast) -> None:
    """The only worker dies at a point of the plan's choice; the one in its place lives."""
    stage = cast.stage
    stage.crowd.send(orders(cast.jobs, stage.chance, vendors={"lipsync_studio": 1}, seconds=(0.1, 0.2)))
    while cast.while_busy() and not stage.restarts:
        cast.wait(0.1)
    stage.inside.clear()
    stage.restart("worker-0", signal.SIGKILL)


def dying(inside: str) -> Scenario:
    return Scenario(name=inside, jobs=8, play=one_death, plan=Plan(workers=1, inside={"worker-0": inside}))


#: Once a file is stored, before anybody knows; and once a job is changed, before its event, were those two steps.
STORED, UNTOLD = "die:stored:1", "without:atomic:1"
#: Where it dies, what is missing beside, and what is found.
DEATHS: Final = [(STORED, "", ""), (STORED, "sweeper", "archive: it is waiting"), (UNTOLD, "", "events never heard")]

Playing = dict[tuple[str, str], Future[list[Row]]]


@pytest.fixture(scope="module")
def playing() -> Iterator[Playing]:
    """All at once: most of their time they wait. By scenario, and by the safeguard that it is played without."""
    played = {(name, ""): (SCENARIOS[name], scale) for name, scale in PLAYED.items()}
    played |= {(inside, without): (dying(inside), 0.99) for inside, without, _ in DEATHS}
    shows = {key: Show(seed=7, scale=scale, without=key[1], tell=lambda _: None) for key, (_, scale) in played.items()}
    with ThreadPoolExecutor(len(shows)) as threads:
        yield {key: threads.submit(show.play, played[key][0]) for key, show in shows.items()}
        for show in shows.values():
            show.stop()


@pytest.mark.parametrize("name", PLAYED)
def test_nothing_is_lost_and_nothing_is_done_twice(name: str, playing: Playing) -> None:
    rows = playing[name, ""].result()
    assert sum(row.jobs for row in rows) >= 50
    assert [row.findings for row in rows] == [[] for _ in rows]


@pytest.mark.parametrize(("inside", "without", "found"), DEATHS)
def test_a_death_is_made_good_and_one_safeguard_less_is_seen(
    inside: str, without: str, found: str, playing: Playing
) -> None:
    (row,) = playing[inside, without].result()
    assert row.figures["restarts"] > 0
    assert row.good is not bool(found), row.findings
    assert found in " ".join(row.findings)
    assert sum(row.events_missing.values()) < row.jobs
