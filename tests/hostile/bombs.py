"""Links whose servers mean harm: every attempt ends in bounded time and memory, and leaves nothing half in storage."""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from service.model import Archive
from service.settings import Settings
from tests.support import files
from tests.support.deployment import environment, settings
from tests.support.files import Answer, Wire
from tests.support.processes import Process, eventually
from tests.support.sandbox import Desk, desk_of
from tests.support.servers import s3_server, valkey_server

from .launcher import command
from .measure import megabytes, peak, resident
from .stage import Result, Stage

LIMIT: Final = 48 * 2**20  #: bytes of an output
#: The product's own limits, shortened; what ends last has the sum of them, and some air for a busy machine.
SECONDS: Final[Mapping[str, float]] = {
    "workers.download.MAX_SECONDS": 8.0,
    "workers.download.MIN_RATE_AFTER": 2.0,
    "workers.download.MAX_HEAD_SECONDS": 3.0,
    "workers.outbound.READ_SECONDS": 4.0,
}
ENDS_WITHIN: Final = 45.0
MEMORY: Final = 160 * 2**20

_ZEROS: Final = bytes(2**16)
_FILM: Final = b"\0\0\0\x18ftypmp42" + bytes(100_000)


# -- what the servers do ---------------------------------------------------------------------------------------


def endlessly(head: bytes, piece: bytes, *, every: float | None = None) -> Answer:
    """The piece again and again, for as long as somebody takes it."""

    def answer(wire: Wire) -> None:
        wire.send(head)
        while every is None or wire.pause(every):
            wire.send(piece)

    return answer


def _answer(*headers: str, status: str = "200 OK") -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", *headers, "", ""]).encode()


_TYPE: Final = "content-type: video/mp4"
_CHUNKED: Final = _answer(_TYPE, "transfer-encoding: chunked")
_OPEN: Final = _answer(_TYPE)
_BOMB: Final = gzip.compress(bytes(200 * 2**20), 9)


def bombs() -> dict[str, Answer]:
    return {
        "a drip without end": endlessly(_OPEN, b"\0", every=0.05),
        "a drip without end, in chunks": endlessly(_CHUNKED, b"1\r\n\0\r\n", every=0.05),
        "a body without end": endlessly(_OPEN, _ZEROS),
        "chunks without end": files.endless(),
        "a byte at a time, just fast enough": endlessly(_OPEN, b"\0" * 20, every=0.01),
        "a body that announces too much": files.large(2**20, announced=LIMIT * 2),
        "a body that breaks off": files.cut(_FILM, 50_000),
        "a body that is reset": files.cut(_FILM, 50_000, by_reset=True),
        "chunks that break off": files.chunked(_FILM, ended=False),
        "a body that stalls": files.stall(_FILM, 50_000),
        "a body that announces too little": files.raw(_answer(_TYPE, "content-length: 50000") + _FILM),
        "a length that is none": files.raw(_answer(_TYPE, "content-length: many") + _FILM),
        "a length below nothing": files.raw(_answer(_TYPE, "content-length: -5") + _FILM),
        "two lengths": files.raw(_answer(_TYPE, "content-length: 10", "content-length: 20") + _FILM),
        "a length beyond reason": files.raw(_answer(_TYPE, f"content-length: {'9' * 400}") + _FILM),
        "a chunk below nothing": files.raw(_CHUNKED + b"-5\r\n" + _FILM),
        "a chunk beyond reason": files.raw(_CHUNKED + b"f" * 400 + b"\r\n" + _FILM),
        "a chunk's extension without end": endlessly(_CHUNKED + b"5;x=", b"y" * 2**16),
        "trailers without end": endlessly(_CHUNKED + b"5\r\nabcde\r\n0\r\n", b"x: y\r\n" * 1000),
        "gzip": files.whole(_BOMB, content_encoding="gzip"),
        "brotli": files.whole(_BOMB, content_encoding="br"),
        "deflate and gzip": files.whole(_BOMB, content_encoding="deflate, gzip"),
        "a coding for the way": files.raw(
            _answer(_TYPE, "transfer-encoding: gzip, chunked") + b"5\r\nabcde\r\n0\r\n\r\n"
        ),
        "no answer": files.hang,
        "a head that drips": files.drip_head(),
        "headers without end": endlessly(b"HTTP/1.1 200 OK\r\n", b"x-header: y\r\n" * 1000),
        "a header without end": endlessly(b"HTTP/1.1 200 OK\r\nx: ", b"y" * 2**16),
        "a status without end": endlessly(b"HTTP/1.1 200 ", b"y" * 2**16),
        "cookies without end": endlessly(b"HTTP/1.1 200 OK\r\n", b"set-cookie: a=b\r\n" * 1000),
        "interim answers without end": endlessly(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000),
        "hints without end": endlessly(b"", b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n" * 1000),
        "an upgrade": files.raw(
            _answer("upgrade: h2c", "connection: upgrade", status="101 Switching Protocols") + _FILM
        ),
        "redirects without end": files.redirect("?"),
        "a redirect that drips": endlessly(_answer("location: ?", status="302 Found")[:-2], b"x: y\r\n", every=0.02),
        "a redirect to a megabyte": files.redirect("/" + "a" * 2**20),
        "a redirect to nowhere": files.redirect("http://[::"),
        "HTML": files.whole(b"<!DOCTYPE html><h1>Sign in</h1>", media_type="text/html"),
        "HTML that calls itself a film": files.whole(b" \n<HTML><h1>Sign in</h1>"),
        "an error in JSON": files.whole(b'{"error": "expired"}', media_type="application/json"),
        "nothing": files.whole(b""),
        "nothing in chunks": files.chunked(b""),
        "a part": files.whole(_FILM, status=206),
        "no content": files.raw(_answer(status="204 No Content")),
        "not modified": files.raw(_answer(status="304 Not Modified")),
        "gone": files.status(410),
        "no HTTP": files.raw(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500)),
        "HTTP/0.9": files.raw(_FILM),
        "a version that is none": files.raw(b"HTTP/9.9 200 OK\r\ncontent-length: 5\r\n\r\nabcde"),
        "a hang-up": files.raw(b""),
    }


# -- and what becomes of it --------------------------------------------------------------------------------------


class Place:
    """A deployment with a storage of its own, and its worker."""

    def __init__(self, name: str, desk: Desk, folder: Path, worker: Process) -> None:
        self.name = name
        self.folder = folder  #: where its stored files lie
        self._desk = desk
        self._pid = worker.pid
        worker.wait_until(lambda: "worker started" in worker.output(), "its start")
        self._before = resident(worker.pid)
        self._jobs: dict[str, str] = {}

    def begin(self, links: Mapping[str, str]) -> None:
        self._jobs = {name: self._desk.made(url) for name, url in links.items()}

    def left(self) -> list[str]:
        """What was not tried to its end."""
        return [name for name, job_id in self._jobs.items() if len(self._desk.timeline(job_id)) <= 2]

    def tell(self, honest: set[str], result: Result) -> None:
        left = self.left()
        took = {name: self._seconds(job_id) for name, job_id in self._jobs.items() if name not in left}
        last = max(took, key=lambda name: took[name])
        result.note(f"{self.name}: {len(took)} links, each tried in {took[last]:.1f} s at most ({last})")
        result.note(f"{self.name}: not over after {ENDS_WITHIN:.0f} s: {', '.join(left) or 'none'}", fine=not left)
        grown = peak(self._pid) - self._before
        words = (
            f"{self.name}: memory of the worker {megabytes(self._before)} → {megabytes(self._before + grown)} at most"
        )
        result.note(words, fine=grown < MEMORY)
        jobs = {name: self._desk.job(job_id) for name, job_id in self._jobs.items()}
        stored = {name for name, job in jobs.items() if job.archive is Archive.STORED}
        keys = {output.stored.key for job in jobs.values() for output in job.outputs if output.stored}
        found = {path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file()}
        result.note(f"{self.name}: stored {', '.join(sorted(stored))}", fine=stored == honest)
        parts = sorted(found ^ keys)
        result.note(f"{self.name}: anything else in storage: {len(parts)}", fine=not parts)
        result.faults += parts[:5]

    def _seconds(self, job_id: str) -> float:
        times = [datetime.fromisoformat(entry["at"]) for entry in self._desk.timeline(job_id)]
        return (times[2] - times[1]).total_seconds()


def run(stage: Stage) -> Result:
    result, chosen = Result(), bombs()
    if stage.short:
        chosen = {name: answer for name, answer in chosen.items() if name in HASTY}
    honest = {
        "a film": files.whole(_FILM),
        "a film in chunks": files.chunked(_FILM),
    }
    (stage.folder / "s3").mkdir()
    with ExitStack() as stack:
        valkey = stack.enter_context(valkey_server(stage.folder))
        server = stack.enter_context(files.file_server())
        s3 = stack.enter_context(s3_server(stage.folder / "s3"))
        common: dict[str, Any] = {"max_output_bytes": LIMIT, "worker_concurrency": 100}
        local = settings(valkey.url, key_prefix="local", storage_url=(stage.folder / "files").as_uri(), **common)
        bucket = settings(valkey.url, key_prefix="bucket", storage_url=s3.storage_url("outputs"), **common)
        places = [
            _place("files", local, stage.folder / "files", {}, stage, stack),
            _place("S3", bucket, s3.folder / "outputs", s3.environment, stage, stack),
        ]
        links = {
            name: server.serve(f"/{n}.mp4", answer) for n, (name, answer) in enumerate({**chosen, **honest}.items())
        }
        stage.say(f"{len(chosen)} links that mean harm, to files and to S3")
        for place in places:
            place.begin(links)
        with suppress(AssertionError):  # what has not ended is told
            eventually(lambda: not any(place.left() for place in places), timeout=ENDS_WITHIN)
        for place in places:
            place.tell(set(honest), result)
    return result


def _place(name: str, made: Settings, folder: Path, env: Mapping[str, str], stage: Stage, stack: ExitStack) -> Place:
    limits = {limit: seconds / stage.of(1, 4) for limit, seconds in SECONDS.items()}
    log = stage.folder / f"worker-{name}.log"
    worker = Process(command("workers.main", limits), log=log, env={**environment(made), **env})
    return Place(name, stack.enter_context(desk_of(made)), folder, stack.enter_context(worker))


#: Those of the short form.
HASTY: Final = frozenset(
    (
        *("a drip without end", "a body without end", "a body that breaks off", "a body that stalls", "gzip"),
        *("headers without end", "trailers without end", "interim answers without end", "redirects without end"),
        *("a head that drips", "HTML", "nothing", "a chunk beyond reason"),
    )
)
