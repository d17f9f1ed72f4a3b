"""The web process against senders of too much: heads, trailers, pipelines and bodies beyond any limit. Real sockets."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final

import httpx
import pytest

from service.server import MAX_BYTES_PER_SECOND, UNPACED_BYTES
from tests.hostile.hasty import AUTHORIZED, LIVE, LONG, callback, head, start
from tests.hostile.measure import resident
from tests.hostile.wire import Wire, ask, request
from tests.support.web import CREDENTIALS, Web, web_process

LONG_HEADS: Final = {
    "a long header": lambda size: b"GET /healthz HTTP/1.1\r\nhost: x\r\nx: " + b"a" * size,
    "many headers": lambda size: b"GET /healthz HTTP/1.1\r\nhost: x\r\n" + b"x: y\r\n" * (size // 6) + b"z: z",
    "a long URL": lambda size: b"GET /" + b"a" * size + b" HTTP/1.1\r\nhost: x",
    "a long method": lambda size: b"A" * size,
}


@pytest.mark.parametrize("size", [40_000, 200_000, 2_000_000])
@pytest.mark.parametrize("pieces", [1, 2, 50])
@pytest.mark.parametrize("made", LONG_HEADS.values(), ids=LONG_HEADS)
def test_a_head_over_the_limit_is_refused(port: int, made: Callable[[int], bytes], size: int, pieces: int) -> None:
    raw = made(size) + b"\r\n\r\n"
    with Wire(port) as wire:
        for number in range(pieces):
            wire.send(raw[len(raw) * number // pieces : len(raw) * (number + 1) // pieces])
            wire.listen(0.01)
        answer = wire.answer(LONG)
        assert answer is None or answer.status in (400, 431)  # none where it was still sending
        assert wire.ended(LONG)


def test_a_head_within_the_limit_is_read(port: int) -> None:
    raw = request("GET", "/healthz?" + "a" * 15_000, f"x: {'b' * 15_000}")
    with Wire(port) as wire:
        for start_ in range(0, len(raw), 1000):
            wire.send(raw[start_ : start_ + 1000])
        answer = wire.answer()
        assert answer
        assert answer.status == 200


BESIDE_A_BODY: Final = {
    "trailers": b"x: y\r\n" * 10_000,
    "a long trailer": b"x: " + b"y" * 60_000,
    "a chunk's extension": b"5;x=" + b"y" * 60_000,
}


@pytest.mark.parametrize("noise", BESIDE_A_BODY.values(), ids=BESIDE_A_BODY)
def test_what_is_sent_beside_a_body_takes_no_memory(web: Web, noise: bytes) -> None:
    path, _ = callback(web)
    before = resident(web.process.pid)
    for target in (path, "/callbacks/apimodels/forged", "/v1/jobs"):
        with Wire(web.port) as wire:
            last = b"0\r\n" if noise.startswith(b"x") else b""
            wire.send(request("POST", target, AUTHORIZED, "transfer-encoding: chunked") + last)
            sent = sum(wire.send(noise, timeout=1) for _ in range(200) if not wire.refused)
            assert wire.ended(LONG)
            assert sent < 200 * len(noise)
    assert resident(web.process.pid) - before < 20 * 2**20


def test_trailers_are_not_headers(web: Web) -> None:
    body = b'{"vendor": "kitta"}'
    chunk = b"%x\r\n%b\r\n0\r\n" % (len(body), body)
    trailer = f"{AUTHORIZED}\r\nidempotency-key: a\r\n\r\n".encode()
    answer = ask(web.port, request("POST", "/v1/jobs", "transfer-encoding: chunked") + chunk + trailer)
    assert answer
    assert answer.status == 401


def test_who_is_answered_already_is_not_listened_to_for_long(web: Web) -> None:
    path, _ = callback(web)
    for target, status in ((f"{path}forged", 404), (path, 413)):
        with Wire(web.port) as wire:
            wire.send(head(target, 2**30))
            block = b" " * 2**20
            sent = sum(wire.send(block, timeout=5) for _ in range(1024) if not wire.refused)
            answer = wire.answer(LONG)
            assert answer
            assert answer.status == status
            assert wire.ended(LONG)
            assert sent < web.settings.max_callback_bytes + 16 * 2**20  # buffers on the way take some
    assert web.timeline(web.api.get("/v1/jobs").json()["data"][0]["id"])[-1]["problem"] == "too_large"


def test_a_connection_on_which_too_much_was_sent_is_not_taken_for_a_good_one(web: Web) -> None:
    path, _ = callback(web)
    with httpx.Client(base_url=f"http://127.0.0.1:{web.port}", trust_env=False) as http:
        for _ in range(5):
            assert http.post(f"{path}forged", content=b" " * 2**21).status_code == 404
            assert http.post(f"{path}forged", content=b"little").status_code == 404


def test_large_bodies_are_taken_at_one_pace_for_all(web: Web) -> None:
    path, body = callback(web)
    size, senders = 4 * 2**20, 4
    began = time.monotonic()
    with ThreadPoolExecutor(senders) as pool:
        raw = head(path, size) + body.ljust(size)
        answers = list(pool.map(lambda _: ask(web.port, raw, LONG), range(senders)))
    assert [answer and answer.status for answer in answers] == [200] * senders
    assert time.monotonic() - began > senders * (size - UNPACED_BYTES) / MAX_BYTES_PER_SECOND


def test_bodies_in_chunks_of_one_byte_are_read_and_keep_nobody_waiting(web: Web) -> None:
    path, body = callback(web)
    chunked = request("POST", path, "transfer-encoding: chunked")
    crumbs = b"".join(b"1\r\n%c\r\n" % letter for letter in body.ljust(2000))
    answer = ask(web.port, chunked + crumbs + b"0\r\n\r\n")
    assert answer
    assert answer.status == 200

    def waited() -> float:
        with contextlib.ExitStack() as senders:
            for _ in range(20):  # of what takes a second if it is read at once
                senders.enter_context(Wire(web.port)).send(chunked + b"1\r\n \r\n" * 2**15)
            began = time.monotonic()
            assert ask(web.port, LIVE)
            return time.monotonic() - began

    assert min(waited() for _ in range(5)) < 0.3


def test_those_who_send_crumbs_and_go_leave_nothing_to_be_paid_by_others(web: Web) -> None:
    path, body = callback(web)
    crumbs = request("POST", f"{path}forged", "transfer-encoding: chunked") + b"1\r\n \r\n" * 2700
    for _ in range(100):  # each counts for a twelfth of a second
        with Wire(web.port) as wire:
            wire.send(crumbs)
    began = time.monotonic()
    answer = ask(web.port, head(path, 200_000) + body.ljust(200_000), LONG)
    assert answer
    assert answer.status == 200
    assert time.monotonic() - began < 3


@pytest.mark.parametrize("stopped", [False, True])
def test_a_body_that_nobody_wants_is_not_read_for_ever(redis_url: str, tmp_path: Path, stopped: bool) -> None:
    """However slow it is we who take it."""
    slowly = partial(start, constants={"service.server.MAX_IGNORED_PER_SECOND": 10.0})
    with web_process(tmp_path, {"REDIS_URL": redis_url, **CREDENTIALS}, slowly) as web, Wire(web.port) as wire:
        wire.send(head("/callbacks/apimodels/forged", 2**20) + b" " * 2**17)
        answer = wire.answer(LONG)
        assert answer
        assert answer.status == 404
        if stopped:
            web.process.send(signal.SIGTERM)
            web.process.wait(timeout=LONG)
        assert wire.ended(LONG)


def test_requests_in_a_row_are_answered_in_order_up_to_a_number(port: int) -> None:
    with Wire(port) as wire:
        wire.send(b"".join(request("GET", path) for path in ("/healthz", "/nothing", "/healthz", "/callbacks/x/y")))
        assert [answer.status for answer in wire.answers(1)] == [200, 404, 200, 404]


def test_thousands_of_requests_in_a_row_take_no_memory(web: Web) -> None:
    before = resident(web.process.pid)
    wires = [Wire(web.port, receive_buffer=4096) for _ in range(20)]
    for wire in wires:
        wire.send(b"GET /healthz HTTP/1.1\r\n\r\n" * 10_000, timeout=0.2)
    assert web.http.get("/healthz").status_code == 200
    assert resident(web.process.pid) - before < 20 * 2**20
    for wire in wires:
        assert wire.ended(LONG)
        wire.close()
    assert "Traceback" not in web.process.output()
