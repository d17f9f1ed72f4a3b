"""Who may ring, what is read of it, and what is logged: forged URLs, garbage, floods. No token is ever written down."""

from __future__ import annotations

import bisect
import json
import random
import socket
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPResponse
from typing import Any, Final
from urllib.parse import urlsplit

import pytest

from service.jobs.tokens import Tokens
from tests.support.api import NO_SUCH_JOB
from tests.support.callbacks import RECEIVED, apimodels, every_vendor, mac_of, token_of
from tests.support.web import SECRET_KEYS, Web

# -- garbage --------------------------------------------------------------------------------------------


def deep(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


def garbage() -> dict[str, bytes]:
    """Bodies by name. Many have junk in the place of a task's values, so that it reaches behind the first look."""
    chance = random.Random(20)
    task = (
        b'{"id": "x", "taskId": "x", "status": %s, "state": %s, "resultJson": %s, "progress": %s, "executionTime": %s}'
    )

    def with_value(value: bytes) -> bytes:
        return b'{"code": %s, "data": %s}' % (value, task % ((value,) * 5))

    found = {f"{size} random bytes": chance.randbytes(size) for size in (1, 2, 16, 1000, 100_000)}
    found |= {f"nested {depth} deep": deep(depth) for depth in (900, 1000, 100_000)}
    found |= {f"nested {depth} deep in a task": with_value(deep(depth)) for depth in (900, 1000, 100_000)}
    found |= {f"objects nested {depth} deep": b'{"data":' * depth + b"{}" + b"}" * depth for depth in (900, 100_000)}
    found |= {
        f"{name} in a task": with_value(value)
        for name, value in {
            "NaN": b"NaN",
            "Infinity": b"-Infinity",
            "a float beyond a float": b"1e999",
            "an integer of 20 digits": b"9" * 20,
            "an integer of 400 digits": b"9" * 400,
            "an integer of 5000 digits": b"9" * 5000,
            "minus zero": b"-0",
            "a lone surrogate": rb'"\ud800"',
            "two surrogates in the wrong order": rb'"\udc00\ud800"',
            "a NUL": rb'"\u0000"',
            "bad UTF-8": b'"\xff\xfe\xfd"',
            "an encoded surrogate": b'"\xed\xa0\x80"',
            "an overlong slash": b'"\xc0\xaf"',
            "a long word": b'"' + b"w" * 100_000 + b'"',
            "null": b"null",
            "true": b"true",
            "an empty object": b"{}",
        }.items()
    }
    found |= {
        "nothing": b"",
        "white space": b" \r\n\t ",
        "a byte order mark": b"\xef\xbb\xbf{}",
        "UTF-16": '{"status": "completed"}'.encode("utf-16"),
        "duplicate keys": b'{"id": "a", "id": "x", "taskId": "a", "taskId": "x", "status": "failed", "status": []}',
        "bad UTF-8 as a key": b'{"\xff": 1, "status": "processing"}',
        "an empty key": b'{"": {"": ""}}',
        "two documents": b"{}{}",
        "cut short": b'{"status": "comple',
        "a form": b"status=completed&id=1",
        "a multipart form": b"--x\r\nContent-Disposition: form-data; name=a\r\n\r\n1\r\n--x--",
        "HTML": b"<!doctype html><h1>502</h1>",
        "compressed": b"\x1f\x8b\x08\x00\x00\x00\x00\x00",
        "50,000 keys": b"{" + b",".join(b'"%d":%d' % (n, n) for n in range(50_000)) + b"}",
    }
    return found


GARBAGE: Final = garbage()


@every_vendor
@pytest.mark.parametrize("name", list(GARBAGE))
def test_garbage_is_refused_or_read_and_never_an_error_of_ours(web: Web, vendor: str, name: str) -> None:
    job = web.track(vendor, vendor_job_id="x")
    for url in (job["callback_url"], web.shared_url(vendor)):
        answer = web.callback(url, GARBAGE[name])
        assert answer.status_code in (200, 400, 422), answer.text
        assert answer.status_code == 200 or answer.headers["content-type"] == "application/problem+json"
    answers = [web.api.get(path).status_code for path in (f"/v1/jobs/{job['id']}", "/v1/jobs", "/v1/quarantine")]
    assert answers == [200, 200, 200]
    assert web.api.get(f"/v1/jobs/{job['id']}/timeline").status_code == 200
    assert web.process.exit_code is None


def test_a_job_whose_result_is_nested_as_deep_as_is_read_can_still_be_used(web: Web) -> None:
    def job_nested(depth: int) -> tuple[str, int]:
        """A job that was given a result of this depth, and how the callback was answered."""
        job = web.track("apimodels")
        found = f'{{"session_id": "s", "face_list": [{deep(depth).decode()}]}}'
        body = apimodels(job["id"], "completed", model="kling-video/kling-identify-face", faceData=found)
        return job["id"], web.callback(job["callback_url"], body).status_code

    #: Where reading ends depends on the interpreter, and on how deep its stack is by then.
    limit = bisect.bisect_left(range(10_000), True, key=lambda depth: job_nested(depth)[1] != 200)
    unusable = {}
    for depth in range(limit - 20, limit + 2):
        job_id, answer = job_nested(depth)
        # An error of ours ends its connection.
        once = {"Connection": "close"}
        attached = web.api.patch(f"/v1/jobs/{job_id}", json={"metadata": {"a": 1}}, headers=once)
        if answer not in (200, 422) or attached.status_code != 200:
            unusable[depth - limit] = (answer, attached.status_code)
    assert unusable == {}


# -- limits ---------------------------------------------------------------------------------------------


def pieces(size: int) -> Iterator[bytes]:
    """A body of `size` bytes that does not say how long it is."""
    piece = b" " * 2**16
    for start in range(0, size, len(piece)):
        yield piece[: size - start]


@pytest.mark.parametrize("chunked", [False, True], ids=["with its length", "chunked"])
def test_a_callback_over_the_limit_is_refused_and_the_vendor_is_asked(web: Web, chunked: bool) -> None:
    job = web.track("apimodels", vendor_job_id="task-1")
    size = web.settings.max_callback_bytes + 1
    answer = web.http.post(job["callback_url"], content=pieces(size) if chunked else b" " * size)
    assert ("transfer-encoding" in answer.request.headers) == chunked
    assert answer.status_code == 413
    assert answer.headers["content-type"] == "application/problem+json"
    assert web.is_due(job)
    assert web.timeline(job["id"])[-1]["problem"] == "too_large"
    assert web.letters() == [], "nothing of it is kept"


def test_a_callback_of_exactly_the_limit_is_read(web: Web) -> None:
    job = web.track("apimodels", vendor_job_id="task-1")
    body = json.dumps(apimodels("task-1", "processing")).encode()
    answer = web.callback(job["callback_url"], body.ljust(web.settings.max_callback_bytes))
    assert answer.json() == RECEIVED


def test_a_callback_that_echoes_megabytes_of_audio_is_read(web: Web) -> None:
    job = web.track("apimodels", vendor_job_id="task-1")
    echo = json.dumps({"model": "kling-advanced-lip-sync", "audio": "QUFB" * (2 * 2**20)})
    answer = web.callback(job["callback_url"], apimodels("task-1", "completed", param=echo))
    assert int(answer.request.headers["content-length"]) > 8 * 2**20
    assert (answer.status_code, answer.json()) == (200, RECEIVED)
    assert web.job(job["id"])["status"] == "succeeded"
    assert len(web.timeline(job["id"])[-1]["raw"]) <= 64 * 1024


def test_a_callback_that_breaks_off_is_nothing(web: Web) -> None:
    job = web.track("apimodels", vendor_job_id="task-1")
    connection = begin(web, job["callback_url"], {"Content-Length": "1000"}, b'{"code": 200, ')
    connection.close()
    web.process.wait_until(lambda: job["id"] in str(web.lines("callback cut short")), "a line about it")
    assert len(web.timeline(job["id"])) == 1
    assert web.letters() == []
    assert not web.is_due(job)


# -- who may ring ---------------------------------------------------------------------------------------


def forged(web: Web) -> dict[str, str]:
    """Callback URLs that are not ours, by what is wrong with them."""
    job, other = web.track("apimodels", vendor_job_id="task-1"), web.track("apimodels", vendor_job_id="task-2")
    url, token = job["callback_url"], token_of(job["callback_url"])
    base = f"{web.url}/callbacks"
    return {
        "unknown vendor": f"{base}/nobody/{token}",
        "unknown vendor, well signed": Tokens(SECRET_KEYS, web.url).url("nobody", job["id"]),
        "another vendor's": f"{base}/kitta/{token}",
        "another job's": f"{base}/apimodels/{job['id']}.{mac_of(other['callback_url'])}",
        "the shared one's": f"{base}/apimodels/{job['id']}.{mac_of(web.shared_url('apimodels'))}",
        "a job's as the shared one": f"{base}/apimodels/shared.{mac_of(url)}",
        "signed by a stranger": Tokens(("a stranger's key",), web.url).url("apimodels", job["id"]),
        "one letter off": url[:-5] + ("A" if url[-5] != "A" else "B") + url[-4:],
        "one letter short": url[:-1],
        "padded": url + "=",
        "nothing after the dot": f"{base}/apimodels/{job['id']}.",
        "no dot": f"{base}/apimodels/{job['id']}",
        "no token": f"{base}/apimodels/",
        "no vendor": f"{base}/",
        "more after it": f"{url}/more",
        "two dots": f"{base}/apimodels/{job['id']}..{mac_of(url)}",
        "another case": url[: -len(token)] + token.swapcase(),
        "no UTF-8": f"{base}/apimodels/%ff%fe.{mac_of(url)}",
        "no ASCII": f"{base}/apimodels/{job['id']}.%E4%B8%AD",
        "NUL": f"{base}/apimodels/{job['id']}%00.{mac_of(url)}",
        "a job that never was": Tokens(SECRET_KEYS, web.url).url("apimodels", NO_SUCH_JOB),
    }


@pytest.mark.parametrize("method", ["POST", "GET"])
def test_whatever_is_wrong_with_a_url_the_answer_is_the_same(web: Web, method: str) -> None:
    answers = {}
    body = json.dumps(apimodels("task-1", "completed")).encode()
    for wrong, url in forged(web).items():
        if method == "POST" or wrong != "a job that never was":
            answer = web.http.request(method, url, content=body)
            headers = {name: value for name, value in answer.headers.items() if name != "date"}
            answers[wrong] = (answer.status_code, headers, answer.content)
    expected = answers["signed by a stranger"]
    assert expected[0] == 404
    assert expected[1]["content-type"] == "application/problem+json"
    assert {wrong for wrong, answer in answers.items() if answer != expected} == set()
    assert {job["status"] for job in web.api.get("/v1/jobs").json()["data"]} == {"queued"}
    assert web.letters() == []


def test_every_secret_key_verifies_and_the_first_signs(web: Web) -> None:
    job = web.track("apimodels", vendor_job_id="task-1")
    by_first, by_second = (Tokens((key,), web.url).url("apimodels", job["id"]) for key in SECRET_KEYS)
    assert job["callback_url"] == by_first
    assert web.callback(by_second, apimodels("task-1", "processing")).json() == RECEIVED
    assert web.job(job["id"])["status"] == "processing"


def begin(web: Web, url: str, headers: dict[str, str], body: bytes = b"") -> HTTPConnection:
    """A request of which only the head and the first bytes of the body are sent."""
    parts = urlsplit(url)
    connection = HTTPConnection(str(parts.hostname), parts.port or 80, timeout=5)
    connection.putrequest("POST", parts.path)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders(body)
    return connection


def test_the_body_behind_a_forged_url_is_not_waited_for(web: Web) -> None:
    url = forged(web)["signed by a stranger"]
    connection = begin(web, url, {"Content-Length": "1000000"}, b'{"code": 200, ')
    answer: HTTPResponse = connection.getresponse()
    assert answer.status == 404
    connection.close()


@pytest.mark.parametrize(("good", "first_line"), [(True, b"HTTP/1.1 100 "), (False, b"HTTP/1.1 404 ")])
def test_only_a_good_url_is_told_to_go_on(web: Web, good: bool, first_line: bytes) -> None:
    urls = forged(web)
    url = web.shared_url("apimodels") if good else urls["signed by a stranger"]
    connection = begin(web, url, {"Content-Length": "1000000", "Expect": "100-continue"})
    assert connection.sock is not None
    assert connection.sock.recv(4096).startswith(first_line)
    connection.close()


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_a_good_url_takes_nothing_but_post(web: Web, method: str) -> None:
    job = web.track("apimodels", vendor_job_id="task-1")
    answer = web.http.request(method, job["callback_url"])
    assert answer.status_code == 405
    assert answer.headers["content-type"] == "application/problem+json"
    assert len(web.timeline(job["id"])) == 1


# -- the log --------------------------------------------------------------------------------------------


def test_every_callback_has_one_line_that_says_whose_it_was_and_what_became_of_it(web: Web) -> None:
    job = web.track("apimodels", vendor_job_id="task-1")
    sent = [
        ("apply", 200, apimodels("task-1", "completed")),
        ("same", 200, apimodels("task-1", "completed")),
        ("stale", 200, apimodels("task-1", "processing")),
        ("ask", 422, apimodels("task-1", "paused")),
        ("ask", 400, b"nope"),
        ("ask", 422, apimodels("task-2", "completed")),
    ]
    for _, _, body in sent:
        web.callback(job["callback_url"], body)

    def lines() -> list[dict[str, Any]]:
        return [line for line in web.lines("callback") if line.get("job_id") == job["id"]]

    web.process.wait_until(lambda: len(lines()) == len(sent), "a line for each")
    assert [(line["outcome"], line["http_status"]) for line in lines()] == [(word, status) for word, status, _ in sent]
    assert {line["vendor"] for line in lines()} == {"apimodels"}
    assert all(line["ms"] >= 0 for line in lines())


def test_a_parked_callback_has_a_line_without_a_job(web: Web) -> None:
    seen = len(web.lines("callback"))
    web.callback(web.shared_url("lipsync_studio"), {"id": "nobody-s", "status": "processing"})
    web.process.wait_until(lambda: len(web.lines("callback")) == seen + 1, "its line")
    line = web.lines("callback")[-1]
    assert (line["vendor"], line["job_id"], line["outcome"]) == ("lipsync_studio", None, "parked")


def test_no_token_is_ever_logged(web: Web) -> None:
    logged_before = len(web.process.output())
    job = web.track("apimodels", vendor_job_id="task-1")
    url, shared = job["callback_url"], web.shared_url("apimodels")
    path = urlsplit(url).path
    for target in (url, shared, f"{url}?token={token_of(url)}", f"{url}/", url.replace("/job_", "/%6Aob_")):
        for body in (b"nope", url.encode(), {"data": {"taskId": url, "state": url}}, apimodels(url, "failed")):
            web.callback(target, body)
        web.http.get(target)
    web.api.get(f"/v1/jobs/{token_of(url)}")
    web.api.get(f"/v1{path}")
    web.api.post("/v1/jobs", json={"vendor": url, "vendor_job_id": url, "metadata": {"callback": url}})
    for request in (f"POST {path}\r\n\r\n", f"POST {path} HTTP/9.9\r\n\r\n", f"POST {path}\xff HTTP/1.1\r\n\r\n"):
        send_raw(web, request.encode("latin-1"))
    web.callback(url, apimodels("task-1", "processing"))
    web.process.wait_until(
        lambda: [line for line in web.lines("callback") if line.get("status") == "processing"], "the last line"
    )
    macs = {mac_of(url), mac_of(shared)}
    assert {mac for mac in macs if mac in web.process.output()} == set()
    assert "Traceback" not in web.process.output()[logged_before:]


def send_raw(web: Web, request: bytes) -> None:
    """Send what no client library would, and wait until the server has hung up or answered."""
    parts = urlsplit(web.url)
    with socket.create_connection((str(parts.hostname), parts.port or 80), timeout=5) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        assert not connection.recv(4096).startswith(b"HTTP/1.1 5")


def test_an_error_that_quotes_the_callback_url_does_not_publish_its_token(web: Web) -> None:
    job = web.track("apimodels", vendor_job_id="task-1")
    words = f"could not deliver to {job['callback_url']}"
    web.callback(job["callback_url"], apimodels("task-1", "failed", failMsg=words))
    secret = mac_of(job["callback_url"])
    assert secret not in json.dumps(web.job(job["id"]))
    assert secret not in json.dumps(web.events())
    assert secret not in json.dumps(web.timeline(job["id"]))
