"""Object storage in trouble, and large files on their way to it: nothing partial is ever visible."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import httpx

from tests.chaos.bucket import visible
from tests.chaos.cast import Cast, Scenario
from tests.chaos.films import LARGE, Films
from tests.chaos.scenarios.kills import both
from tests.chaos.stage import Plan, Stage
from tests.support.files import MP4, file_server, slow

LARGE_FILES: Final = "large files"
WHOLE: Final = len(MP4) + LARGE


@contextmanager
def watched(stage: Stage, cast: Cast) -> Iterator[None]:
    """Look at the bucket all the time, as its readers do: a file is there whole, or not at all."""
    over, partial = threading.Event(), set[str]()

    def look() -> None:
        while not over.wait(0.2):
            try:
                found = visible(stage.s3)
            except httpx.HTTPError:
                continue
            partial.update(key for key, size in found.items() if not size or (_is_large(stage, key) and size != WHOLE))

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
        if partial:
            cast.findings.append(f"{len(partial)} objects were visible in part: {', '.join(sorted(partial)[:3])}")


def _is_large(stage: Stage, key: str) -> bool:
    """Whether an object's file is one of the suite's own."""
    entry = stage.ledger.by_job.get(key.split("/")[-2])
    return entry is not None and bool(entry.sha256)


def storage(cast: Cast) -> None:
    """It breaks off in the middle of uploads, it refuses, it stalls; then it is back."""
    stage, proxy = cast.stage, cast.stage.proxies["s3"]
    films = Films(stage, cast.use(file_server()))
    cast.use(watched(stage, cast))
    both(cast, rate=40)
    films.make(cast.times(8), LARGE_FILES, answer=lambda body: slow(body, 1))
    proxy.cut_after = LARGE // 3
    cast.wait(cast.seconds(8, 2))
    proxy.mend()
    cast.ended(LARGE_FILES)
    films.make(cast.times(6), LARGE_FILES, answer=lambda body: slow(body, 3))
    cast.wait(1)
    proxy.refuse()
    cast.wait(cast.seconds(15, 3))
    proxy.mend()
    films.make(cast.times(6), LARGE_FILES, answer=lambda body: slow(body, 1))
    cast.wait(0.5)
    proxy.hold()
    cast.wait(cast.seconds(30, 3))
    proxy.mend()
    cast.over()
    cast.figures["connections cut"] = proxy.cuts


def shutdown(cast: Cast) -> None:
    """As Heroku does it: SIGTERM to all at once, SIGKILL half a minute later, in the middle of large files."""
    stage = cast.stage
    films = Films(stage, cast.use(file_server()))
    long = films.make(cast.times(6), LARGE_FILES, answer=lambda body: slow(body, cast.seconds(90, 6)))
    short = films.make(cast.times(6), LARGE_FILES, answer=lambda body: slow(body, cast.seconds(6, 3)))
    both(cast, rate=50)
    while not sum(map(films.fetched, long)) >= stage.plan.workers:
        cast.wait(0.1)
    cast.wait(cast.seconds(2, 0.5))
    stopped_at = time.monotonic()
    for name in stage.names:
        stage.tell_to_stop(name)
    stage.see_them_off()
    cast.figures["seconds to stop"] = round(time.monotonic() - stopped_at, 1)
    cast.figures["short files fetched again"] = sum(films.fetched(entry) > 1 for entry in short)
    for entry in long:  # the vendor's server is quicker today
        films.serve(entry, lambda body: slow(body, 0.1))
    stage.restarts += len(stage.names)
    stage.start_all()
    cast.over()


OBJECTS: Final = (
    Scenario(name="storage", jobs=900, play=storage, plan=Plan(s3_proxy=True)),
    # Nothing has died, so nothing has to wait until the sweep finds it.
    Scenario(name="shutdown", jobs=1200, play=shutdown, within=30),
)
