"""The sandbox's files, its ledger and its process."""

from __future__ import annotations

import hashlib
import re
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import httpx
import pytest

from sandbox.faults import WORDS
from tests.support.customers import (
    BEARER,
    CREATE,
    KITTA,
    PATHS,
    TOKEN,
    Receiver,
    ask,
    body_of,
    entry,
    finished,
    link,
    order,
    settled,
    stop,
    submit,
    upload,
)
from tests.support.processes import ROOT, eventually
from tests.support.sandbox import Sandbox, sandbox_process

MANUAL = (ROOT / "docs" / "sandbox.md").read_text()


@pytest.mark.parametrize("vendor", PATHS)
def test_every_job_makes_a_playable_file_of_its_own(api: httpx.Client, vendor: str, tmp_path: Path) -> None:
    ids = [submit(api, vendor) for _ in range(2)]
    links = [link(vendor, finished(api, vendor, id)) for id in ids]
    for id, url in zip(ids, links, strict=True):
        assert url is not None
        assert f"/media/{vendor}/{id}/0.mp4?sig=" in url
        answer = api.get(url)
        [output] = entry(api, vendor, id)["outputs"]
        assert (answer.status_code, answer.headers["content-type"]) == (200, "video/mp4")
        assert (output["sha256"], output["bytes"]) == (hashlib.sha256(answer.content).hexdigest(), len(answer.content))
        assert (output["url"], output["attempts"], output["downloads"]) == (url, 1, 1)
        (tmp_path / id).write_bytes(answer.content)
    assert len({(tmp_path / id).read_bytes() for id in ids}) == 2
    if shutil.which("ffprobe"):
        probe = [
            *["ffprobe", "-v", "error", "-show_entries", "stream=codec_name", "-of", "csv=p=0"],
            str(tmp_path / ids[0]),
        ]
        assert subprocess.check_output(probe, stderr=subprocess.STDOUT, text=True).split() == ["h264", "aac"]


def test_results_come_in_ranges_too(api: httpx.Client) -> None:
    id = submit(api, "kitta")
    url = finished(api, "kitta", id)["resultVideoUrl"]
    whole = api.get(url).content
    size = len(whole)

    def part(asked: str) -> tuple[int, bytes, str | None]:
        answer = api.get(url, headers={"Range": asked})
        return answer.status_code, answer.content, answer.headers.get("content-range")

    assert part("bytes=0-9") == (206, whole[:10], f"bytes 0-9/{size}")
    assert part("bytes=10-") == (206, whole[10:], f"bytes 10-{size - 1}/{size}")
    assert part("bytes=-5") == (206, whole[-5:], f"bytes {size - 5}-{size - 1}/{size}")
    assert part(f"bytes=5-{size * 2}") == (206, whole[5:], f"bytes 5-{size - 1}/{size}")
    assert part(f"bytes={size}-") == (416, b"", f"bytes */{size}")
    assert part("bytes=9-5")[0] == 416
    assert part("lines=1-2") == (200, whole, None)
    head = api.head(url)
    assert (head.status_code, head.headers["content-length"], head.content) == (200, str(size), b"")
    assert entry(api, "kitta", id)["outputs"][0]["downloads"] == 5


def test_files_without_a_good_link_are_not_served(api: httpx.Client) -> None:
    id, stuck = submit(api, "kitta"), submit(api, "kitta", faults="job_stuck")
    assert api.get(f"/media/kitta/{stuck}/0.mp4?sig=early").status_code == 404
    url = finished(api, "kitta", id)["resultVideoUrl"]
    assert api.get(url[:-1]).status_code == 403
    assert api.get(url.partition("?")[0]).status_code == 403
    assert api.get(url.replace("0.mp4", "1.mp4")).status_code == 404
    assert api.get(url.replace(id, "lip_task_0")).status_code == 404
    assert api.get("/media/input/other.mp4").status_code == 404


@pytest.mark.parametrize(
    ("name", "kind"),
    [("face.mp4", "video/mp4"), ("face.png", "image/png"), ("face.jpg", "image/jpeg"), ("voice.mp3", "audio/mpeg")],
)
@pytest.mark.parametrize("query", ["", "?sandbox=callback_lost"])
def test_inputs_are_there_to_submit(api: httpx.Client, name: str, kind: str, query: str) -> None:
    got, head = (api.request(method, f"/media/input/{name}{query}") for method in ("GET", "HEAD"))
    assert len(got.content) > 1000
    for answer in (got, head):
        assert (answer.status_code, answer.headers["content-type"]) == (200, kind)
        assert int(answer.headers["content-length"]) == len(got.content)


def test_fault_words_survive_an_upload(api: httpx.Client) -> None:
    def fetched(name: str, faults: str) -> bytes:
        return api.get(f"/media/input/{name}", params={"sandbox": faults}).content

    files = {
        "video_file_id": upload(api, "lip_sync_video", "face.mp4", fetched("face.mp4", "job_failed,seconds:0")),
        "audio_file_id": upload(api, "lip_sync_audio", "voice.mp3", fetched("voice.mp3", "callback_late:2.5")),
    }
    id = api.post(CREATE, json=files | {"audio_type": "audio"}, headers=TOKEN).json()["data"]
    assert entry(api, "chanjing", id)["faults"] == ["job_failed", "seconds:0", "callback_late:2.5"]
    assert ask(api, "chanjing", id)["data"]["status"] == 30


def test_the_ledger_tells_what_happened(api: httpx.Client, receiver: Receiver) -> None:
    url, began = receiver.fresh(), time.time()
    id = submit(api, "apimodels", callback=url, faults="seconds:0.5")
    submit(api, "apimodels")
    [before] = api.get("/_sandbox/jobs", params={"callback_url": url}).json()["data"]
    assert before["status"] in ("queued", "processing")
    assert (before["finished_at"], before["outputs"]) == (None, [])
    settled(api, "apimodels", id, 1)
    ask(api, "apimodels", id)
    [job] = api.get("/_sandbox/jobs", params={"vendor": "apimodels", "callback_url": url}).json()["data"]
    assert job["request"] == body_of("apimodels", callback=url, faults="seconds:0.5")
    assert (job["vendor"], job["id"], job["model"]) == ("apimodels", id, "kling-advanced-lip-sync")
    assert (job["status"], job["status_calls"], job["list_calls"]) == ("succeeded", 1, 0)
    assert began < job["submitted_at"] < began + 1
    assert job["submitted_at"] + 0.5 == job["finished_at"] <= job["callbacks"][0]["at"]
    assert api.get("/_sandbox/jobs", params={"vendor": "kitta"}).json() == {"data": []}
    submit(api, "kitta", faults="seconds:0")
    api.get(KITTA, headers=BEARER)
    assert api.get("/_sandbox/jobs", params={"vendor": "kitta"}).json()["data"][0]["list_calls"] == 1
    api.get(KITTA)
    assert api.get("/_sandbox/calls").json() == {
        "data": {"apimodels": {"status": 1, "submit": 2}, "kitta": {"list": 1, "refused": 1, "submit": 1}}
    }


def test_a_reset_forgets_jobs_and_what_they_still_had_to_say(api: httpx.Client, receiver: Receiver) -> None:
    url, after = receiver.fresh(), receiver.fresh()
    submit(api, "lipsync_studio", callback=url, faults="seconds:0.5")
    order(api, "job_failed")
    api.post("/_sandbox/reset")
    assert [api.get(f"/_sandbox/{part}").json()["data"] for part in ("jobs", "faults", "calls")] == [[], [], {}]
    submit(api, "lipsync_studio", callback=after, faults="seconds:0.6")
    eventually(lambda: receiver.got(after))
    assert receiver.got(url) == []


def test_health(api: httpx.Client) -> None:
    assert api.get("/healthz").json() == {"status": "ok"}


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT])
def test_it_stops_at_once_with_everything_open(tmp_path: Path, by: signal.Signals) -> None:
    with sandbox_process(tmp_path, "--seconds", "0") as sandbox:
        client = sandbox.http
        submit(client, "lipsync_studio", callback="http://localhost:9/hook", faults="seconds:60")
        slow = str(link("kitta", ask(client, "kitta", submit(client, "kitta", faults="download_slow:10"))))
        with client.stream("GET", slow) as answer:
            next(answer.iter_raw())
            order(client, "vendor_hangs", vendor="kitta")
            hanging = threading.Thread(target=lambda: httpx.get(sandbox.url + KITTA, trust_env=False, timeout=10))
            hanging.start()
            eventually(lambda: client.get("/_sandbox/calls").json()["data"]["kitta"].get("faulted"))
            began = time.monotonic()
            stop(sandbox.process, by)
            assert time.monotonic() - began < 2
            hanging.join()


def test_the_manual_names_every_fault_word() -> None:
    assert [word for word in sorted(WORDS) if f"`{word}" not in MANUAL] == []


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
@pytest.mark.parametrize("number", range(MANUAL.count("```sh\ncurl")))
def test_the_manuals_examples_work_as_pasted(sandbox: Sandbox, number: int) -> None:
    example = re.findall(r"```sh\n(curl.*?)```", MANUAL, re.DOTALL)[number]
    command = ["/bin/sh", "-ec", example.replace("http://127.0.0.1:8900", sandbox.url)]
    ran = subprocess.run(command, capture_output=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, b"")
    assert ran.stdout
