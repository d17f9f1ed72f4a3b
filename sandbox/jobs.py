"""A vendor's jobs: what was asked for, the clock that each one runs on, and what became of it.

Owns the job, its output's links, and the store, all in memory. Nothing moves a job: how far it has come
is worked out from the time, so that a status answer and a callback can never disagree about it.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final

from sandbox.faults import Faults

#: The part of a job's time that it waits before it is worked on.
_QUEUED_SHARE: Final = 0.2


class Phase(StrEnum):
    """How far a job has come. Each vendor has its own words for it."""

    QUEUED = "queued"
    PROCESSING = "processing"
    UNKNOWN = "unknown"  # over, but told with a word that the vendor's page does not have
    SUCCEEDED = "succeeded"
    FAILED = "failed"


@dataclass
class Output:
    """The file that a job made, and the links to it that were given away."""

    path: str  #: below the sandbox's root, without the suffix
    faults: Faults
    attempts: int = 0  #: GETs of the file
    downloads: int = 0  #: GETs that were answered to the last byte
    _signatures: list[str] = field(default_factory=lambda: [secrets.token_hex(8)])
    _given: bool = False  #: whether anybody has seen the newest link

    def link(self, suffix: str = ".mp4") -> str:
        return f"{self.path}{suffix}?sig={self._signatures[-1]}"

    def give(self) -> None:
        self._given = True

    def refresh(self) -> None:
        """A status answer replaces a link that is dead, once somebody has been given it."""
        if self._given and self.dead(self._signatures[-1]):
            self._signatures.append(secrets.token_hex(8))
            self._given = False

    def knows(self, signature: str) -> bool:
        return signature in self._signatures

    def dead(self, signature: str) -> bool:
        return "link_dead" in self.faults or ("link_expired" in self.faults and signature == self._signatures[0])


@dataclass(kw_only=True, frozen=True)
class Attempt:
    """One callback that was sent, and what it was answered with."""

    at: float  #: when it was sent, unix seconds
    kind: str
    http_status: int | None
    error: str | None  #: the exception's name where there was no answer


@dataclass(kw_only=True)
class Job:
    vendor: str
    id: str  #: the one that the vendor's status call takes
    model: str
    request: dict[str, object]  #: the body of the submission, as it came
    callback_url: str | None
    base: str  #: the sandbox's own URL, as the submission called it
    faults: Faults
    seconds: float  #: how long the job takes
    submitted_at: float = field(default_factory=time.time)  #: unix seconds
    output: Output | None = None  #: None for jobs that make no media
    callbacks: list[Attempt] = field(default_factory=list)
    status_calls: int = 0
    list_calls: int = 0

    @property
    def name(self) -> str:
        """What the job's file is marked with."""
        return f"sandbox job {self.vendor} {self.id}"

    @property
    def started_at(self) -> float:
        return self.submitted_at + self.seconds * _QUEUED_SHARE

    @property
    def finished_at(self) -> float:
        return math.inf if "job_stuck" in self.faults else self.submitted_at + self.seconds

    @property
    def known_at(self) -> float:
        """When the vendor says the verdict in a word that can be understood."""
        if "unknown_status" not in self.faults:
            return self.finished_at
        lasts = self.faults["unknown_status"]
        return math.inf if lasts is None else self.finished_at + lasts

    @property
    def verdict(self) -> Phase:
        return Phase.FAILED if self.faults.keys() & {"job_failed", "no_face"} else Phase.SUCCEEDED

    def phase(self, now: float | None = None) -> Phase:
        now = time.time() if now is None else now
        if now < self.started_at:
            return Phase.QUEUED
        if now < self.finished_at:
            return Phase.PROCESSING
        return Phase.UNKNOWN if now < self.known_at else self.verdict

    def failure(self, otherwise: str) -> str:
        """Why the job failed: the words of `no_face`, or the vendor's usual ones."""
        return "Face detection failed: no faces found" if "no_face" in self.faults else otherwise

    def media(self, suffix: str = ".mp4") -> str:
        """The link to what the job made, for an answer or a callback that is about to go out."""
        if self.output is None:
            raise ValueError(f"{self.model} makes no media")
        self.output.give()
        return self.base + self.output.link(suffix)

    def asked(self) -> None:
        """The vendor was asked about this job: a dead link is replaced."""
        if self.output is not None:
            self.output.refresh()


class Jobs:
    """All jobs since the start or the last reset."""

    def __init__(self) -> None:
        self._by_vendor: dict[str, dict[str, Job]] = {}

    def add(self, job: Job) -> None:
        self._by_vendor.setdefault(job.vendor, {})[job.id] = job

    def get(self, vendor: str, id: str) -> Job | None:
        return self._by_vendor.get(vendor, {}).get(id)

    def newest_first(self, vendor: str) -> Iterator[Job]:
        return reversed(self._by_vendor.get(vendor, {}).values())

    def count(self, vendor: str) -> int:
        return len(self._by_vendor.get(vendor, {}))

    def clear(self) -> None:
        self._by_vendor.clear()


def iso(at: float) -> str:
    """Unix seconds as ISO-8601 UTC with milliseconds: `2026-07-01T08:00:00.000Z`."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"
