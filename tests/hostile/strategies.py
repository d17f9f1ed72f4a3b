"""Hostile bodies, paths and headers, made up by hypothesis out of the written ones and the vendors' own callbacks."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, TypeVar
from urllib.parse import quote

import hypothesis
from hypothesis import strategies as st

from tests.support.vendors import ALL

from . import corpus
from .stage import SEED

T = TypeVar("T")

#: The fixtures' callbacks, by vendor.
CALLBACKS: Final[dict[str, list[Any]]] = {}
for fixture in ALL:
    if fixture.call == "callback" and isinstance(fixture.data.get("body"), dict) and fixture.data["body"]:
        CALLBACKS.setdefault(fixture.slug, []).append(fixture.data["body"])

#: What the API takes.
REQUESTS: Final[list[Any]] = [
    {"vendor": "kitta", "vendor_job_id": "a", "model": "kitta-lip-sync-v1", "metadata": {"order": {"lines": [1, "a"]}}},
    {
        "vendor": "chanjing",
        "input": {"video_url": "https://a.example/a.mp4", "text": "a", "voice": "b", "video_duration_seconds": 1.5},
        "vendor_input": {"screen_width": 1, "drive_mode": "random", "speed": 1},
        "metadata": {"a": [1]},
    },
    {"vendor": "apimodels", "model": "kling-advanced-lip-sync", "input": {"audio_url": "https://a.example/a.mp3"}},
    {"vendor_job_id": "b", "metadata": {"a": {"b": "c"}}},
    {"action": "adopt", "vendor_job_id": "c"},
]


def each(strategy: st.SearchStrategy[Any], times: int, use: Callable[[Any], None], salt: int) -> None:
    """Call `use` with so many examples, the same in every run."""
    warnings.simplefilter("ignore", hypothesis.errors.HypothesisWarning)

    @hypothesis.seed(SEED + salt)
    @hypothesis.settings(
        max_examples=times,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(strategy)
    def example(made: Any) -> None:
        use(made)

    example()


def one_of(values: Sequence[T]) -> st.SearchStrategy[T]:
    """Any of them; unlike `sampled_from`, it does not spell all of them out wherever it is named."""
    return st.integers(0, len(values) - 1).map(lambda number: values[number])


def strings() -> st.SearchStrategy[bytes]:
    """JSON strings: any text, with surrogates and control characters, escaped or as it is."""
    anything = st.text(st.characters(codec=None), max_size=12)
    escaped = anything.map(lambda text: json.dumps(text).encode())
    plain = anything.map(lambda text: json.dumps(text, ensure_ascii=False).encode(errors="surrogatepass"))
    return escaped | plain | st.binary(max_size=8).map(lambda raw: b'"%b"' % raw)


def numbers() -> st.SearchStrategy[bytes]:
    return (st.integers() | st.floats()).map(lambda number: json.dumps(number).encode())


def values() -> st.SearchStrategy[bytes]:
    """JSON, or nearly."""
    written = one_of([value for value in corpus.VALUES if len(value) < 1000])
    return st.recursive(
        written | strings() | numbers(),
        lambda inner: (
            st.lists(inner, max_size=4).map(lambda items: b"[%b]" % b",".join(items))
            | st.lists(st.tuples(strings(), inner), max_size=4).map(_joined)
        ),
        max_leaves=6,
    ) | one_of(corpus.VALUES)


def _joined(pairs: list[tuple[bytes, bytes]]) -> bytes:
    return b"{%b}" % b",".join(b"%b:%b" % pair for pair in pairs)


@st.composite
def mangled(draw: st.DrawFn, originals: list[Any]) -> bytes:
    """An honest body with a few of its values replaced."""
    body, holes = copy.deepcopy(draw(one_of(originals))), dict[bytes, bytes]()
    for number in range(draw(st.integers(1, 3))):
        holder, place = draw(one_of(list(_places(body))))
        holder[place] = f"@@{number}@@"
        holes[b'"@@%d@@"' % number] = draw(values())
    text = json.dumps(body).encode()
    for hole, value in holes.items():
        text = text.replace(hole, value)
    return text


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    for place in tree if isinstance(tree, dict) else range(len(tree)):
        yield tree, place
        if isinstance(tree[place], dict | list):
            yield from _places(tree[place])


@st.composite
def damaged(draw: st.DrawFn, bodies: st.SearchStrategy[bytes]) -> bytes:
    """A body that may be cut, doubled, or have bytes in it that nobody put there."""
    body = draw(bodies)
    at = draw(st.integers(0, min(len(body), 2000)))
    kind = draw(st.sampled_from(("whole",) * 5 + ("cut", "noise", "mark", "twice")))
    return {
        "whole": body,
        "cut": body[:at],
        "noise": body[:at] + draw(st.binary(max_size=4)) + body[at:],
        "mark": b"\xef\xbb\xbf" + body,
        "twice": body + body,
    }[kind]


def bodies(originals: list[Any]) -> st.SearchStrategy[bytes]:
    return damaged(mangled(originals) | mangled(originals) | values() | one_of(list(corpus.BODIES.values())))


def segments(known: list[str]) -> st.SearchStrategy[str]:
    """A piece of a path: something known, something odd, or both."""
    odd = st.text(st.characters(codec="utf-8"), max_size=10).map(lambda text: quote(text, safe="%./;~"))
    tricks = st.sampled_from(["%2e%2e", "..", ".", "%00", "%2f", "", "%ff", "%c0%af", "%", "*", "-1", "0", "a" * 300])
    return one_of(known) | odd | tricks | st.tuples(one_of(known), tricks).map("".join)


def queries() -> st.SearchStrategy[str]:
    names = st.sampled_from(["limit", "cursor", "vendor", "status", "archive", "vendor_job_id", "group", "since", "a"])
    odd = st.text(st.characters(codec="utf-8"), max_size=8).map(quote)
    tricks = odd | st.sampled_from(["1", "-1", "0", "100", "kitta", "%ff", "%00", "job_" + "0" * 24, "9" * 400])
    pairs = st.lists(st.tuples(names | odd, tricks).map("=".join), max_size=4)
    return pairs.map(lambda found: "?" + "&".join(found) if found else "")


def headers() -> st.SearchStrategy[list[bytes]]:
    """Headers in good form; names and values that no parser takes are in the written requests."""
    name = st.text("abcdefghijklmnopqrstuvwxyz-", min_size=1, max_size=12).map(lambda text: f"x-{text}".encode())
    value = st.binary(max_size=20).map(lambda raw: bytes(byte for byte in raw if byte >= 32 and byte != 127))
    return st.lists(one_of(corpus.HEADERS) | st.tuples(name, value).map(b": ".join), max_size=3)
