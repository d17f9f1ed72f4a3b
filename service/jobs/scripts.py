"""The scripts that run inside Redis, and what the commit script is handed.

A script is whole when it has left here: its shebang, the constants of this deployment, the prelude, and its own lines.
"""

from __future__ import annotations

import base64
import zlib
from importlib.resources import files
from typing import Final, Self

import msgspec

from service.jobs import rules, tasks
from service.model import ARCHIVE_EVENTS, STATUS_EVENTS, Job, Limit, Status
from service.settings import Settings

#: Entries that the stream keeps, about. At one event of 1 KB each, some 100 MB.
STREAM_LENGTH: Final = 100_000
#: Tries that are kept of each endpoint, about, and for how long after the last one.
ATTEMPTS_KEPT: Final = 1000
ATTEMPTS_OF_JOB: Final = 100
ATTEMPTS_SECONDS: Final = 7 * 86_400
#: An endpoint that fails so often in a row is left alone for a while.
PAUSE_AFTER: Final = 5
#: Facts without effect are no longer listed in a timeline of this length, only counted.
TIMELINE_LENGTH: Final = 200
PARKED_LENGTH: Final = 50
PARKED_SECONDS: Final = 7 * 86_400
#: Bytes of letters in quarantine, and as many of parked facts. One callback may be a letter of 22 MB.
KEPT_BYTES: Final = 64 * 2**20
IDEMPOTENCY_SECONDS: Final = 86_400
#: While one job tries whether a vendor takes submissions again, the others wait so long.
TRIAL_MS: Final = 5_000

_DEFAULTS: Final = {"outputs": "[]", "metadata": "{}", "archive": '"none"'}


class Ask(msgspec.Struct, frozen=True):
    """A vendor's rhythm as the store wants it, in milliseconds. See `service.vendors.base.Rhythm`."""

    grace: int
    every: int
    slowest: int


class Line(msgspec.Struct, frozen=True):
    """At most so many requests in any window of so many milliseconds; a line forms in front of it."""

    requests: int
    window: int

    @classmethod
    def of(cls, limit: Limit) -> Self:
        """A limit with some air: between here and the vendor, calls come closer to each other."""
        return cls(limit.requests, int(limit.seconds * 1020) + 200)


class Letter(msgspec.Struct, frozen=True, omit_defaults=True):
    """A callback that goes to quarantine, whole."""

    id: str
    subject: str  #: whose URL it came by: a job id or `shared`
    body: str  #: see `pack_body`


class Idempotency(msgspec.Struct, frozen=True):
    key: str
    digest: str  #: of the request's body


class Commit(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One fact as `commit.lua` reads it. `told`, `detail` and `raw` hold JSON, ready to be joined."""

    vendor: str
    source: str
    witness: str
    job: str | None = None
    vendor_job_id: str | None = None
    status: str | None = None
    archive: str | None = None
    told: dict[str, str] | None = None
    problem: str | None = None
    detail: str | None = None
    raw: str | None = None
    ask: Ask | None = None  #: None: the vendor cannot be asked
    poll_now: bool = False
    expect: dict[str, str] | None = None  #: field → JSON: commit only while the job still says so
    task: str | None = None  #: the fact is about this task, which runs again after `retry_in` ms, or never
    retry_in: int | None = None
    order: str | None = None  #: JSON: what a new job asks of the vendor
    step: str | None = None  #: JSON: the model of the vendor's job that has to be done before
    line: Line | None = None  #: a new job takes its place in it at once
    sent: str | None = None  #: JSON: the sending that this fact begins; the same one may begin again
    prepared: str | None = None  #: JSON: what was found and uploaded for the order so far
    quarantine: Letter | None = None
    create: bool = False
    deadline: int | None = None  #: ms that a new job may go without a verdict
    idempotency: Idempotency | None = None
    trace: str | None = None  #: the traceparent of what it was committed in


def pack_body(body: bytes) -> str:
    """A raw body as a letter keeps it: Redis' Lua reads no msgpack binaries, and most of a body is repetition."""
    return base64.b64encode(zlib.compress(body)).decode()


def unpack_body(packed: bytes) -> bytes:
    return zlib.decompress(base64.b64decode(packed))


def script_text(name: str, settings: Settings) -> str:
    """One script, whole: its shebang, the constants from this deployment, the prelude, and its own lines."""
    source = files("service.jobs") / "lua"
    shebang, _, body = (source / f"{name}.lua").read_text().partition("\n")
    constants = {
        "PREFIX": settings.key_prefix,
        "FIELDS": list(Job.__struct_fields__),
        "DEFAULTS": _DEFAULTS,
        "RULES": rules.compiled(),
        "STATUSES": {status.value: number for number, status in enumerate(Status)},
        "WITNESSES": {witness.value: number for number, witness in enumerate(rules.Witness)},
        "STATUS_EVENTS": {status.value: type_ for status, type_ in STATUS_EVENTS.items()},
        "ARCHIVE_EVENTS": {archive.value: type_ for archive, type_ in ARCHIVE_EVENTS.items()},
        "TASKS": {
            task: {"queue": settings.queue(task), "template": tasks.template(task, settings.queue(task))}
            for task in tasks.PATHS
        },
        "PATIENCE": tasks.PATIENCE * 1000,
        "TRIAL": TRIAL_MS,
        "STREAM_LENGTH": STREAM_LENGTH,
        "ATTEMPTS_KEPT": ATTEMPTS_KEPT,
        "ATTEMPTS_OF_JOB": ATTEMPTS_OF_JOB,
        "ATTEMPTS_SECONDS": ATTEMPTS_SECONDS,
        "PAUSE_AFTER": PAUSE_AFTER,
        "TIMELINE_LENGTH": TIMELINE_LENGTH,
        "PARKED_LENGTH": PARKED_LENGTH,
        "PARKED_SECONDS": PARKED_SECONDS,
        "KEPT_BYTES": KEPT_BYTES,
        "IDEMPOTENCY_SECONDS": IDEMPOTENCY_SECONDS,
        "RAW_SECONDS": settings.raw_retention_days * 86_400,
    }
    header = "\n".join(f"local {name} = {_lua(value)}" for name, value in constants.items())
    return "\n".join((shebang, header, (source / "prelude.lua").read_text(), body))


def _lua(value: object) -> str:
    """A constant as Lua source. JSON's strings are Lua's too, as long as they are plain."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"[{_lua(key)}] = {_lua(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "{" + ", ".join(_lua(item) for item in value) + "}"
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
    return str(value)
