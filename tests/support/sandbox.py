"""The vendors' side and ours: the sandbox as a process, and the desk, where jobs are put down without a web process."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Unpack, cast

import httpx
import msgspec

from service.deployment import rhythms
from service.jobs.connection import connect, connect_sync
from service.jobs.scripts import script_text
from service.jobs.tracker import How, Recorded, Tracker
from service.model import Job, Observation, Output, Source, Status, new_id
from service.settings import Account, Settings

from . import customers
from .deployment import accounts
from .processes import BIN, Process

#: How long a job of the sandbox takes.
SECONDS: Final = 0.3

#: What the sandbox takes from everybody.
_FIXED_TOKEN: Final = "sandbox-access-token"
_APP: Final = {"CHANJING_APP_ID": "app", "CHANJING_SECRET_KEY": "secret"}


class Sandbox:
    """A running sandbox: what its customers submit, what is ordered to go wrong, and what it has seen."""

    def __init__(self, process: Process, url: str) -> None:
        self.process = process
        self.url = url
        self.http = httpx.Client(base_url=url, trust_env=False, timeout=10)

    def submit(self, vendor: str, *faults: str) -> str:
        """Submit a job that suffers from `faults`. Returns the vendor's id of it."""
        return customers.submit(self.http, vendor, faults=",".join(faults))

    def finished(self, vendor: str, *faults: str) -> str:
        """Submit a job of which the vendor has its verdict at once."""
        return self.submit(vendor, "seconds:0", *faults)

    def order(self, vendor: str, *faults: str, count: int | None = None) -> None:
        """Let the next submissions (or, with a vendor's fault, calls) go wrong; without `count` until `clear`."""
        customers.order(self.http, *faults, vendor=vendor, count=count)

    def clear(self) -> None:
        """Let nothing go wrong any more."""
        self.http.delete("/_sandbox/faults").raise_for_status()

    def reset(self) -> None:
        self.http.post("/_sandbox/reset").raise_for_status()

    def jobs(self, vendor: str) -> list[dict[str, Any]]:
        """The vendor's jobs as it sees them, newest first."""
        found: list[dict[str, Any]] = self.http.get("/_sandbox/jobs", params={"vendor": vendor}).json()["data"]
        return found

    def job(self, vendor: str, vendor_job_id: str) -> dict[str, Any]:
        return next(job for job in self.jobs(vendor) if job["id"] == vendor_job_id)

    def calls(self, vendor: str) -> dict[str, int]:
        """How often each of the vendor's calls was made, but for submissions."""
        found: dict[str, int] = self.http.get("/_sandbox/calls").json()["data"].get(vendor, {})
        return {call: times for call, times in found.items() if call != "submit"}

    def accounts(self, *, without: tuple[str, ...] = (), minting: bool = False) -> dict[str, Account]:
        """Accounts at its vendors. `minting`: Chanjing's token has to be asked for, else it is a fixed one."""
        found = accounts(self.url, without=without)
        for slug, account in found.items():
            # No spaces: a bearer token has none.
            credentials = {name: value.replace(" ", "-") for name, value in account.credentials.items()}
            if slug == "chanjing" and credentials:
                credentials = dict(_APP) if minting else {"CHANJING_ACCESS_TOKEN": _FIXED_TOKEN}
            found[slug] = msgspec.structs.replace(account, credentials=credentials)
        return found

    def new_token(self) -> str:
        """Ask Chanjing for a token as somebody else with the same credentials would; the one before is dead."""
        names = {"app_id": _APP["CHANJING_APP_ID"], "secret_key": _APP["CHANJING_SECRET_KEY"]}
        answer = self.http.post("/chanjing/open/v1/access_token", json=names).json()
        return str(answer["data"]["access_token"])


@contextlib.contextmanager
def sandbox_process(folder: Path, *options: str) -> Iterator[Sandbox]:
    """Run the sandbox on a port of its own choice, with more `options` of its command line."""
    options = ("--port", "0", "--seconds", str(SECONDS), "--speed", "20", *options)
    with Process([BIN / "python", "-m", "sandbox", *options], log=folder / "sandbox.log") as process:
        started = process.wait_until(
            lambda: re.search(r"sandbox listening on (http://127\.0\.0\.1:\d+)", process.output()), "its address"
        )
        sandbox = Sandbox(process, started[1])
        with contextlib.closing(sandbox.http):
            yield sandbox


class Desk:
    """What the web process does with jobs, and what can be read about them: straight from the store."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.redis = connect_sync(settings)
        self._tracker = Tracker(connect(settings), settings, rhythms(settings))
        self._read = self.redis.register_script(script_text("read", settings))

    def close(self) -> None:
        self.redis.close()

    def key(self, *parts: str) -> str:
        return ":".join((self.settings.key_prefix, *parts))

    def now_ms(self) -> int:
        """By Redis' clock, which is the one that decides."""
        seconds, micros = self.redis.time()
        return int(seconds) * 1000 + int(micros) // 1000

    # -- facts ----------------------------------------------------------------------------------------------

    def record(self, observation: Observation, **how: Unpack[How]) -> Recorded:
        """Commit a fact."""
        return self._tracker.record_now(self.redis, observation, **how)

    def track(self, vendor: str, vendor_job_id: str | None = None) -> str:
        """Register a job that somebody has submitted. Returns our id."""
        job_id = new_id("job", self.now_ms())
        status = Status.QUEUED if vendor_job_id else None
        seen = Observation(source=Source.SUBMIT, status=status, vendor_job_id=vendor_job_id)
        assert self.record(seen, vendor=vendor, job_id=job_id, create=True).job_id == job_id
        return job_id

    def made(self, *urls: str, vendor: str = "lipsync_studio", vendor_job_id: str | None = None) -> str:
        """A job whose vendor has told, by callback, that its outputs are at `urls`. Returns our id."""
        job_id = self.track(vendor, vendor_job_id)
        outputs = tuple(Output(url=url) for url in urls)
        seen = Observation(source=Source.CALLBACK, status=Status.SUCCEEDED, outputs=outputs)
        assert self.record(seen, vendor=vendor, job_id=job_id).outcome == "apply"
        return job_id

    # -- what is known --------------------------------------------------------------------------------------

    def job(self, job_id: str) -> Job:
        found: list[bytes] = self._read(args=["get", job_id])
        return msgspec.json.decode(found[0], type=Job)

    def timeline(self, job_id: str) -> list[dict[str, Any]]:
        return [json.loads(entry) for entry in self.redis.lrange(self.key("timeline", job_id), 0, -1)]

    def announced(self, job_id: str | None = None) -> list[str]:
        """The types of the events so far, of one job or of all, in order."""
        entries = cast("list[tuple[bytes, dict[bytes, bytes]]]", self.redis.xrange(self.key("stream")))
        events = (json.loads(fields[b"event"]) for _, fields in entries)
        return [event["type"] for event in events if job_id in (None, event["data"]["id"])]

    # -- what is due ----------------------------------------------------------------------------------------

    def due_in(self, job_id: str, *what: str) -> float | None:
        """Seconds until a job is due in `tasks`, `deadlines` or `polls`, {vendor}; None where it is not in there."""
        score = self.redis.zscore(self.key(*what), job_id)
        return None if score is None else (float(score) - self.now_ms()) / 1000

    def make_due(self, *what: str) -> None:
        """Let all that waits in `tasks`, `deadlines` or `polls`, {vendor} be due now, whoever holds it."""
        name = self.key(*what)
        members = cast("list[bytes]", self.redis.zrange(name, 0, -1))
        if members:
            self.redis.zadd(name, dict.fromkeys(members, 0), xx=True)

    def end_leases(self) -> None:
        """Let every lease be over, as if its time had passed."""
        for name in self.redis.scan_iter(self.key("lease", "*"), count=1000):
            self.redis.delete(name)


@contextlib.contextmanager
def desk_of(settings: Settings) -> Iterator[Desk]:
    """A `Desk` for the length of a block."""
    with contextlib.closing(Desk(settings)) as desk:
        yield desk
