"""What one process stores by, what lies in the storage, and what became of the job."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from msgspec.structs import replace

from service.deployment import opened
from service.jobs import tasks
from service.model import Archive, Status
from service.settings import Settings
from tests.support.files import MP4, Files, gated
from tests.support.processes import eventually
from tests.support.sandbox import Desk
from tests.support.servers import S3
from workers import outbound
from workers.archive import Archivist

FILM = MP4 + bytes(range(256)) * 1024
HASH = hashlib.sha256(FILM).hexdigest()

#: Longer than all buffers together, so that something has been uploaded before it breaks.
LONG = b"\x07" * (20 * 2**20)

#: Everything that lies in the storage by now.
Lying = Callable[[], dict[str, bytes]]
#: A folder is the storage of tests that do not say otherwise.
both_storages = pytest.mark.parametrize("settings", ["file", "s3"], indirect=True)
in_a_bucket = pytest.mark.parametrize("settings", ["s3"], indirect=True)


@asynccontextmanager
async def worker(
    desk: Desk, *, patience: float = 20, interrupted: asyncio.Event | None = None, **overrides: Any
) -> AsyncIterator[Archivist]:
    """What one process stores by, of settings that may be others. `patience`: seconds that it waits for a byte."""
    settings = replace(desk.settings, **overrides)
    async with (
        opened(settings) as deployment,
        outbound.client(allow_private_networks=settings.allow_private_networks) as http,
    ):
        http.timeout = patience
        yield Archivist(deployment, http, interrupted or asyncio.Event())


async def store(desk: Desk, job_id: str, **overrides: Any) -> str:
    async with worker(desk, **overrides) as archivist:
        return await archivist.store(job_id)


def stored_in(settings: Settings, s3: S3 | None = None) -> dict[str, bytes]:
    """Everything that lies in the storage, by key; what is unfinished and hidden too."""
    url = urlsplit(settings.storage_url)
    if url.scheme == "file":
        folder = Path(unquote(url.path))
    else:
        assert s3 is not None
        folder = s3.folder / url.path.strip("/")
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def due_in(desk: Desk, job_id: str) -> float | None:
    """Seconds until the task that stores a job's outputs is due."""
    return desk.due_in(f"archive-{job_id}", "tasks")


def untouched(desk: Desk, job_id: str, words: str, attempt: int = 1) -> None:
    """Nothing came of an attempt but a note and another one that is due."""
    job = desk.job(job_id)
    assert (job.status, job.archive, job.stored_at) == (Status.SUCCEEDED, Archive.WAITING, None)
    assert all(output.stored is None for output in job.outputs)
    note = desk.timeline(job_id)[-1]
    assert (note["source"], note["problem"], note["applied"]) == ("archive", "not_stored", False)
    delay = tasks.ARCHIVE_RETRIES[attempt - 1]
    assert note["detail"].startswith(f"attempt {attempt}: ")
    assert note["detail"].endswith(f"; next in {delay} s")
    assert words in note["detail"]
    again_in = due_in(desk, job_id)
    assert again_in is not None
    assert delay - 5 < again_in <= delay
    assert desk.announced(job_id)[-1] == "job.succeeded"


async def under_way(desk: Desk, files: Files, path: str) -> tuple[str, asyncio.Task[str], threading.Event]:
    """A job whose output is being stored, from `path`: its id, the run, and what lets the file come."""
    gate = threading.Event()
    job_id = desk.made(files.serve(path, gated(FILM, 1000, gate)))
    run = asyncio.create_task(store(desk, job_id))
    await asked_for(files, path)
    return job_id, run, gate


async def asked_for(files: Files, path: str, times: int = 1) -> None:
    """Wait until a path has been asked for so often."""
    await asyncio.to_thread(eventually, lambda: len(files.requests(path)) >= times, f"request {times} for {path}")
