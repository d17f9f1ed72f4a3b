"""A whole deployment as a platform runs it, and the hands that hurt it.

Valkey, the sandbox, an S3 server, and the processes of the Procfile by their own lines: started, killed, started again.
"""

from __future__ import annotations

import contextlib
import random
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Final, Self

import httpx
import msgspec

from service.settings import load
from service.vendors import VENDORS
from tests.chaos.crowd import Crowd
from tests.chaos.ledger import Ledger, listening_to
from tests.chaos.proxy import Proxy, proxy_to
from tests.chaos.store import Disk, Valkey, small_disk
from tests.chaos.subscriber import Subscriber, subscriber_of
from tests.support.processes import ROOT, Process, eventually, free_port, listening
from tests.support.sandbox import Desk, desk_of, sandbox_process
from tests.support.servers import s3_server

API_KEY: Final = "key-of-the-fault-suite"
SECRET: Final = "signs-the-callback-urls-of-the-fault-suite"
#: What a process may end with that was told to stop: by itself, or by the signal it handled and then raised again.
GOOD_ENDS: Final = (0, -signal.SIGTERM, 128 + signal.SIGTERM)
#: Seconds from SIGTERM to SIGKILL.
PLATFORM_PATIENCE: Final = 30.0

#: The vendors of whose jobs webhooks are sent. All of them would take a machine for themselves.
SUBSCRIBED: Final = ["apimodels", "chanjing"]

#: RQ's own worker on the same queues.
RQ_WORKER: Final = (
    "rq worker --worker-class rq.worker.SimpleWorker --serializer rq.serializers.JSONSerializer"
    " --url $REDIS_URL callsheet-submit callsheet-archive callsheet-notify"
)


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What a scenario needs."""

    workers: int = 2
    pollers: int = 1
    concurrency: int = 8  #: of each worker
    redis_proxy: bool = False
    s3_proxy: bool = False
    small_disk: bool = False
    clock: bool = False  #: Redis' time can be moved
    subscriber: bool = True  #: somebody is sent webhooks
    settings: dict[str, str] = {}
    inside: dict[str, str] = {}  #: role → words for inside/sitecustomize.py


class Stage:
    """Everything that one scenario plays on."""

    def __init__(self, folder: Path, plan: Plan, *, seed: int, without: str = "", grace: float) -> None:
        """`grace` is in seconds: how long a callback is waited for."""
        self.folder = folder
        self.plan = plan
        self.chance = random.Random(seed)
        self.ledger = Ledger()
        self.url = f"http://127.0.0.1:{free_port()}"
        self.names = [
            "web",
            *(f"worker-{number}" for number in range(plan.workers)),
            *(f"poller-{number}" for number in range(plan.pollers)),
        ]
        self.restarts = 0
        self.trouble: list[str] = []  #: what no process should have done
        self.sources: dict[str, Path] = {}  #: processes that run other code than this checkout's
        self.inside = dict(plan.inside)
        self.endpoint = ""  #: the subscriber's
        self._seed = seed
        self._without = without
        self._grace = grace
        self._running: dict[str, Process] = {}
        self._leaving: dict[Process, float] = {}  #: told to stop, and by when
        self._ending = ExitStack()
        self.proxies: dict[str, Proxy] = {}

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._open(stack)
            self._ending = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.close()

    def _open(self, stack: ExitStack) -> None:
        mounted = self.plan.small_disk and stack.enter_context(small_disk(self.folder / "disk"))
        data = self.folder / ("disk/valkey" if self.plan.small_disk else "valkey")
        self.valkey = Valkey(data, clock=self.plan.clock)
        self.disk = Disk(self.folder / "disk", self.valkey, mounted=mounted)
        stack.callback(self.valkey.stop)
        self.valkey.start()
        options = ("--speed", "1", "--chanjing-submits", "1000/1")
        self.sandbox = stack.enter_context(sandbox_process(self.folder, *options))
        self.sandbox.http.timeout = 120
        self.s3 = stack.enter_context(s3_server(self.folder / "s3"))
        self.environment = self._environment(stack)
        settings = load(VENDORS.values(), self.environment | {"REDIS_URL": self.valkey.url})
        self.prefix = settings.key_prefix
        stack.enter_context(listening_to(self.valkey.url, self.prefix, self.ledger))
        self.desk: Desk = stack.enter_context(desk_of(settings))
        self.crowd = Crowd(self.url, self.sandbox.url, API_KEY, self.ledger)
        stack.callback(self.kill_all)
        self.start_all()
        if self.plan.subscriber:
            self._subscribe(stack.enter_context(subscriber_of(self.ledger)))

    def _subscribe(self, subscriber: Subscriber) -> None:
        """Let the service send events to an endpoint of the suite's."""
        headers = {"Authorization": f"Bearer {API_KEY}"}
        with httpx.Client(base_url=self.url, headers=headers, trust_env=False, timeout=30) as api:
            answer = api.post("/v1/endpoints", json={"url": subscriber.url, "vendors": SUBSCRIBED})
        told = answer.raise_for_status().json()
        self.endpoint, subscriber.secret = told["id"], told["secret"]
        self.ledger.subscribed = frozenset(SUBSCRIBED)

    def _environment(self, stack: ExitStack) -> dict[str, str]:
        redis_port, endpoint = self.valkey.port, self.s3.endpoint
        if self.plan.redis_proxy:
            self.proxies["redis"] = stack.enter_context(proxy_to(redis_port, self.chance))
            redis_port = self.proxies["redis"].port
        if self.plan.s3_proxy:
            self.proxies["s3"] = stack.enter_context(proxy_to(int(endpoint.rpartition(":")[2]), self.chance))
            endpoint = f"http://127.0.0.1:{self.proxies['s3'].port}"
        limits = {
            f"{slug.upper()}_{kind}_LIMIT": "1000/1"
            for slug in VENDORS
            for kind in ("READ", "SUBMIT")
            if (slug, kind) != ("chanjing", "READ")
        }
        return {
            "HOST": "127.0.0.1",
            "PORT": self.url.rpartition(":")[2],
            "PUBLIC_URL": self.url,
            "REDIS_URL": f"redis://127.0.0.1:{redis_port}/0",
            "STORAGE_URL": self.s3.storage_url("outputs"),
            **self.s3.environment,
            "AWS_ENDPOINT_URL": endpoint,
            "SECRET_KEYS": SECRET,
            "API_KEYS": f"suite:{API_KEY}",
            "ALLOW_PRIVATE_NETWORKS": "1",
            "POLL_GRACE_SECONDS": str(self._grace),
            "WORKER_CONCURRENCY": str(self.plan.concurrency),
            "LOG_FORMAT": "json",
            **{f"{slug.upper()}_BASE_URL": f"{self.sandbox.url}/{slug}" for slug in VENDORS},
            "LIPSYNC_STUDIO_API_KEY": "sk_suite",
            "KITTA_API_TOKEN": "token",
            "CHANJING_ACCESS_TOKEN": "sandbox-access-token",
            "APIMODELS_API_KEY": "key",
            **limits,
            **self.plan.settings,
        }

    @property
    def running(self) -> dict[str, Process]:
        """By name: web, worker-0, …"""
        return dict(self._running)

    # -- processes -------------------------------------------------------------------------------------------

    def start_all(self) -> None:
        for name in self.names:
            self.start(name)
        self.wait_for_web()

    def start(self, name: str) -> None:
        role = name.partition("-")[0]
        home = self.sources.get(name, ROOT)
        command = RQ_WORKER if role == "worker" and self._without == "worker" else _procfile(home)[role]
        words = [self.inside.get(name) or self.inside.get(role, "")]
        if self._without not in ("", "worker"):
            words.append(f"without:{self._without}")
        self._seed += 1
        env = {
            **self.environment,
            "CHAOS": " ".join(words),
            "CHAOS_SEED": str(self._seed),
            "PYTHONPATH": f"{ROOT / 'tests/chaos/inside'}:{home}",
        }
        log = self.folder / f"{name}.log"
        self._running[name] = Process(["/bin/sh", "-c", f"exec {command}"], log=log, env=env, cwd=home)

    def wait_for_web(self) -> None:
        port = int(self.environment["PORT"])

        def there() -> bool:
            self.revive()
            return listening(port)

        eventually(there, "the web process", timeout=60)

    def restart(self, name: str, number: signal.Signals) -> None:
        """End a process and start another in its place, as a platform does."""
        process = self._running[name]
        self.restarts += 1
        if number == signal.SIGKILL:
            process.kill()
        else:
            self.tell_to_stop(name)
            if name == "web":  # its port is taken while it is there
                self.see_them_off()
        self.start(name)

    def tell_to_stop(self, name: str) -> None:
        process = self._running.pop(name)
        if process.exit_code is None:
            process.send(signal.SIGTERM)
        self._leaving[process] = time.monotonic() + PLATFORM_PATIENCE

    def see_them_off(self) -> None:
        """Wait for those that were told to stop; who has not by then is killed, and noted."""
        for process, deadline in self._leaving.items():
            with contextlib.suppress(AssertionError):
                process.wait(timeout=max(0.1, deadline - time.monotonic()))
            if process.exit_code not in GOOD_ENDS:
                how = "it had to be killed" if process.exit_code is None else f"it ended with {process.exit_code}"
                self.trouble.append(f"{process.log.stem} did not stop as it was told to: {how}")
            process.kill()
        self._leaving.clear()

    @contextlib.contextmanager
    def held(self, role: str) -> Iterator[None]:
        """Let the processes of a role stand still for the length of a block."""
        held = [process for name, process in self._running.items() if name.startswith(role)]
        for process in held:
            process.send(signal.SIGSTOP)
        try:
            yield
        finally:
            for process in held:
                process.send(signal.SIGCONT)

    def revive(self) -> None:
        """Start again what has died. Only the suite's own SIGKILL is a good reason to."""
        for name, process in list(self._running.items()):
            if (code := process.exit_code) is not None:
                if code != -signal.SIGKILL:
                    self.trouble.append(f"{name} ended by itself with {code}: {process.output()[-300:]}")
                process.kill()
                self.restarts += 1
                self.start(name)

    def kill_all(self) -> None:
        for process in [*self._running.values(), *self._leaving]:
            process.kill()
        self._running.clear()
        self._leaving.clear()

    def logs(self) -> Mapping[str, str]:
        return {name: (self.folder / f"{name}.log").read_text(errors="replace") for name in self.names}

    # -- time ------------------------------------------------------------------------------------------------

    def let_pass(self, seconds: int) -> None:
        """Move the clock that decides for every process."""
        self.ledger.ahead += seconds
        self.valkey.move(self.ledger.ahead)

    def let_a_minute_pass(self) -> None:
        """As if the patience with running tasks were over, every lease, and the claims of pollers that have died."""
        self.desk.make_due("tasks")
        self.desk.end_leases()
        for vendor in VENDORS:
            self.desk.make_due("polls", vendor)
        if self.endpoint:
            self.desk.make_due("deliveries", self.endpoint)
            self.desk.redis.hdel(self.desk.key("state", self.endpoint), "run", "until")


def _procfile(home: Path) -> dict[str, str]:
    lines = (line.partition(":") for line in (home / "Procfile").read_text().splitlines())
    return {name: command.strip() for name, _, command in lines}
