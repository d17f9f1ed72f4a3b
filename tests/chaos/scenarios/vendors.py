"""Vendors that are down, and callbacks that never come."""

from __future__ import annotations

import itertools
import math
import statistics
import time
from typing import Any, Final

from service.vendors import VENDORS as MODULES
from tests.chaos.cast import Cast, Scenario
from tests.chaos.ledger import Entry
from tests.chaos.orders import CALLBACKS, CALLED, VENDORS, nonce_in, orders
from tests.chaos.stage import Plan

SICK: Final = "lipsync_studio"
OTHERS: Final = {vendor: share for vendor, share in VENDORS.items() if vendor != SICK}
BEFORE: Final = "others, before"
MEANWHILE: Final = "others, meanwhile"
#: How it is down: for an hour in all, in steps of so many seconds of Redis' clock.
OUTAGES: Final = (("vendor_500", 90), ("vendor_rate_limited", 90), ("vendor_garbage", 90), ("vendor_hangs", 300))
HOUR: Final = 3600
#: The longest that a vendor which is down is left alone.
LEFT_ALONE: Final = 300
#: Jobs whose memory is measured.
SAMPLE: Final = 500
#: Seconds that a step takes: a try that hangs is given up after 20, a submission after 60.
_TRY: Final = {"vendor_hangs": 25.0}


def down(cast: Cast) -> None:
    """One vendor is down for an hour, in every way; the others must not notice."""
    stage, chance, share = cast.stage, cast.stage.chance, cast.jobs // 10
    sick: dict[str, Any] = {"group": "the vendor that is down", "vendors": {SICK: 1}}
    others: dict[str, Any] = {"vendors": OTHERS, "callbacks": CALLBACKS}
    stage.crowd.send(orders(share * 2, chance, group=BEFORE, **others), rate=20)
    stage.crowd.send(orders(share * 2, chance, words=("callback_lost",), **sick), rate=30)
    cast.acknowledged()
    cast.wait(3)
    stage.crowd.send(orders(share * 5, chance, group=MEANWHILE, **others), rate=12)
    for word, step in OUTAGES:
        stage.sandbox.order(SICK, word)
        # What is sent now may be refused (and is not paid), or stay without an answer (and an operator has to look).
        some = orders(share // 4, chance, direct=0, refusable=True, callbacks=CALLBACKS, **sick)
        stage.crowd.send(some)
        for _ in range(HOUR // len(OUTAGES) // step):
            cast.wait(cast.seconds(_TRY.get(word, 1.2), 0.5))
            stage.let_pass(step)
        stage.sandbox.clear()
    cast.figures["calls while it was down"] = stage.sandbox.calls(SICK).get("faulted", 0)
    cast.figures["seconds by Redis' clock"] = round(int(stage.desk.redis.time()[0]) - time.time())
    stage.let_pass(LEFT_ALONE)
    cast.over()
    cast.looks.append(unharmed)


def unharmed(cast: Cast) -> None:
    """The others' verdicts were known as soon as ever."""
    ledger, waits = cast.stage.ledger, dict[str, list[float]]()
    for job in (job for vendor in OTHERS for job in cast.stage.sandbox.jobs(vendor)):
        entry = ledger.entries[nonce_in(str(job["request"]))]
        if done_at := ledger.done_at(entry):
            waits.setdefault(entry.order.group, []).append(done_at - job["finished_at"])
    medians = {group: statistics.median(waits[group]) for group in (BEFORE, MEANWHILE)}
    cast.figures["median seconds to known"] = {group: round(median, 2) for group, median in medians.items()}
    if medians[MEANWHILE] > 2 * medians[BEFORE] + 1:
        cast.findings.append(f"the others had to wait: {medians[MEANWHILE]:.1f} s in place of {medians[BEFORE]:.1f} s")


def silent(cast: Cast) -> None:
    """Ten thousand jobs, of which three in ten are never called back for."""
    stage, chance = cast.stage, cast.stage.chance
    shares = {"lipsync_studio": 45, "apimodels": 35, "kitta": 10, "chanjing": 10}
    how: dict[str, Any] = {"vendors": shares, "seconds": (2.0, 50.0), "direct": 0.7}
    stage.crowd.send(
        itertools.chain(
            orders(int(cast.jobs * 0.7), chance, group="called back for", callbacks=CALLED, **how),
            orders(int(cast.jobs * 0.3), chance, group="not called back for", words=("callback_lost",), **how),
        )
    )
    cast.acknowledged()
    _weighed(cast, cast.stage.ledger.open(), "a job that is under way")
    cast.looks += [frugal, lambda cast: _weighed(cast, cast.stage.ledger.acknowledged(), "a job that has ended")]


def _weighed(cast: Cast, entries: list[Entry], what: str) -> None:
    """How many bytes Redis takes for such a job: its own keys; of them, what vendors have sent is forgotten first."""
    desk, some = cast.stage.desk, entries[:: max(1, len(entries) // SAMPLE)]
    with desk.redis.pipeline(transaction=False) as pipeline:
        for job_id in (entry.job_id for entry in some):
            pipeline.memory_usage(desk.key("raw", job_id), samples=0)
            for key in ("job", "timeline"):
                pipeline.memory_usage(desk.key(key, job_id), samples=0)
            for task in ("submit", "archive"):
                pipeline.memory_usage(f"rq:job:{task}-{job_id}", samples=0)
        sizes = [size or 0 for size in pipeline.execute()]
    raw, every = sum(sizes[::5]) / len(some), sum(sizes) / len(some)
    cast.figures[f"bytes of {what}"] = {"in all": round(every), "without payloads": round(every - raw)}


def frugal(cast: Cast) -> None:
    """How often the vendors were asked, against the least that would do: one call a job, or one page of a list."""
    for vendor in VENDORS:
        jobs, calls = cast.stage.sandbox.jobs(vendor), cast.stage.sandbox.calls(vendor)
        silent_ones = [job for job in jobs if not job["callbacks"]]
        page, failed = MODULES[vendor].LIST_PAGE, sum(job["status"] == "failed" for job in silent_ones)
        cast.figures[f"calls to {vendor}"] = {
            "status": calls.get("status", 0),
            "list": calls.get("list", 0),
            # Once, when all is over; a list does not say why a job has failed.
            "least possible": math.ceil(len(silent_ones) / page) + failed if page else len(silent_ones),
            "status calls a silent job": round(statistics.mean(job["status_calls"] for job in silent_ones), 2),
        }


VENDOR_FAULTS: Final = (
    Scenario(name="vendors", jobs=1200, play=down, plan=Plan(clock=True), within=200),
    Scenario(
        name="silent",
        jobs=10_000,
        play=silent,
        # What is measured is how often vendors are asked; that many webhooks would only make it wait for the machine.
        plan=Plan(workers=2, concurrency=16, subscriber=False, settings={"POLL_GRACE_SECONDS": "30"}),
        within=180,
    ),
)
