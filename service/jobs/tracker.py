"""The door: the one function through which every fact about a job goes.

`record` turns an observation into one argument of `commit.lua`; what the script does with it is all or nothing. There
is an asyncio form, in which the facts that wait in the same turn of the event loop go to Redis together, and a plain
one.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Final, Required, TypedDict, Unpack

import msgspec
from redis import Redis as SyncRedis
from redis import ResponseError
from redis.asyncio import Redis

from service import metrics, tracing
from service.jobs import rules
from service.jobs.scripts import Ask, Commit, Idempotency, Letter, Line, pack_body, script_text
from service.jobs.tokens import may_hold_a_secret, redact, redact_whole
from service.jobs.wire import Wire
from service.model import Job, Observation, Submission
from service.settings import Settings

#: Bytes of raw evidence that a timeline entry keeps. Quarantine keeps a callback whole.
RAW_LIMIT: Final = 64 * 1024
#: One EVALSHA holds up everybody for as long as it runs.
BATCH_FACTS: Final = 128
BATCH_BYTES: Final = 4 * 2**20
#: Round trips that are under way at once; what comes meanwhile shares the next one.
ROUND_TRIPS: Final = 2

_TOLD: Final = tuple(
    name
    for name in Observation.__struct_fields__
    if name in Job.__struct_fields__ and name not in ("status", "archive")
)
_pack = msgspec.msgpack.Encoder().encode
_encode = msgspec.json.Encoder().encode


class CommitFailed(Exception):
    """Redis refused one fact and took the others."""


class Ended(msgspec.Struct, frozen=True):
    """What a fact has ended its job with; a fact that was parked may have, when its job was registered."""

    status: str
    source: str
    seconds: float  #: since the vendor had the job


class Recorded(msgspec.Struct, frozen=True):
    """What became of a fact.

    `outcome` is a `Decision`, or `update` (same status, more about it), `note` (nothing to decide), `parked` (nobody
    has registered that job yet), `quarantined` (no job to note it on); and where nothing was written: `unknown_job`,
    `other_job` (the job has another id at the vendor), `taken` (another job has this vendor's id), `changed` (not
    what was expected), `repeated` and `conflict` (idempotency key seen before, with the same or another body).
    """

    outcome: str
    job_id: str  #: empty for `parked` and for `quarantined` without a job
    ended: Ended | None = None


class Circumstances(TypedDict, total=False):
    """How a fact came in, and what is to be done about it beside what the rules say."""

    #: The evidence, kept in the timeline up to 64 KiB, callback tokens blanked out.
    raw: bytes
    #: It came by the vendor's shared URL, whose verdicts the vendor has to confirm where it can be asked.
    weak_path: bool
    #: Ask the vendor at once, whatever the fact says.
    poll_now: bool
    #: For what could not be understood: whose URL it came by, and the whole body.
    quarantine: tuple[str, bytes] | None
    #: Field → value: commit only while the job still says so.
    expect: Mapping[str, object]
    #: The task that the fact is about. It runs again after `retry_in` seconds; without that, never; with 0, at once and
    #: with all its tries before it. A fact with a problem is one of its tries.
    task: str
    retry_in: float
    #: What was found and uploaded so far for the order: fields of `vendor_input`.
    prepared: Mapping[str, object]
    #: The sending that this fact begins: whoever commits it may send. Saying it again changes nothing.
    sending: str
    #: The job's row does not exist yet and is made by this fact.
    create: bool
    #: What the new job asks of the vendor, and the place that it takes in the vendor's line.
    order: Submission
    line: Line | None
    #: The caller's idempotency key, and the request's body.
    idempotency: tuple[str, bytes] | None


class How(Circumstances, total=False):
    """Whose job a fact is about, and how it came in."""

    vendor: Required[str]
    #: Our id. Without it the job is found by the observation's `vendor_job_id`, or the fact is parked under that.
    job_id: str | None


class Tracker:
    """The door of one process."""

    def __init__(self, redis: Redis, settings: Settings, rhythms: Mapping[str, Ask]) -> None:
        """`rhythms` has the vendors that can be asked, and how often."""
        self._text = script_text("commit", settings)
        self._deadline = settings.job_deadline * 1000
        self._rhythms = rhythms
        self._batch = _Batch(Wire(redis.connection_pool, self._text))

    async def record(self, observation: Observation, **how: Unpack[How]) -> Recorded:
        """Commit one fact about a job; it is durable in Redis when this returns. `How` says what can be said about it.

        Raises:
            redis.RedisError: Redis could not be reached or refused; whether the fact was written is not known, and
                recording it again is harmless.
            CommitFailed: Redis refused this fact alone.
        """
        if not tracing.on():
            return _counted(await self._batch.commit(self._fact(observation, how)), how["vendor"], observation)
        with tracing.span("record", vendor=how["vendor"], source=observation.source, status=observation.status):
            recorded = await self._batch.commit(self._fact(observation, how))
            tracing.note(outcome=recorded.outcome, job_id=recorded.job_id)
        return _counted(recorded, how["vendor"], observation)

    def record_now(self, redis: SyncRedis, observation: Observation, **how: Unpack[How]) -> Recorded:
        """`record` for callers without an event loop. `redis` answers in bytes."""
        answers = redis.register_script(self._text)(args=[self._fact(observation, how)])
        return _counted(_recorded(answers[0]), how["vendor"], observation)

    async def drain(self) -> None:
        """Wait for what has been sent; whoever asked for it may have gone away."""
        await self._batch.drain()

    def _fact(self, seen: Observation, how: How) -> bytes:
        """The one argument of `commit.lua` that says it all."""
        raw = how.get("raw") or b""
        fact = _pack(self._commit(seen, how, _json, raw))
        # Vendors echo our callback URL in the oddest places: it is looked for once, in all that was said together.
        if may_hold_a_secret(fact) or (len(raw) > RAW_LIMIT and may_hold_a_secret(raw)):  # perhaps across the limit
            fact = _pack(self._commit(seen, how, _blanked, redact(raw)))
        return fact

    def _commit(self, seen: Observation, how: How, json: Callable[[object], str], raw: bytes) -> Commit:
        """`json` writes down what others have said."""
        vendor, detail = how["vendor"], seen.detail
        ask, weak_path = self._rhythms.get(vendor), how.get("weak_path", False)
        if weak_path and ask is None:  # nobody to confirm it: better counted and marked than ignored
            weak_path = False
            detail = detail or "came by the vendor's shared URL and is unconfirmed: the vendor cannot be asked"
        told = {name: json(value) for name in _TOLD if (value := getattr(seen, name)) is not None}
        quarantine, idempotency, retry_in = how.get("quarantine"), how.get("idempotency"), how.get("retry_in")
        create, order, line = how.get("create", False), how.get("order"), how.get("line")
        prepared, sending = how.get("prepared"), how.get("sending")
        return Commit(
            vendor=vendor,
            source=seen.source.value,
            witness=rules.witness(seen.source, weak_path=weak_path).value,
            job=how.get("job_id"),
            vendor_job_id=seen.vendor_job_id,
            status=seen.status.value if seen.status else None,
            archive=seen.archive.value if seen.archive else None,
            told=told or None,
            problem=seen.problem.value if seen.problem else None,
            detail=json(detail) if detail else None,
            raw=_json(raw[:RAW_LIMIT].decode(errors="replace")) if raw else None,
            ask=ask,
            poll_now=how.get("poll_now", False),
            expect={name: json(value) for name, value in how.get("expect", {}).items()} or None,
            task=how.get("task"),
            retry_in=None if retry_in is None else int(retry_in * 1000),
            order=_encode(order).decode() if order else None,
            step=json(order.step) if order and order.step else None,
            line=line,
            sent=json(sending) if sending else None,
            prepared=json(prepared) if prepared else None,
            quarantine=_letter(vendor, *quarantine) if quarantine else None,
            create=create,
            deadline=self._deadline if create else None,
            idempotency=Idempotency(idempotency[0], hashlib.sha256(idempotency[1]).hexdigest())
            if idempotency
            else None,
            trace=tracing.traceparent(),
        )


def _json(value: object) -> str:
    return _encode(value).decode()


def _blanked(value: object) -> str:
    return redact_whole(_encode(value)).decode()


def _letter(vendor: str, subject: str, body: bytes) -> Letter:
    body = redact(body)  # the same callback, sent again, is the same letter
    digest = hashlib.sha256(f"{vendor}\0{subject}\0".encode() + body).hexdigest()
    return Letter(id=f"qua_{digest[:24]}", subject=subject, body=pack_body(body))


def _recorded(answer: list[bytes]) -> Recorded:
    outcome, subject = answer[0].decode(), answer[1].decode()
    if outcome == "error":
        raise CommitFailed(subject)
    if len(answer) == 2:
        return Recorded(outcome, subject)
    status, source, ms = answer[2:]
    return Recorded(outcome, subject, Ended(status.decode(), source.decode(), int(ms) / 1000))


def _counted(recorded: Recorded, vendor: str, seen: Observation) -> Recorded:
    if ended := recorded.ended:
        metrics.verdicts(vendor, ended.status, ended.source).inc()
        metrics.job_seconds(vendor, ended.source).observe(ended.seconds)
        if seen.completed_at and seen.source == ended.source:
            late = datetime.now(UTC) - seen.completed_at
            metrics.recovery_seconds(vendor, ended.source).observe(max(0.0, late.total_seconds()))
    return recorded


#: A fact, and who waits to hear what became of it.
_Waiting = tuple[bytes, "asyncio.Future[Recorded]"]


class _Batch:
    """Sends the facts that wait in the same turn of the event loop in one round trip."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._waiting: deque[_Waiting] = deque()
        self._sending: set[asyncio.Task[None]] = set()

    def commit(self, fact: bytes) -> asyncio.Future[Recorded]:
        loop = asyncio.get_running_loop()
        if not self._waiting:
            loop.call_soon(self._flush)
        answer: asyncio.Future[Recorded] = loop.create_future()
        self._waiting.append((fact, answer))
        return answer

    def _flush(self, over: asyncio.Task[None] | None = None) -> None:
        """Send what waits, while there is room for another call; what is left goes when one is `over`."""
        self._sending.discard(over)
        while self._waiting and len(self._sending) < ROUND_TRIPS:
            task = asyncio.get_running_loop().create_task(self._round_trip(self._next()))
            self._sending.add(task)
            task.add_done_callback(self._flush)

    def _next(self) -> list[_Waiting]:
        batch = [self._waiting.popleft()]
        size = len(batch[0][0])
        while self._waiting and len(batch) < BATCH_FACTS and size + len(self._waiting[0][0]) <= BATCH_BYTES:
            batch.append(self._waiting.popleft())
            size += len(batch[-1][0])
        return batch

    async def drain(self) -> None:
        while self._waiting or self._sending:
            if self._sending:
                await asyncio.wait(self._sending)  # not gathered: who gives up waiting would cancel them
            await asyncio.sleep(0)

    async def _round_trip(self, batch: list[_Waiting]) -> None:
        answers: list[list[bytes]] = []
        error: Exception = ConnectionError("the commit was cut short")  # what a cancelled round trip leaves to say
        try:
            answers = await self._wire.call([fact for fact, _ in batch])
        except Exception as caught:
            error = caught
            if not isinstance(caught, ResponseError):  # whoever is next in line would only wait to hear the same
                batch += self._waiting
                self._waiting.clear()
        finally:  # whoever waits must hear of it, whatever it is
            for number, (_, waiting) in enumerate(batch):
                if waiting.done():  # whoever asked has gone away
                    continue
                if not answers:
                    waiting.set_exception(error)
                    continue
                try:
                    waiting.set_result(_recorded(answers[number]))
                except CommitFailed as refused:
                    waiting.set_exception(refused)
