"""What a scenario is, and what it is handed: the stage, how much of everything, and the time it has."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Any, Final, Self, TypeVar

import httpx
import msgspec

from service.vendors import VENDORS
from tests.chaos.orders import nonce_in
from tests.chaos.stage import API_KEY, Plan, Stage

#: An operator who is told of a job that was sent and not answered takes so many seconds to look.
OPERATOR_SECONDS: Final = 30.0
#: So many minutes without any event are enough, where they pass by a push to the clock.
_MINUTES: Final = 6
#: Seconds without any event before that.
_QUIET: Final = 2.0
#: Seconds after the last event in which an event too many would come.
_AFTERMATH: Final = 1.5

T = TypeVar("T")

#: Is told from time to time how far it has come.
Tell = Callable[[str], None]


class Stopped(Exception):
    """Somebody wants it to end now."""


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of fault."""

    name: str
    jobs: int  #: in the long form
    play: Callable[[Cast], None]
    plan: Plan = Plan()
    within: float = 180.0  #: seconds for which nothing may stand still, after the last fault
    fetch_once: bool = False  #: nobody dies, so no file has to be fetched again


class Cast:
    """One scenario while it is played."""

    def __init__(
        self, stage: Stage, scenario: Scenario, scale: float, tell: Tell, stop: threading.Event, *, hasty: bool
    ) -> None:
        self.stage = stage
        self.jobs = max(8, int(scenario.jobs * scale))
        self.hasty = hasty  #: it has no time to wait for clocks
        self.over_at = 0.0  #: when an outage ended; 0 where there was none
        self.figures: dict[str, Any] = {}
        self.findings: list[str] = []
        self.looks: list[Callable[[Cast], None]] = []  #: at the outcome, once everything has come right
        self._until_settled = ExitStack()
        self._scenario = scenario
        self._scale = scale
        self._say = tell
        self._stop = stop
        self._began = time.monotonic()
        self._told_at = 0.0
        self._seen: dict[str, float] = {}  #: when the operator first saw a job that nobody has answered for

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._until_settled.close()

    def times(self, count: int) -> int:
        """So many in the long form, fewer in the short one."""
        return max(2, int(count * self._scale))

    def seconds(self, long: float, short: float) -> float:
        return short if self.hasty else long

    def use(self, what: AbstractContextManager[T]) -> T:
        """Something that lasts until everything has come right."""
        return self._until_settled.enter_context(what)

    def tell(self) -> None:
        """Say how far it has come, once a second."""
        now, ledger = time.monotonic(), self.stage.ledger
        if now - self._told_at > 1:
            self._told_at = now
            known, left = len(ledger.by_job), len(ledger.open())
            ended = f"{known - left:,} of {known:,} jobs have ended"
            self._say(f"{self._scenario.name}: {now - self._began:.0f} s, {ended}, {self.stage.restarts} restarts")

    def wait(self, seconds: float) -> None:
        """Let the faults have their effect, and the dead be replaced."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if self._stop.is_set():
                raise Stopped
            self.stage.revive()
            self.tell()
            time.sleep(min(0.2, left))

    def while_busy(self, seconds: float = 600.0) -> bool:
        """Whether there is still something to hurt: orders on their way, or jobs that have not ended."""
        in_time = time.monotonic() - self._began < seconds
        return in_time and (self.stage.crowd.busy or bool(self.stage.ledger.open()))

    def acknowledged(self) -> None:
        """Wait until all that was asked for is acknowledged, or given up."""
        while self.stage.crowd.busy:
            self.wait(0.5)

    def ended(self, group: str) -> None:
        """Wait until a group's jobs have ended, as far as they do in time."""
        deadline = time.monotonic() + self._scenario.within
        while any(entry.order.group == group for entry in self.stage.ledger.open()) and time.monotonic() < deadline:
            self.wait(0.5)

    def over(self) -> None:
        """The outage ends now."""
        self.over_at = time.time()

    # -- coming right ----------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Wait until every job has ended, or should have."""
        stage, known, minutes = self.stage, 0, 0
        deadline = quiet_until = time.monotonic() + self._scenario.within
        while (left := len(stage.ledger.open())) and time.monotonic() < deadline and minutes < _MINUTES:
            self.wait(0.5)
            self._operate()
            if left != known:  # a slow machine is no fault: what counts is that nothing stands still
                known, minutes, quiet_until = left, 0, time.monotonic() + _QUIET
                deadline = time.monotonic() + self._scenario.within
            elif self.hasty and time.monotonic() > quiet_until:
                stage.let_a_minute_pass()
                minutes, quiet_until = minutes + 1, time.monotonic() + _QUIET
        stage.see_them_off()
        self.wait(_AFTERMATH)
        self._until_settled.close()

    def _operate(self) -> None:
        """What an operator does: find out, and say, what became of jobs that were sent and not answered."""
        headers, patience = {"Authorization": f"Bearer {API_KEY}"}, self.seconds(OPERATOR_SECONDS, 2.0)
        try:
            with httpx.Client(base_url=self.stage.url, headers=headers, trust_env=False, timeout=10) as api:
                answer = api.get("/v1/jobs", params={"status": "unconfirmed", "limit": "100"}).raise_for_status()
                now = time.monotonic()
                self._seen = {row["id"]: self._seen.get(row["id"], now) for row in answer.json()["data"]}
                due = [job_id for job_id, since in self._seen.items() if now - since > patience]
                taken = self._taken() if due else {}
                for job_id in due:
                    known = taken.get(job_id)
                    body = {"action": "adopt", "vendor_job_id": known} if known else {"action": "resend"}
                    if api.post(f"/v1/jobs/{job_id}/resolve", json=body).is_success:
                        self.stage.ledger.operated.add(job_id)
        except httpx.HTTPError:
            return  # tried again soon

    def _taken(self) -> dict[str, str]:
        """Our id → the vendor's, by what stands in the vendors' own records."""
        nonces = {entry.order.nonce: job_id for job_id, entry in self.stage.ledger.by_job.items()}
        made = [(job["id"], str(job["request"])) for vendor in VENDORS for job in self.stage.sandbox.jobs(vendor)]
        return {nonces[nonce]: vendor_job_id for vendor_job_id, asked in made if (nonce := nonce_in(asked)) in nonces}
