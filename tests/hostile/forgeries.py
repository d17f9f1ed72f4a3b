"""Forged callback tokens: none is accepted, and neither the answer nor its time tells what was wrong with one."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Final
from urllib.parse import quote

from service.jobs.tokens import SHARED, Tokens
from service.model import new_id
from service.vendors import VENDORS
from tests.support import state
from tests.support.servers import valkey_server
from tests.support.web import CREDENTIALS, SECRET_KEYS, Web, web_process

from .measure import rank_test
from .stage import SEED, Result, Stage
from .wire import Wire, ask, request

_ALPHABET: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
_ODD: Final = ("é", "中", "\u2024", "\uff0e", "\0", "\n", " ", "=", "+", "/", ".", "%2e", "\ud800", "\u202e", "")


def run(stage: Stage) -> Result:
    result = Result()
    _in_process(stage, result)
    env = dict(CREDENTIALS)
    with valkey_server(stage.folder) as valkey, web_process(stage.folder, {"REDIS_URL": valkey.url, **env}) as web:
        _over_http(stage, web, result)
        _unread(web, result)
        _timing(stage, web, result)
    return result


# -- what is forged -------------------------------------------------------------------------------------------


def forgeries(chance: random.Random, tokens: Tokens) -> Iterator[tuple[str, str]]:
    """Vendors and tokens, none of which `tokens` has made."""
    stranger = Tokens(("a stranger's key, as long as ours",), "https://callsheet.example")
    changes: list[Callable[[str, str], tuple[str, str]]] = [
        lambda vendor, token: (vendor, _flipped(chance, token)),
        lambda vendor, token: (vendor, token[: chance.randrange(len(token))]),
        lambda vendor, token: (vendor, token[chance.randrange(1, len(token)) :]),
        lambda vendor, token: (vendor, _with(token, chance, chance.choice(_ODD))),
        lambda vendor, token: (vendor, f"{token}{chance.choice(('=', 'A', '.', '/', ' ', chr(0), token))}"),
        lambda vendor, token: (vendor, f"{new_id('job', chance.randrange(2**41))}.{token.rpartition('.')[2]}"),
        lambda vendor, token: (chance.choice([slug for slug in VENDORS if slug != vendor]), token),
        lambda vendor, token: (chance.choice(("", "nobody", vendor.upper(), f"{vendor}/", f"{vendor}\0")), token),
        lambda vendor, token: (vendor, _token(stranger, vendor, token.rpartition(".")[0])),
        lambda vendor, token: (vendor, f"{SHARED if 'job_' in token else new_id('job', 1)}.{token.rpartition('.')[2]}"),
        lambda vendor, token: (vendor, "".join(chance.choices(_ALPHABET + "." + "é中", k=chance.randrange(200)))),
        lambda vendor, token: (vendor, "A" * chance.randrange(10_000)),
        lambda vendor, token: (vendor, token.swapcase()),
        lambda vendor, _: (vendor, ""),
    ]
    while True:
        vendor = chance.choice(list(VENDORS))
        subject = chance.choice((SHARED, new_id("job", chance.randrange(2**41))))
        token = _token(tokens, vendor, subject)
        forged = chance.choice(changes)(vendor, token)
        if forged != (vendor, token):  # a change may be none
            yield forged


def _token(tokens: Tokens, vendor: str, subject: str) -> str:
    return tokens.url(vendor, subject).rpartition("/")[2]


def _flipped(chance: random.Random, token: str) -> str:
    """One bit of one character is another."""
    at = chance.randrange(len(token))
    return token[:at] + chr(ord(token[at]) ^ 1 << chance.randrange(8)) + token[at + 1 :]


def _with(token: str, chance: random.Random, odd: str) -> str:
    at = chance.randrange(len(token))
    return token[:at] + odd + token[at + 1 :]


# -- none is accepted ------------------------------------------------------------------------------------------


def _in_process(stage: Stage, result: Result) -> None:
    tokens = Tokens(SECRET_KEYS, "https://callsheet.example")
    wanted = stage.of(100_000, 10_000)
    stage.say(f"{wanted} forged tokens")
    found = forgeries(random.Random(SEED), tokens)
    accepted = [token for _, (vendor, token) in zip(range(wanted), found, strict=False) if tokens.verify(vendor, token)]
    result.note(f"{wanted:,} forged tokens in process: {len(accepted)} accepted", fine=not accepted)


def _over_http(stage: Stage, web: Web, result: Result) -> None:
    tokens = Tokens(SECRET_KEYS, web.url)
    wanted, chance = stage.of(4_000, 400), random.Random(SEED + 1)
    stage.say(f"{wanted} forged tokens over HTTP")
    before = len(state.keys(web.redis))
    answers: dict[tuple[object, ...], int] = {}
    for _, (vendor, token) in zip(range(wanted), forgeries(chance, tokens), strict=False):
        path = f"/callbacks/{_quoted(vendor)}/{_quoted(token)}"
        answer = ask(web.port, request("POST", path, body=b'{"status": "failed"}'))
        headers = {name: value for name, value in answer.headers.items() if name != "date"} if answer else {}
        told = (answer.status, tuple(headers.items()), answer.body) if answer else (None,)
        answers[told] = answers.get(told, 0) + 1
    same = len(answers) == 1 and next(iter(answers))[0] == 404
    result.note(f"{wanted:,} over HTTP: {len(answers)} different answer(s), the date apart", fine=same)
    written = len(state.keys(web.redis)) - before
    result.note(f"keys written for them: {written}", fine=not written)


def _quoted(text: str) -> str:
    return quote(text.encode(errors="surrogatepass"), safe="")


def _unread(web: Web, result: Result) -> None:
    """Heads that announce a body which never comes: who waits for it gives no answer."""
    with Wire(web.port) as wire:
        wire.send(request("POST", "/callbacks/kitta/forged", "content-length: 1000000"))
        began = time.monotonic()
        answer = wire.answer(5)
    fine = answer is not None and answer.status == 404
    words = f"{(time.monotonic() - began) * 1000:.1f} ms" if fine else "never"
    result.note(f"a 404 without a byte of the body that was announced: after {words}", fine=fine)


# -- and its time tells nothing --------------------------------------------------------------------------------


def kinds(web: Web) -> dict[str, str]:
    """Targets by what is wrong with them, as long as each other where what they are allows it."""
    chance, url = random.Random(SEED), web.track("kitta")["callback_url"]
    path = url.removeprefix(web.url)
    front, _, mac = path.rpartition(".")
    near = f"{path[:-1]}{'A' if path[-1] != 'A' else 'B'}"
    garbage = "".join(chance.choices(_ALPHABET, k=len(mac)))
    return {
        "near": near,
        "near again": near,
        "far": f"{front}.{garbage}",
        "another vendor's": path.replace("/kitta/", "/chanjing/"),
        "unknown vendor": path.replace("/kitta/", "/quiet/"),
        "unknown job": f"/callbacks/kitta/{new_id('job', 1)}.{garbage}",
        "no dot": f"{front}_{garbage}",
        "no job": f"/callbacks/kitta/{garbage}",
        "long": f"{front}.{garbage * 20}",
        "empty": "/callbacks/kitta/",
    }


def _timing(stage: Stage, web: Web, result: Result) -> None:
    """All kinds in turn, in another order every time, on one connection; near against near is the noise."""
    targets = {name: request("POST", target, body=b"{}") for name, target in kinds(web).items()}
    chance, rounds = random.Random(SEED), stage.of(3000, 150)
    stage.say(f"the times of {rounds * len(targets)} refusals")
    times: dict[str, list[float]] = {name: [] for name in targets}
    with Wire(web.port) as wire:
        for number in range(rounds + 50):
            for name in chance.sample(list(targets), len(targets)):
                began = time.perf_counter()
                wire.send(targets[name])
                answer = wire.answer()
                if number >= 50 and answer:
                    times[name].append((time.perf_counter() - began) * 1e6)
    near, again = times["near"], times["near again"]
    noise, by_chance = rank_test(near, again)
    middle = statistics.median(near)
    result.note(
        f"a near miss takes {middle:.0f} µs; another group of them {statistics.median(again) - middle:+.1f} µs"
        f" (one is slower than the other in {noise:.1%}, p {by_chance:.2f})"
    )
    for name in [name for name in times if not name.startswith("near")]:
        share, p = rank_test(near, times[name])
        difference = statistics.median(times[name]) - middle
        # Far beyond what noise has ever been, and far below what a comparison byte by byte would need to show.
        fine = abs(difference) < max(stage.of(0.15, 0.5) * middle, 10) or name in ("long", "empty")
        result.note(f"{name}: {difference:+.1f} µs ({share:.1%}, p {p:.2f})", fine=fine)
