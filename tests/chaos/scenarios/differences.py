"""Processes that do not agree: about the time, or about the code."""

from __future__ import annotations

import io
import signal
import subprocess
import tarfile
from pathlib import Path
from typing import Final

from tests.chaos.cast import Cast, Scenario
from tests.chaos.scenarios.kills import both
from tests.chaos.stage import Plan
from tests.chaos.store import NotPlayed
from tests.support.processes import ROOT

#: The first commit that submits: before it, rows were of another kind. It knows no endpoints.
OLDEST: Final = "f2ce31f"

MINTING: Final = {"CHANJING_ACCESS_TOKEN": "", "CHANJING_APP_ID": "app", "CHANJING_SECRET_KEY": "secret"}


def clocks(cast: Cast) -> None:
    """An hour apart, each way, and some of them die: Redis' clock is the one that decides."""
    stage = cast.stage
    both(cast, rate=50)
    for _ in range(cast.times(6)):
        cast.wait(cast.seconds(1.5, 0.5))
        stage.restart(stage.chance.choice(stage.names), signal.SIGKILL)
    stage.wait_for_web()


def versions(cast: Cast) -> None:
    """Old code writes, old and new work side by side, and new code goes on alone."""
    stage = cast.stage
    old = _checkout(OLDEST, stage.folder / "old")
    stage.kill_all()
    stage.sources = dict.fromkeys(stage.names, old)
    stage.start_all()
    both(cast, rate=40)
    cast.wait(cast.seconds(3, 1))
    for name in ("worker-1", "poller-1", "web"):  # half of them first
        del stage.sources[name]
        stage.restart(name, signal.SIGTERM)
        stage.wait_for_web()
        cast.wait(cast.seconds(3, 1))
    both(cast, rate=40, share=0.5)
    cast.wait(cast.seconds(5, 1))
    for name in list(stage.sources):
        del stage.sources[name]
        stage.restart(name, signal.SIGTERM)
    cast.figures["older code"] = OLDEST


def _checkout(commit: str, folder: Path) -> Path:
    """The files of a commit."""
    found = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True, check=False)  # noqa: S607
    if found.returncode:
        raise NotPlayed(f"there is no commit {commit} here: {found.stderr.decode().strip()}")
    with tarfile.open(fileobj=io.BytesIO(found.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder


DIFFERENCES: Final = (
    Scenario(
        name="clocks",
        jobs=800,
        play=clocks,
        plan=Plan(
            workers=2,
            pollers=2,
            settings=MINTING,
            inside={
                "web": "clock:3600",
                "worker-0": "clock:3600",
                "worker-1": "clock:-3600",
                "poller-0": "clock:-3600",
                "poller-1": "clock:3600",
            },
        ),
    ),
    Scenario(name="versions", jobs=800, play=versions, plan=Plan(workers=2, pollers=2, subscriber=False)),
)
