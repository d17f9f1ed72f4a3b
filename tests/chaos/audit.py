"""The reckoning: what the vendors made, what lies in the bucket and what subscribers heard, against what is known here.

Nothing but the last of the four is the service's own word. Whatever does not agree is a finding, and a bad verdict.
"""

from __future__ import annotations

import hashlib
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import httpx
import msgspec

from service.vendors import VENDORS
from tests.chaos.bucket import unfinished
from tests.chaos.ledger import Entry
from tests.chaos.orders import nonce_in
from tests.chaos.stage import API_KEY, Stage

_FORGED: Final = ("forged_token", "forged_verdict")
#: What has to happen to callbacks in every scenario, beside its own faults.
_USUAL: Final = {"lost", "doubled", "stale", *_FORGED}
#: Callbacks that a timeline lists: those that were understood, and those that were not.
_GENUINE: Final = ("verdict", "doubled", "stale", "garbled")


#: Seconds within which the README promises that a job goes on, once what had died or was gone is there again.
BOUND: Final = 180.0

#: The order in which subscribers hear of a job.
_ORDER: Final = ("job.submitted", "job.processing", "job.succeeded", "job.failed", "job.stored", "job.store_failed")


class Row(msgspec.Struct, kw_only=True):
    """What became of one group of jobs in one scenario."""

    scenario: str
    without: str = ""  #: the safeguard that was removed
    group: str = ""
    jobs: int = 0
    acknowledged: int = 0
    truth: int = 0  #: of those acknowledged, so many ended as their vendor says, their file whole and at home
    lost: int = 0
    objects_twice: int = 0
    events_twice: dict[str, int] = {}
    events_missing: dict[str, int] = {}
    paid_twice: int = 0
    delivered_again: int = 0  #: webhooks that came once more, each with the id that it had
    fetched_again: int = 0  #: files that were read from the vendor more than once
    operated: int = 0  #: jobs that the operator had to resolve
    recovery: tuple[float, float, float] | None = None  #: median, 99th of a hundred and longest, in seconds
    figures: dict[str, Any] = {}
    findings: list[str] = []
    seconds: float = 0.0

    @property
    def name(self) -> str:
        """What was played."""
        return f"{self.scenario} without {self.without}" if self.without else self.scenario

    @property
    def good(self) -> bool:
        return not self.findings


class Books:
    """Everything that can be known at the end of a scenario."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.made: dict[str, list[dict[str, Any]]] = {}  #: by nonce, the vendors' jobs
        for vendor in VENDORS:
            for job in stage.sandbox.jobs(vendor):
                self.made.setdefault(nonce_in(str(job["request"])), []).append(job)
        self.jobs = {job["id"]: job for job in _all_jobs(stage.url)}
        root = stage.s3.folder / "outputs"
        self.objects = {
            path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in root.rglob("*")
            if path.is_file() and not path.name.startswith(".rclone_temp")
        }

    def row(self, scenario: str, group: str, over_at: float) -> Row:
        """`over_at`: when the last fault ended; what had its verdict before is counted from there."""
        ledger = self.stage.ledger
        entries = [entry for entry in ledger.entries.values() if entry.order.group == group]
        known = [entry for entry in entries if entry.job_id]
        wrong = {entry.job_id: why for entry in known if (why := self._wrong(entry))}
        ids = {entry.job_id for entry in known}
        events = Counter({name: times for name, times in list(ledger.heard.items()) if name[0] in ids})
        heard_twice = {name for name, times in (events + Counter()).items() if times > 1}
        heard_twice |= {name for name, times in list(ledger.published.items()) if times > 1 and name in events}
        missing = Counter(
            type_
            for entry in known
            if entry.job_id not in wrong
            for type_ in (entry.order.events if self._taken(entry) else {"job.failed"})
            if not events[entry.job_id, type_]
        )
        row = Row(
            scenario=scenario,
            group=group,
            jobs=len(entries),
            acknowledged=len(known),
            truth=len(known) - len(wrong),
            lost=len(wrong),
            events_twice=dict(Counter(type_ for _, type_ in heard_twice)),
            events_missing=dict(missing),
            paid_twice=sum(len(self.made.get(entry.order.nonce, ())) > 1 for entry in entries),
            fetched_again=sum(self._fetched(entry) > 1 for entry in known),
            operated=sum(entry.job_id in ledger.operated for entry in known),
            recovery=self._recovery(known, over_at),
        )
        row.objects_twice = self._objects_twice(known)
        row.findings = [*_disagreements(row), *self._callbacks(known), *_disorder(known, ledger.told, "events")]
        if ledger.subscribed:
            row.delivered_again = sum(ledger.delivered[name] - 1 for name in events if name in ledger.delivered)
            row.findings += [*self._webhooks(events), *_disorder(known, ledger.sent, "webhooks")]
        if wrong:
            reasons = Counter(why.partition(":")[0] for why in wrong.values())
            some = "; ".join(f"{job_id} {why}" for job_id, why in list(wrong.items())[:3])
            row.findings.append(f"{len(wrong)} lost: {dict(reasons)}; {some}")
        return row

    def callbacks(self) -> Counter[str]:
        """In how many jobs each kind of callback was sent, or lost, by the vendors' own record."""
        found = Counter[str]()
        for job in (job for made in self.made.values() for job in made):
            found.update({call["kind"] for call in job["callbacks"]} | ({"lost"} & _words(job["faults"])))
        return found

    def _wrong(self, entry: Entry) -> str:
        """Why a job that was acknowledged is not where the truth is; empty where it is."""
        job, made = self.jobs.get(entry.job_id), self.made.get(entry.order.nonce, [])
        if job is None:
            return "gone: the API does not know it"
        if not self._taken(entry):
            refused = entry.order.refusable and job["status"] == "failed"
            return "" if refused else f"never sent: it is {job['status']}"
        verdict = "succeeded" if entry.sha256 else made[0]["status"]
        if job["status"] != verdict:
            return f"status: it is {job['status']}, its vendor says {verdict}"
        if verdict != "succeeded":
            return ""
        if job["archive"] != "stored":
            return f"archive: it is {job['archive']}"
        stored, sha256 = job["outputs"][0]["stored"], entry.sha256 or made[0]["outputs"][0]["sha256"]
        if not stored["sha256"] == self.objects.get(stored["key"]) == sha256:
            return f"file: {stored['key']} is not what its vendor made"
        return ""

    def _taken(self, entry: Entry) -> bool:
        """Whether its vendor has ever had it."""
        return bool(entry.sha256 or self.made.get(entry.order.nonce))

    def _fetched(self, entry: Entry) -> int:
        return sum(output["attempts"] for job in self.made.get(entry.order.nonce, ()) for output in job["outputs"])

    def _objects_twice(self, known: Iterable[Entry]) -> int:
        """Objects beyond one for each job."""
        by_job = Counter(key.split("/")[-2] for key in self.objects)
        return sum(max(0, by_job[entry.job_id] - 1) for entry in known)

    def _recovery(self, known: Iterable[Entry], over_at: float) -> tuple[float, float, float] | None:
        ledger, waits = self.stage.ledger, []
        for entry in known:
            made, done_at = self.made.get(entry.order.nonce), ledger.done_at(entry)
            finished_at = made[0]["finished_at"] if made else over_at if entry.sha256 else None
            if done_at is None or finished_at is None or done_at < over_at or entry.job_id in ledger.operated:
                continue
            waits.append(max(0.0, done_at - max(finished_at, over_at)))
        return summary(waits)

    def _webhooks(self, events: Iterable[tuple[str, str]]) -> Iterator[str]:
        """Every event that the endpoint wants has been sent there, however often, by one id."""
        ledger = self.stage.ledger
        wanted = [name for name in events if ledger.by_job[name[0]].order.vendor in ledger.subscribed]
        if missing := Counter(name[1] for name in wanted if name not in ledger.delivered):
            yield f"events never delivered: {dict(missing)}"
        if renamed := sum(len(ledger.webhook_ids.get(name, ())) > 1 for name in events):
            yield f"{renamed} events were delivered under several ids"

    def _callbacks(self, known: list[Entry]) -> list[str]:
        """An acknowledged callback is in its job's timeline; a forged one is never acknowledged."""
        desk, found = self.stage.desk, []
        with desk.redis.pipeline(transaction=False) as pipeline:
            for entry in known:
                pipeline.lrange(desk.key("timeline", entry.job_id), 0, -1)
            timelines = pipeline.execute()
        unlisted = forged = 0
        for entry, timeline in zip(known, timelines, strict=True):
            listed = sum(b'"source":"callback"' in line for line in timeline)
            sent = [call for job in self.made.get(entry.order.nonce, ()) for call in job["callbacks"]]
            taken = sum(call["http_status"] == 200 and call["kind"] in _GENUINE for call in sent)
            unlisted += max(0, taken - listed)
            forged += sum(call["http_status"] in range(200, 300) and call["kind"] in _FORGED for call in sent)
        if unlisted:
            found.append(f"{unlisted} callbacks were acknowledged and are in no timeline")
        if forged:
            found.append(f"{forged} forged callbacks were acknowledged")
        return found


def _words(faults: Iterable[str]) -> set[str]:
    return {fault.removeprefix("callback_") for fault in faults}


def common_findings(books: Books, *, hasty: bool) -> list[str]:
    """What concerns no group of jobs: processes, answers, the bucket."""
    stage = books.stage
    found = [*stage.trouble]
    if not hasty and (spared := _USUAL - books.callbacks().keys()):
        found.append(f"no callbacks were {', '.join(sorted(spared))}: make it harder")
    if strange := stage.ledger.strange:
        found.append(f"{len(strange)} answers that nobody should get: {'; '.join(strange[:3])}")
    if parts := unfinished(stage.s3):
        found.append(f"{len(parts)} uploads were left behind: {', '.join(parts[:3])}")
    return found


def summary(waits: list[float]) -> tuple[float, float, float] | None:
    """Median, 99th of a hundred and longest."""
    if not waits:
        return None
    waits.sort()
    return statistics.median(waits), waits[min(len(waits) - 1, int(len(waits) * 0.99))], waits[-1]


def _disagreements(row: Row) -> list[str]:
    found = []
    if row.acknowledged < row.jobs:
        found.append(f"{row.jobs - row.acknowledged} were never acknowledged")
    if row.objects_twice:
        found.append(f"{row.objects_twice} objects are stored twice")
    if row.events_twice:
        found.append(f"events heard twice: {row.events_twice}")
    if row.events_missing:
        found.append(f"events never heard: {row.events_missing}")
    if row.paid_twice:
        found.append(f"{row.paid_twice} jobs were paid twice")
    if row.recovery and row.recovery[-1] > BOUND:
        found.append(f"a job went on after {row.recovery[-1]:.0f} s only; {BOUND:.0f} are promised")
    return found


def _disorder(known: Iterable[Entry], heard: Mapping[str, list[str]], what: str) -> Iterator[str]:
    told = [[type_ for type_ in heard.get(entry.job_id, ()) if type_ in _ORDER] for entry in known]
    if disordered := sum(types != sorted(types, key=_ORDER.index) for types in told):
        yield f"the {what} of {disordered} jobs are not in order"


def _all_jobs(url: str) -> Iterable[Mapping[str, Any]]:
    """Every page of the list, as any user reads it."""
    headers, cursor = {"Authorization": f"Bearer {API_KEY}"}, ""
    with httpx.Client(base_url=url, headers=headers, trust_env=False, timeout=60) as api:
        while True:
            page = api.get("/v1/jobs", params={"limit": 100} | ({"cursor": cursor} if cursor else {}))
            page.raise_for_status()
            yield from page.json()["data"]
            cursor = page.json()["next_cursor"]
            if not cursor:
                return
