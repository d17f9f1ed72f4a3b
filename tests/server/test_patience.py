"""The web process against senders that do not get on: cut off in time, with a reason where none was given, at no
cost to anybody else. Real sockets; the deadlines are the product's own, shortened.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import httpx
import pytest
from uvicorn.config import STARTUP_FAILURE

from tests.hostile.hasty import AUTHORIZED, DEADLINES, LIVE, LONG, callback, drip, head, start
from tests.hostile.launcher import command
from tests.hostile.wire import Wire, request
from tests.support.processes import Process, eventually, free_port, listening
from tests.support.web import CREDENTIALS, Web, environment_of, start_web, web_process

LENGTH: Final = 16 * 2**20


# -- who does not get on ----------------------------------------------------------------------------------


def test_who_says_nothing_is_cut_off(port: int) -> None:
    with Wire(port) as wire:
        answer = wire.answer(LONG)
        assert answer
        assert (answer.status, wire.ended(LONG)) == (408, True)


HALF_HEADS: Final = {
    "a letter": b"G",
    "a line": b"GET /healthz HTTP/1.1\r\n",
    "half a header": b"GET /healthz HTTP/1.1\r\nhost: x\r\nx-half",
    "all but the last line": b"GET /healthz HTTP/1.1\r\nhost: x\r\n",
    "only line ends": b"\r\n\r\n",
}


@pytest.mark.parametrize("half", HALF_HEADS.values(), ids=HALF_HEADS)
def test_who_sends_half_a_head_is_cut_off(port: int, half: bytes) -> None:
    with Wire(port) as wire:
        wire.send(half)
        answer = wire.answer(LONG)
        assert answer
        assert (answer.status, wire.ended(LONG)) == (408, True)


def test_a_head_that_drips_is_cut_off(port: int) -> None:
    with Wire(port) as wire:
        wire.send(b"GET /healthz HTTP/1.1\r\n")
        assert drip(wire, b"x: y\r\n", 0.1) < LONG
        assert wire.ended(LONG)


def test_line_ends_after_a_request_keep_no_connection(port: int) -> None:
    """They are no request; but uvicorn's patience with an idle connection ends with the first of them."""
    with Wire(port) as wire:
        wire.send(LIVE)
        assert wire.answer()
        assert drip(wire, b"\r\n", 0.3) < LONG
        assert wire.ended(LONG)


@pytest.mark.parametrize("every", [0.05, None], ids=["drips", "stops"])
def test_a_body_that_is_too_slow_is_cut_off_and_nothing(web: Web, every: float | None) -> None:
    path, body = callback(web)
    with Wire(web.port) as wire:
        wire.send(head(path, len(body)) + body[:5])
        if every is not None:
            assert drip(wire, b" ", every) < LONG
        answer = wire.answer(LONG)
        assert answer
        assert (answer.status, wire.ended(LONG)) == (408, True)
    [job] = web.api.get("/v1/jobs").json()["data"]
    assert job["status"] == "queued"
    assert web.letters() == []
    assert "Traceback" not in web.process.output()


def test_a_body_that_is_fast_enough_and_too_long_is_cut_off(web: Web) -> None:
    path, _ = callback(web)
    with Wire(web.port) as wire:
        wire.send(head(path, 10**8))
        seconds = drip(wire, b" " * 1000, 0.1)
        assert 3 < seconds < LONG
        answer = wire.answer(LONG)
        assert answer
        assert answer.status == 408


@pytest.mark.parametrize("connection", ["keep-alive", "close"])
def test_who_does_not_read_his_answer_is_cut_off(web: Web, connection: str) -> None:
    """Also where the connection is to be closed: that waits for what it still has to send."""
    with Wire(web.port, receive_buffer=4096) as wire:
        wire.send(request("GET", long_answer(web), AUTHORIZED, f"connection: {connection}"))
        assert wire.reset(LONG)
    assert web.http.get("/healthz").status_code == 200


def long_answer(web: Web) -> str:
    """The path of an answer that fits no buffer."""
    job = web.track("apimodels")
    web.redis.rpush(web.key("timeline", job["id"]), *[b'"%b"' % (b"a" * (LENGTH // 100))] * 100)
    return f"/v1/jobs/{job['id']}/timeline"


# -- who is honest ------------------------------------------------------------------------------------------


def test_a_connection_is_used_again(port: int) -> None:
    with Wire(port) as wire:
        for pause in (0, 0, 2.5, 0):  # more than twice as long as a head may take
            assert not wire.listen(pause)
            wire.send(LIVE)
            answer = wire.answer()
            assert answer
            assert answer.status == 200


def test_an_upload_that_is_just_fast_enough_is_taken(web: Web) -> None:
    path, body = callback(web)
    length, first = 7000, 3500  # what is ahead is the time that this machine may have something else to do
    with Wire(web.port) as wire:
        wire.send(head(path, length) + body.ljust(first))
        began, sent = time.monotonic(), first
        while sent < length:
            due = min(length, first + int(1100 * (time.monotonic() - began)))
            sent += wire.send(b" " * (due - sent))
            assert sent == length or not wire.listen(0.05)
        answer = wire.answer(LONG)
        assert answer
        assert (answer.status, answer.body) == (200, b'{"received":true}')
    assert time.monotonic() - began > 2 * DEADLINES["service.server.MIN_RATE_AFTER"]


def test_a_reader_who_is_only_slow_gets_his_whole_answer(web: Web) -> None:
    """Buffers on the way are so large that for a while none of it seems to be taken."""
    with Wire(web.port, receive_buffer=2**18) as wire:
        wire.send(request("GET", long_answer(web), AUTHORIZED))
        wire.read_slowly(500_000, 2.5 * DEADLINES["service.server.STALLED_SECONDS"])
        answer = wire.answer(LONG)
        assert answer
        assert len(answer.body) > LENGTH


# -- the end ------------------------------------------------------------------------------------------------


def begin_stalled(web: Web) -> Wire:
    wire = Wire(web.port, receive_buffer=4096)
    wire.send(request("GET", long_answer(web), AUTHORIZED))
    wire.listen(LONG)
    return wire


def begin(web: Web, raw: bytes) -> Wire:
    wire = Wire(web.port)
    wire.send(raw)
    return wire


ATTACKS: Final[dict[str, Callable[[Web], Wire]]] = {
    "silence": lambda web: begin(web, b""),
    "half a head": lambda web: begin(web, LIVE[:-2]),
    "half a body": lambda web: begin(web, head(callback(web)[0], 1000)),
    "half a body that nobody wants": lambda web: begin(web, head("/callbacks/kitta/x", 1000)),
    "an answer that nobody reads": begin_stalled,
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_nobody_keeps_the_process_from_stopping(redis_url: str, tmp_path: Path, attack: Callable[[Web], Wire]) -> None:
    with web_process(tmp_path, {"REDIS_URL": redis_url, **CREDENTIALS}, start) as web:
        wires = [attack(web) for _ in range(5)] if attack is not ATTACKS["half a body"] else [attack(web)]
        assert web.http.get("/healthz").status_code == 200
        web.process.send(signal.SIGTERM)
        assert web.process.wait(timeout=15) == -signal.SIGTERM
        assert "Traceback" not in web.process.output()
        for wire in wires:
            wire.close()


def test_a_callback_that_is_on_its_way_when_the_process_stops_is_taken(redis_url: str, tmp_path: Path) -> None:
    with web_process(tmp_path, {"REDIS_URL": redis_url, **CREDENTIALS}, start) as web:
        path, body = callback(web)
        with Wire(web.port) as wire:
            wire.send(head(path, len(body)) + body[:10])
            assert web.http.get("/healthz").status_code == 200
            web.process.send(signal.SIGTERM)
            web.process.wait_until(lambda: not listening(web.port), "no more connections")
            wire.send(body[10:])
            answer = wire.answer(LONG)
            assert answer
            assert answer.body == b'{"received":true}'
        web.process.wait(timeout=15)


def start_patient(folder: Path, env: Mapping[str, str]) -> Process:
    """A process that keeps idle connections for long enough to be sure, when it stops."""
    options = ("--host", "127.0.0.1", "--port", env["PORT"])
    later = {"service.server.LINGER_SECONDS": 6.0, "service.server.STOP_SECONDS": 8.0}
    return Process(command("service.server", later, *options), log=folder / "web.log", env=env)


def test_a_request_that_was_on_its_way_to_an_idle_connection_is_answered(redis_url: str, tmp_path: Path) -> None:
    with web_process(tmp_path, {"REDIS_URL": redis_url, **CREDENTIALS}, start_patient) as web:
        with Wire(web.port) as fresh, Wire(web.port) as kept, Wire(web.port) as silent:
            kept.send(LIVE)
            assert kept.answer(LONG)
            web.process.send(signal.SIGTERM)
            web.process.wait_until(lambda: not listening(web.port), "no more connections")
            for wire in (fresh, kept):
                wire.send(LIVE)
                answer = wire.answer(LONG)
                assert answer
                assert (answer.status, answer.headers["connection"]) == (200, "close")
                assert wire.ended(LONG)
            assert silent.ended(LONG)
        web.process.wait(timeout=15)


# -- several processes --------------------------------------------------------------------------------------


def children(web: Web) -> set[int]:
    """The processes that serve: all that the supervisor has started, but for multiprocessing's own."""
    listed = subprocess.run(
        ["/bin/ps", "-ww", "-o", "pid=,args=", "--ppid", str(web.process.pid)], capture_output=True, check=False
    )
    lines = (line.split(maxsplit=1) for line in listed.stdout.decode().splitlines())
    return {int(pid) for pid, args in lines if "spawn_main" in args}


def test_processes_that_share_the_port_are_replaced_and_end_together(redis_url: str, tmp_path: Path) -> None:
    env = {"REDIS_URL": redis_url, "WEB_CONCURRENCY": "2", **CREDENTIALS}
    with web_process(tmp_path, env) as web:
        first = eventually(lambda: found if len(found := children(web)) == 2 else None, "two processes")
        os.kill(first.copy().pop(), signal.SIGKILL)
        second = eventually(lambda: found if len(found := children(web) - first) == 1 else None, "another in its place")
        path, body = callback(web)
        assert web.callback(path, body).json() == {"received": True}
        with Wire(web.port) as wire:  # one that none of them has to wait for
            wire.send(LIVE[:-2])
            web.process.send(signal.SIGTERM)
            assert web.process.wait(timeout=15) == 0
        assert not listening(web.port)
        assert not any(Path(f"/proc/{pid}").exists() for pid in first | second)
        assert "Traceback" not in web.process.output()


def test_settings_that_are_not_usable_end_the_supervisor_too(redis_url: str, tmp_path: Path) -> None:
    env = environment_of(
        free_port(), tmp_path, {"REDIS_URL": redis_url, "WEB_CONCURRENCY": "2", "STORAGE_URL": "nowhere"}
    )
    with start_web(tmp_path, env) as process:
        assert process.wait(timeout=20) == STARTUP_FAILURE
        assert "STORAGE_URL" in process.output()
        assert "Traceback" not in process.output()


def test_processes_that_share_the_port_make_room_for_new_ones_and_nobody_notices(
    redis_url: str, tmp_path: Path
) -> None:
    env = {"REDIS_URL": redis_url, "WEB_CONCURRENCY": "2", **CREDENTIALS}
    with web_process(tmp_path, env) as web, ThreadPoolExecutor(4) as senders:
        first = eventually(lambda: found if len(found := children(web)) == 2 else None, "two processes")
        path, body = callback(web)
        over, answers = threading.Event(), Counter[int]()

        def send(client: httpx.Client, kept: bool) -> None:
            while not over.is_set():
                close = {} if kept else {"connection": "close"}
                answers[client.post(web.url + path, content=body, headers=close).status_code] += 1

        with httpx.Client(trust_env=False, timeout=30) as client:
            sending = [senders.submit(send, client, kept) for kept in (True, False, True, False)]
            try:
                web.process.send(signal.SIGHUP)
                eventually(lambda: len(now := children(web)) == 2 and not now & first, "two others", timeout=60)
            finally:
                over.set()
            for sender in sending:
                sender.result()
        assert answers.keys() == {200}
        assert web.process.exit_code is None
