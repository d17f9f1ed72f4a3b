"""Links to this machine and to all else that is not public: no connection is made, counted where it would arrive."""

from __future__ import annotations

import json
import socket
import tempfile
from collections import Counter
from typing import Final

from service.vendors import catalogue
from service.vendors.catalogue import Misfit
from tests.support.deployment import environment, settings
from tests.support.processes import Process
from tests.support.sandbox import Desk, desk_of
from tests.support.servers import Listener, listening_port, valkey_server
from tests.support.submissions import order

from . import watch
from .launcher import command
from .stage import Result, Stage
from .targets import PUBLIC, PUBLIC_TOO, TARGETS

_SPOKEN: Final = {"text": "你好", "voice": "a-voice"}


def run(stage: Stage) -> Result:
    result = Result()
    with (
        tempfile.TemporaryDirectory(prefix="hostile-") as short,  # the path of a Unix socket may have 100 characters
        valkey_server(stage.folder, config={"unixsocket": f"{short}/redis"}),
        listening_port() as heard,
    ):
        # By a Unix socket, so that no connection of the worker's own is an honest one.
        made = settings(f"unix://{short}/redis", allow_private_networks=False)
        with desk_of(made) as desk:
            _run(stage, desk, heard, result)
    return result


def _run(stage: Stage, desk: Desk, heard: Listener, result: Result) -> None:
    every = stage.of(1, 3)
    urls = {name: url.replace("PORT", str(heard.port)) for name, url in list(TARGETS.items())[::every]}
    redirects = stage.folder / "redirects.json"
    redirects.write_text(json.dumps(list(urls.values())))
    stage.say(f"{len(urls)} targets as results, behind redirects, and as inputs")
    results = {desk.made(url): name for name, url in urls.items()}
    behind = {desk.made(f"{watch.FIRST_HOP}/{number}"): name for number, name in enumerate(urls)}
    inputs, refused = dict[str, str](), 0
    for name, url in urls.items():
        if isinstance(catalogue.choose("chanjing", None, {"video_url": url, **_SPOKEN}, {}), Misfit):
            refused += 1  # as the API answers: 422
        else:
            inputs[order(desk, "chanjing", {"video_url": url, **_SPOKEN})] = name
    honest = desk.made("https://honest.example/film.mp4")
    known = {job_id: len(desk.timeline(job_id)) for job_id in (*results, *behind, *inputs, honest)}
    env = environment(desk.settings) | {watch.REDIRECTS: str(redirects)}
    worker = command("workers.main", {"tests.hostile.watch.hook": "install"})
    with Process(worker, log=stage.folder / "worker.log", env=env) as process:
        process.wait_until(lambda: not _left(desk, known), "an attempt at each", timeout=60)
        told = [line for line in process.output().splitlines() if line.startswith(watch.TOLD)]
    public = [line for line in told if line.split()[4] in (PUBLIC, PUBLIC_TOO)]
    others = sorted(set(told) - set(public))
    stored = [name for jobs in (results, behind) for id_, name in jobs.items() if desk.job(id_).archive == "stored"]
    words = f"{len(urls)} forbidden targets as a result and behind a redirect, {len(inputs)} as an input for Chanjing"
    result.note(f"{words} ({refused} others are refused there with 422)", fine=len(urls) >= stage.of(60, 20))
    result.note(f"connections that arrived: {heard.connections}", fine=heard.connections == 0)
    result.note(f"connections that were tried, to anywhere but a public address: {len(others)}", fine=not others)
    result.faults += others[:5]
    result.note(f"files stored of them: {len(stored)}", fine=not stored)
    result.note(f"why not, in the timelines: {_reasons(desk, [*results, *behind, *inputs])}")
    with socket.create_connection(("127.0.0.1", heard.port)):
        pass
    seen = any(line.split()[4] == PUBLIC for line in public)
    result.note("the count counts: a connection of our own arrives, and one to a public address is tried", fine=seen)


def _left(desk: Desk, known: dict[str, int]) -> list[str]:
    """The jobs about which nothing was learned since they were put down."""
    return [job_id for job_id, length in known.items() if len(desk.timeline(job_id)) == length]


def _reasons(desk: Desk, job_ids: list[str]) -> str:
    words = Counter[str]()
    for job_id in job_ids:
        last = desk.timeline(job_id)[-1].get("detail") or ""
        words[last.partition(": ")[2].partition("; next")[0].removeprefix("invalid_input: input.video_url: ")[:60]] += 1
    return " · ".join(f"{count} {text}" for text, count in words.most_common(6))
