"""Processes that die: at random, at the worst points, and as a platform ends them."""

from __future__ import annotations

import os
import signal
from typing import Final

from tests.chaos.cast import Cast, Scenario
from tests.chaos.orders import CALLBACKS, orders
from tests.chaos.stage import Plan

CLEAN: Final = "callbacks fine"
FAULTY: Final = "callbacks gone wrong"


def both(cast: Cast, *, rate: float, share: float = 1.0) -> None:
    """Half of the jobs with callbacks as they should be, half with what goes wrong; `rate` a second."""
    chance, seconds, half = cast.stage.chance, (0.2, cast.seconds(2.0, 0.5)), int(cast.jobs * share / 2)
    for group, callbacks in ((CLEAN, None), (FAULTY, CALLBACKS)):
        some = orders(half, chance, group=group, callbacks=callbacks, seconds=seconds)
        cast.stage.crowd.send(some, rate=rate / 2)


def at_random(cast: Cast) -> None:
    """SIGKILL and SIGTERM of web, workers and pollers, under backlog."""
    stage, chance = cast.stage, cast.stage.chance
    both(cast, rate=70)
    for _ in range(cast.times(64)):
        if not cast.while_busy():
            cast.findings += [] if cast.hasty else ["the work was over before the storm: make it harder"]
            break
        name = chance.choice(stage.names)
        stage.restart(name, chance.choice((signal.SIGKILL, signal.SIGTERM)))
        cast.wait(chance.uniform(0.2, 1.2))
    stage.wait_for_web()


def at_points(cast: Cast) -> None:
    """Processes that die between what they do and what remembers it; each is started again at once."""
    both(cast, rate=50)
    while cast.while_busy(cast.seconds(60, 8)):
        cast.wait(0.5)
    for name in cast.stage.names:  # from here on they live
        cast.stage.inside.clear()
        cast.stage.restart(name, signal.SIGKILL)
    cast.stage.wait_for_web()


def hints(cast: Cast) -> None:
    """RQ's queues carry hints only: tasks run twice that stand there twice, and run at all that were lost."""
    stage, chance = cast.stage, cast.stage.chance
    both(cast, rate=60)
    doubled, dropped = set[str](), set[str]()
    while stage.crowd.busy:
        cast.wait(0.5)
        with stage.held("worker"):  # so that something stands in the queues
            cast.wait(0.3)
            for task in ("submit", "archive"):
                queue = f"rq:queue:{stage.desk.settings.queue(task)}"
                for task_id in {os.fsdecode(found) for found in stage.desk.redis.lrange(queue, 0, -1)}:
                    lost = chance.random() < 0.1
                    (dropped if lost else doubled).add(task_id)
                    if lost:
                        stage.desk.redis.lrem(queue, 0, task_id)
                    else:
                        stage.desk.redis.lpush(queue, task_id, task_id)
    cast.figures |= {"tasks doubled": len(doubled), "tasks lost": len(dropped)}


KILLS: Final = (
    Scenario(name="kills", jobs=3000, play=at_random, plan=Plan(workers=2, pollers=2, concurrency=4)),
    Scenario(
        name="points",
        jobs=1600,
        play=at_points,
        plan=Plan(
            workers=3,
            pollers=2,
            inside={
                "web": "die:recorded:0.004",
                "worker-0": "die:stored:0.02 die:sent:0.02",
                "worker-1": "die:recorded:0.01 die:marked:0.02",
                "worker-2": "die:stored:0.02 die:recorded:0.01",
                "poller-0": "die:asked:0.05",
                "poller-1": "die:recorded:0.02",
            },
        ),
    ),
    Scenario(name="hints", jobs=1000, play=hints, plan=Plan(workers=2, concurrency=2), fetch_once=True),
)
