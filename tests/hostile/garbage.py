"""Thousands of hostile requests: none is answered with an error of ours, and none changes what it must not."""

from __future__ import annotations

import importlib
import json
import pkgutil
import random
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from hypothesis import strategies as st
from starlette.routing import Route

import service.api
from service.dashboard.views import BUTTONS, PAGES
from service.deployment import Deployment
from service.vendors import VENDORS
from tests.support import state
from tests.support.servers import valkey_server
from tests.support.web import API_KEY, CREDENTIALS, Web, web_process

from . import corpus, strategies
from .measure import megabytes, milliseconds, peak, resident
from .stage import SEED, Result, Stage
from .wire import Answer, Wire, ask

READER: Final = "a-key-that-may-only-read"
#: Whose requests may not be carried out, whatever they ask for.
WEAK: Final = (b"", b"authorization: Bearer a-key-that-nobody-has", b"authorization: Bearer " + READER.encode())
STRONG: Final = b"authorization: Bearer " + API_KEY.encode()
#: A field that no request has: nothing that it is in may be carried out.
POISON: Final = '{"\u2620": 1, '.encode()


class Target:
    """The web process, jobs that must not change, and what became of the requests."""

    def __init__(self, web: Web) -> None:
        self.web = web
        self.port = web.port
        self.jobs = {slug: web.track(slug, vendor_job_id=f"job-of-{slug}") for slug in VENDORS}
        self.bystanders = [web.track(slug, vendor_job_id=f"{slug}-{number}") for slug in VENDORS for number in range(5)]
        self.statuses: Counter[int | None] = Counter()
        self.faults: list[str] = []
        self.slowest = (0.0, b"")
        self.understood: list[tuple[str, bytes]] = []

    @property
    def sent(self) -> int:
        return self.statuses.total()

    def send(self, raw: bytes, *, whole: bool = True) -> int | None:
        """Send a request; where it is not `whole`, an answer need not come."""
        began = time.monotonic()
        answer = ask(self.port, raw, timeout=30 if whole else 0.1)
        self.slowest = max(self.slowest, (time.monotonic() - began if whole else 0.0, raw[:120]))
        status = answer.status if answer else None
        self.statuses[status] += 1
        if (status or 0) >= 500 or (whole and status is None):
            self.faults.append(f"{status} for {raw[:300]!r}")
        return status

    def callback(self, vendor: str, body: bytes, *heads: bytes, token: str | None = None) -> None:
        """To a job that must not change, unless it can be understood: that is kept for later."""
        if token is None and _understood(vendor, body):
            self.understood.append((vendor, body))
            return
        path = token or self.jobs[vendor]["callback_url"].removeprefix(self.web.url)
        self.send(request("POST", path, *heads, body=body))


def request(method: str, target: str, *heads: bytes, body: bytes | None = None) -> bytes:
    lines = [f"{method} {target} HTTP/1.1".encode(), b"host: callsheet.example", *heads]
    if body is not None:
        lines.append(b"content-length: %d" % len(body))
    return b"\r\n".join(line for line in lines if line) + b"\r\n\r\n" + (body or b"")


def _understood(vendor: str, body: bytes) -> bool:
    return VENDORS[vendor].read_callback(body).problem is None


def run(stage: Stage) -> Result:
    result = Result()
    env = {**CREDENTIALS, "API_KEYS": f"studio:{API_KEY},reader:{READER}:read"}
    with valkey_server(stage.folder) as valkey, web_process(stage.folder, {"REDIS_URL": valkey.url, **env}) as web:
        _run(stage, Target(web), result)
    return result


def _run(stage: Stage, target: Target, result: Result) -> None:
    web, pid = target.web, target.web.process.pid
    for body in list(corpus.BODIES.values())[:20]:
        web.callback(web.shared_url("kitta"), body)
    before, memory = state.snapshot(web.redis), resident(pid)
    for name, step in (("written", _written), ("raw", _raw), ("callbacks", _callbacks), ("API requests", _api)):
        stage.say(f"{name}: {target.sent:,} requests so far")
        step(stage, target)
    unwanted = _unwanted(target, before, state.snapshot(web.redis))
    must_not = target.sent
    stage.say(f"what can be understood after all: {must_not:,} requests so far")
    _understandable(stage, target)
    answers = " · ".join(f"{status or 'none'} {count:,}" for status, count in sorted(target.statuses.items(), key=str))
    least = stage.of(10_000, 800)
    result.note(f"{target.sent:,} hostile requests: {answers}", fine=target.sent >= least)
    result.note(f"answers of 5xx, or none where one was due: {len(target.faults)}", fine=not target.faults)
    result.faults += target.faults[:5]
    result.note(f"jobs, timelines, events changed by {must_not:,} of them: {len(unwanted)}", fine=not unwanted)
    result.faults += unwanted[:5]
    traces = web.process.output().count("Traceback")
    result.note(f"tracebacks in the log: {traces}", fine=traces == 0)
    grown = resident(pid) - memory
    words = (
        f"memory of the web process {megabytes(memory)} → {megabytes(memory + grown)}, at most {megabytes(peak(pid))}"
    )
    result.note(words, fine=grown < 200 * 2**20)
    result.note(f"the slowest answer: {milliseconds(target.slowest[0])}", fine=target.slowest[0] < 10)


def _unwanted(target: Target, before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What changed and must not have, key by key."""
    prefix, known = f"{target.web.settings.key_prefix}:", {job["id"] for job in target.jobs.values()}
    return [
        f"{key}: {str(before.get(key))[:200]} → {str(after.get(key))[:200]}"
        for key in sorted(state.changed(before, after))
        if not _may_change(key.removeprefix(prefix), before.get(key), after.get(key), known)
    ]


def _may_change(key: str, old: Any, new: Any, known: set[str]) -> bool:
    """Of jobs whose good token is `known`: when they are polled, that something was not applied, and quarantine."""
    kind, _, subject = key.partition(":")
    if kind == "polls":
        others = [
            {id_: due for id_, due in (due_at or {}).items() if id_.decode() not in known} for due_at in (old, new)
        ]
        return others[0] == others[1]
    if kind == "timeline" and subject in known:
        return bool(new[: len(old)] == old) and not any(json.loads(entry)["applied"] for entry in new[len(old) :])
    if kind == "job" and subject in known:  # what begins so is bookkeeping, which no answer and no event has
        return all(name.startswith(b"_") for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    return kind in ("quarantine", "kept", "ready") or (kind == "raw" and subject in known)


# -- what is sent ------------------------------------------------------------------------------------------


def _written(stage: Stage, target: Target) -> None:
    """Every body to every door; every target by every method; every header."""
    every = stage.of(1, 6)
    for number, body in enumerate([*corpus.BODIES.values(), *corpus.VALUES][::every]):
        for slug in VENDORS:
            target.callback(slug, body)
            target.callback(slug, body, token=f"/callbacks/{slug}/forged")
        job_id = target.bystanders[number % len(target.bystanders)]["id"]
        for method, path in (
            ("POST", "/v1/jobs"),
            ("PATCH", f"/v1/jobs/{job_id}"),
            ("POST", f"/v1/jobs/{job_id}/resolve"),
        ):
            wrapped = body if not body.startswith(b"{") else POISON + body[1:]
            target.send(request(method, path, STRONG, body=wrapped))
            target.send(
                request(method, path, STRONG, body=POISON + b'"vendor": %b, "metadata": {"a": %b}}' % (body, body))
            )
    job_id = target.bystanders[0]["id"]
    for text in corpus.TARGETS[::every]:
        path = text.replace("@ID@", job_id).replace("@TOKEN@", f"{job_id}.{'A' * 43}")
        for method in corpus.METHODS:
            key = random.Random(path + method).choice(WEAK)
            target.send(request(method, path, key, body=b"{}"), whole=method in ("GET", "POST") and len(path) < 1000)
    for head in corpus.HEADERS[::every]:
        for method, path in (("GET", "/v1/jobs"), ("POST", "/v1/jobs"), ("GET", f"/v1/jobs/{job_id}/outputs/0")):
            target.send(request(method, path, STRONG, head, body=POISON + b"}"), whole=len(head) < 8000)
        for slug in VENDORS:
            target.callback(slug, b"nonsense", head)


def _raw(stage: Stage, target: Target) -> None:
    good = target.jobs["kitta"]["callback_url"].removeprefix(target.web.url)

    def send(item: tuple[str, str, bytes]) -> tuple[str, list[Answer]]:
        name, path, raw = item
        with Wire(target.port) as wire:
            wire.send(raw.replace(b"@PATH@", path.encode()).replace(b"@AUTH@", STRONG), timeout=5)
            return name, list(wire.answers(0.5))

    paths, written = (good, "/callbacks/kitta/forged", "/v1/jobs/job_none/resolve"), list(corpus.RAW.items())
    with ThreadPoolExecutor(16) as pool:
        found = pool.map(send, [(name, path, raw) for name, raw in written[:: stage.of(1, 4)] for path in paths])
    for name, answers in found:
        statuses: list[int | None] = [answer.status for answer in answers]
        target.statuses.update(statuses or [None])
        target.faults += [f"{answer.status} for {name}" for answer in answers if answer.status >= 500]
        if any(b'"data"' in answer.body for answer in answers):  # of the request inside of it
            target.faults.append(f"smuggled: {name}")


def _callbacks(stage: Stage, target: Target) -> None:
    def send(made: tuple[str, bytes, list[bytes], str]) -> None:
        slug, body, heads, door = made
        shared = target.web.shared_url(slug).removeprefix(target.web.url)
        if door == "shared" and _understood(slug, body):
            return  # it would be parked for whoever registers that job
        token = {"good": None, "shared": shared, "forged": f"/callbacks/{slug}/{'job_' + '0' * 24}.forged"}[door]
        target.callback(slug, body, *heads, token=token)

    doors = st.sampled_from(("good", "good", "shared", "forged"))
    for number, slug in enumerate(VENDORS):
        body = strategies.bodies(strategies.CALLBACKS[slug])
        made = st.tuples(st.just(slug), body, _few(strategies.headers()), doors)
        strategies.each(made, stage.of(750, 60), send, number)


def _api(stage: Stage, target: Target) -> None:
    ids = [job["id"] for job in target.bystanders] + [letter["id"] for letter in target.web.letters()]
    routes = [*(f"/v1{route.path}" for route in _routes(target.web)), *PAGES, *BUTTONS, "/sign-in", "/sign-out"]
    piece = strategies.segments(ids)
    paths = st.tuples(st.sampled_from(routes), piece, piece, strategies.queries()).map(
        lambda made: made[0].replace("{id}", made[1]).replace("{number}", made[2]) + made[3]
    )
    methods = st.sampled_from(("GET", "GET", "POST", "POST", "PATCH", "DELETE", "HEAD"))
    given = strategies.bodies(strategies.REQUESTS).map(lambda body: POISON + body[1:] if body[:1] == b"{" else body)
    keys = st.sampled_from((*WEAK, _session(target.web), STRONG, STRONG))

    def send(made: tuple[str, str, bytes, list[bytes], bytes]) -> None:
        method, path, body, heads, key = made
        acts = method != "GET" and any(word in path for word in ("refresh", "replay"))  # without a look at the body
        target.send(request(method, path, WEAK[-1] if acts else key, *heads, body=body), whole=method != "HEAD")

    made = st.tuples(methods, paths, given, _few(strategies.headers()), keys)
    strategies.each(made, stage.of(3300, 250), send, 10)


def _few(found: st.SearchStrategy[list[bytes]]) -> st.SearchStrategy[list[bytes]]:
    """Mostly none: a header of the corpus often ends the matter."""
    return st.just([]) | st.just([]) | found.map(lambda heads: [head for head in heads if len(head) < 4000])


def _session(web: Web) -> bytes:
    """The cookie of somebody who may look at the dashboard, and who sends no form of it."""
    answer = web.http.post("/sign-in", data={"key": READER}, headers={"origin": web.url})
    assert answer.status_code == 303, answer.text
    return b"cookie: " + answer.headers["set-cookie"].partition(";")[0].encode()


def _routes(web: Web) -> list[Route]:
    """Every route of the API, as the service itself has them."""
    deployment, found = Deployment(web.settings), list[Route]()
    for module in pkgutil.iter_modules(service.api.__path__):
        routes = getattr(importlib.import_module(f"service.api.{module.name}"), "routes", None)
        if routes and list(routes.__annotations__) == ["deployment", "return"]:
            found += routes(deployment)
    return [route for route in found if not route.path.endswith("z")]


def _understandable(stage: Stage, target: Target) -> None:
    """Odd values in what is understood or accepted all the same: it may change things, and must not break any."""
    chance = random.Random(SEED)
    for vendor, body in chance.sample(target.understood, min(len(target.understood), stage.of(1500, 80))):
        job = target.web.track(vendor)
        target.callback(vendor, body, token=job["callback_url"].removeprefix(target.web.url))
        for path in (f"/v1/jobs/{job['id']}", f"/v1/jobs/{job['id']}/timeline"):
            if target.send(request("GET", path, STRONG)) != 200:
                target.faults.append(f"{path} cannot be read after {body[:300]!r}")
    sound = [json.dumps({name: body[name] for name in body if name != "metadata"}) for body in strategies.REQUESTS[:3]]
    odd = strategies.mangled([{"metadata": {"a": "b", "c": {"d": "e"}}}])
    accepted = st.tuples(strategies.one_of(sound), odd).map(lambda pair: pair[0][:-1].encode() + b"," + pair[1][1:])
    requests = strategies.bodies(strategies.REQUESTS) | accepted

    def submit(body: bytes) -> None:
        target.send(request("POST", "/v1/jobs", STRONG, body=body))

    strategies.each(requests, stage.of(1000, 60), submit, 20)
    for path in ("/v1/jobs?limit=100", "/v1/quarantine?limit=100", "/v1/costs"):
        if target.send(request("GET", path, STRONG)) != 200:
            target.faults.append(f"{path} cannot be read afterwards")
    target.web.events()  # each is JSON
