"""Valkey in trouble: killed, out of reach, answering into the void, out of memory, out of disk."""

from __future__ import annotations

from typing import Final

from tests.chaos.cast import Cast, Scenario
from tests.chaos.scenarios.kills import both
from tests.chaos.stage import Plan

#: Bytes that are left on the disk when it is filled.
ROOM: Final = 64 * 1024


def killed(cast: Cast) -> None:
    """SIGKILL, and a new server on the same append-only file, again and again under load."""
    valkey, chance = cast.stage.valkey, cast.stage.chance
    both(cast, rate=60)
    for _ in range(cast.times(5)):
        cast.wait(cast.seconds(chance.uniform(3, 5), 0.7))
        valkey.kill()
        cast.wait(chance.uniform(0.2, 2))
        valkey.start()
    cast.figures["lives of Valkey"] = valkey.lives


def frozen(cast: Cast) -> None:
    """It is there, and says nothing for half a minute."""
    both(cast, rate=40)
    cast.wait(4)
    cast.stage.valkey.freeze()
    cast.wait(cast.seconds(30, 6))
    cast.stage.valkey.thaw()
    cast.over()


def cut(cast: Cast) -> None:
    """What was written is written, but the answer is lost on its way: everything may be said again."""
    proxy = cast.stage.proxies["redis"]
    both(cast, rate=40)
    cast.wait(1)
    proxy.cut_replies = 0.01
    while cast.stage.crowd.busy:
        cast.wait(0.5)
    cast.wait(cast.seconds(10, 1))
    proxy.mend()
    cast.figures["answers cut"] = proxy.cuts


def memory_full(cast: Cast) -> None:
    """`noeviction`: writes are refused, and those who asked for them are told so."""
    both(cast, rate=40)
    for _ in range(cast.times(3)):
        cast.wait(2)
        refused = cast.stage.ledger.answers["503"]
        cast.stage.valkey.fill_memory()
        cast.wait(cast.seconds(5, 1))
        cast.stage.valkey.free_memory()
        if cast.stage.ledger.answers["503"] == refused:
            cast.findings.append("memory was full, and nobody was refused: make it harder")
    cast.over()


def disk_full(cast: Cast) -> None:
    """With `appendfsync always` it ends rather than acknowledge what it cannot write; then there is room again."""
    stage = cast.stage
    both(cast, rate=40)
    for _ in range(cast.times(3)):
        cast.wait(cast.seconds(3, 1))
        stage.disk.fill(ROOM)
        for _ in range(40):  # it goes on until the room is used up
            cast.wait(0.25)
            if stage.valkey.process.exit_code is not None:
                break
        else:
            cast.findings.append("the disk was full, and Valkey has not noticed: make it harder")
        stage.disk.clear()
        stage.valkey.kill()
        stage.valkey.start()
    cast.over()
    cast.figures["disk"] = "a tmpfs" if stage.disk.mounted else "a limit on the size of its file"


STORES: Final = (
    Scenario(name="redis", jobs=2000, play=killed),
    Scenario(name="frozen", jobs=1400, play=frozen),
    Scenario(name="cut", jobs=1200, play=cut, plan=Plan(redis_proxy=True)),
    Scenario(name="memory", jobs=1000, play=memory_full),
    Scenario(name="disk", jobs=1000, play=disk_full, plan=Plan(small_disk=True)),
)
