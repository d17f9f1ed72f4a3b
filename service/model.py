"""The vocabulary: what a job is, what can be known about it, and what subscribers hear.

Everything here is frozen and does no I/O. The names are the same in Redis, JSON, logs and docs.
Times are UTC; in JSON they are ISO-8601 with a trailing `Z`.
"""

from __future__ import annotations

import base64
import secrets
from datetime import datetime
from enum import StrEnum
from typing import Final

import msgspec


class Status(StrEnum):
    """The vendor's verdict on a job, or how far the job has come on the way to one."""

    PENDING = "pending"  # ours: not sent yet
    UNCONFIRMED = "unconfirmed"  # ours: sent, answer unknown
    QUEUED = "queued"
    PROCESSING = "processing"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"  # ours: the deadline passed without a verdict


#: What only a vendor can say, and says once.
VERDICTS: Final = frozenset({Status.SUCCEEDED, Status.FAILED, Status.CANCELLED})


class Archive(StrEnum):
    """What became of our copy of the outputs. Never mixed with `Status`."""

    NONE = "none"
    WAITING = "waiting"
    STORED = "stored"
    FAILED = "failed"


class Source(StrEnum):
    """Who says so: the path by which an observation came in."""

    SUBMIT = "submit"
    CALLBACK = "callback"
    POLL = "poll"
    ARCHIVE = "archive"
    DEADLINE = "deadline"
    OPERATOR = "operator"


class OutputKind(StrEnum):
    VIDEO = "video"
    IMAGE = "image"
    AUDIO = "audio"


class Problem(StrEnum):
    """Why an observation could not be understood. Also the `reason` in quarantine, logs and metrics."""

    BAD_JSON = "bad_json"  # the body is not JSON
    BAD_SHAPE = "bad_shape"  # JSON, but neither a task nor an envelope around one
    TOO_LARGE = "too_large"  # more bytes than a callback may have; not kept
    NO_JOB_ID = "no_job_id"  # names no job: came by the vendor's shared URL, or answers a submission
    UNKNOWN_STATUS = "unknown_status"  # a word that the vendor's page does not have
    NO_OUTPUT = "no_output"  # success without a usable URL, where the operation makes media
    OTHER_JOB = "other_job"  # came by one job's URL and names another of the vendor's jobs
    VENDOR_ERROR = "vendor_error"  # the vendor, asked about this job, answers with an error of its own
    UNKNOWN_JOB = "unknown_job"  # the vendor, asked, does not know the id
    NO_ANSWER = "no_answer"  # a job was sent to the vendor, and nobody knows what became of it
    NOT_SENT = "not_sent"  # an attempt to prepare or send a job did not succeed; nothing was ordered
    NOT_STORED = "not_stored"  # an attempt to bring the result home did not succeed


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """Our copy of one output."""

    url: str  #: this service's URL of the file
    key: str  #: the object's key, relative to `STORAGE_URL`
    bytes: int
    sha256: str  #: lowercase hex
    content_type: str


class Output(msgspec.Struct, frozen=True, kw_only=True):
    """One media file that a job made."""

    kind: OutputKind = OutputKind.VIDEO
    url: str  #: the vendor's; many die within hours
    stored: Stored | None = None


class JobError(msgspec.Struct, frozen=True, kw_only=True):
    """Why the vendor failed the job, in the vendor's words."""

    code: str
    message: str
    retryable: bool = False


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    estimated: float | None = None
    charged: float | None = None
    unit: str  #: the vendor's own: `credits`, `beans`, `USD`


class Limit(msgspec.Struct, frozen=True, kw_only=True):
    """At most `requests` in any window of `seconds`, over all processes."""

    requests: int
    seconds: float


class Observation(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One fact about a job. `None` means that the fact says nothing about that field."""

    source: Source
    status: Status | None = None
    vendor_job_id: str | None = None
    model: str | None = None
    progress: int | None = None  #: percent, 0 to 100
    outputs: tuple[Output, ...] | None = None
    result: dict[str, object] | None = None  #: what else the vendor returned: faces, duration…
    error: JobError | None = None
    cost: Cost | None = None
    metadata: dict[str, object] | None = None
    archive: Archive | None = None
    submitted_at: datetime | None = (
        None  #: the three times are the vendor's claims; ours stand in for what it does not tell
    )
    started_at: datetime | None = None
    completed_at: datetime | None = None
    problem: Problem | None = None  #: set when it could not be understood; `status` is then None
    detail: str | None = None  #: one sentence for people: the unknown word, the refusal, the reason


class Submission(msgspec.Struct, frozen=True, kw_only=True):
    """What a job asks of its vendor, as it was accepted."""

    model: str
    input: dict[str, object]
    vendor_input: dict[str, object]
    step: str | None = None  #: the model of the vendor's job that has to be done before


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One unit of a vendor's work that we track: the JSON of the API and of every event."""

    id: str
    vendor: str
    model: str | None = None
    vendor_job_id: str | None = None
    status: Status = Status.PENDING
    progress: int | None = None
    archive: Archive = Archive.NONE
    outputs: tuple[Output, ...] = ()
    result: dict[str, object] | None = None
    error: JobError | None = None
    cost: Cost | None = None
    metadata: dict[str, object] = {}
    created_at: datetime
    submitted_at: datetime | None = None
    started_at: datetime | None = None
    completed_at: datetime | None = None
    stored_at: datetime | None = None
    scheduled_at: datetime | None = None  #: while it is `pending`: about when it is sent to the vendor
    expires_at: datetime | None = None  #: when the job, still without a verdict, becomes `expired`


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """What subscribers hear, the same on every channel (the Standard Webhooks payload)."""

    id: str
    type: str
    timestamp: datetime
    data: Job


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """A subscriber's own URL for signed outbound webhooks. Empty filters let everything through."""

    id: str
    url: str
    types: tuple[str, ...] = ()
    vendors: tuple[str, ...] = ()
    metadata: dict[str, object] = {}  #: what a job's metadata has to say in these places
    enabled: bool = True
    disabled_reason: str | None = None
    created_at: datetime


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One try to send one event to one endpoint."""

    delivery_id: str
    event_id: str
    type: str
    job_id: str
    at: datetime
    number: int  #: of the try, from 1
    status: int | None  #: HTTP; None where there was no answer
    ms: int
    outcome: str  #: one of OUTCOMES
    answer: str  #: how it began, or what went wrong; callback tokens blanked out


#: What a try came to: it is tried again, or not.
OUTCOMES: Final = ("delivered", "again", "given up")

#: The event that a status or an archive state is announced by, once per job.
STATUS_EVENTS: Final = {
    Status.QUEUED: "job.submitted",
    Status.PROCESSING: "job.processing",
    Status.SUCCEEDED: "job.succeeded",
    Status.FAILED: "job.failed",
    Status.CANCELLED: "job.cancelled",
    Status.EXPIRED: "job.expired",
}
ARCHIVE_EVENTS: Final = {Archive.STORED: "job.stored", Archive.FAILED: "job.store_failed"}


#: Characters of a vendor's own job id.
MAX_JOB_ID: Final = 200
#: Levels of nesting in what others attach to a job. What goes deeper would one day meet a reader's limit.
MAX_DEPTH: Final = 32


def too_deep(value: object, levels: int = MAX_DEPTH) -> bool:
    """Whether a JSON value is nested deeper than `levels`."""
    if not isinstance(value, dict | list):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(too_deep(item, levels - 1) for item in inner)


def new_id(prefix: str, now_ms: int) -> str:
    """`{prefix}_` and 24 characters that sort by time (48 bits of milliseconds, 72 random bits)."""
    return _id(prefix, now_ms, secrets.token_bytes(9))


def first_id(prefix: str, ms: int) -> str:
    """What sorts before every id that was made from that moment on, and after every earlier one."""
    return _id(prefix, ms, bytes(9))


def _id(prefix: str, ms: int, rest: bytes) -> str:
    return f"{prefix}_{base64.b32hexencode(ms.to_bytes(6) + rest).decode().lower()}"
