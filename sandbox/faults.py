"""The fault words: what can be asked to go wrong, where a request may ask for it, and what stands ordered.

Owns the words and the board of orders. What a word does is decided where it happens: callbacks.py for
callbacks, media/ for downloads, vendor.py for whole vendors, jobs.py for the course of a job.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote

#: What was asked of one job: word → its number, or None where none was given.
Faults = dict[str, float | None]

#: Faults of one job, asked for in the submission itself or ordered for the next submissions.
JOB_WORDS: Final = frozenset(
    {
        "callback_doubled",
        "callback_early",
        "callback_forged",
        "callback_garbled",
        "callback_late",
        "callback_lost",
        "callback_reordered",
        "download_500",
        "download_broken",
        "download_slow",
        "faces",
        "job_failed",
        "job_stuck",
        "link_dead",
        "link_expired",
        "no_face",
        "seconds",
        "submit_500",
        "submit_hangs",
        "submit_lost",
        "submit_refused",
        "unknown_status",
    }
)
#: Faults of a whole vendor: every API call of it is answered so.
VENDOR_WORDS: Final = frozenset({"vendor_500", "vendor_down", "vendor_garbage", "vendor_hangs", "vendor_rate_limited"})
WORDS: Final = JOB_WORDS | VENDOR_WORDS

#: Words that are nothing without a number, and all that may have one (`callback_late:3`): of seconds, or of faces.
_NEEDS_NUMBER: Final = frozenset({"faces", "seconds"})
_NUMBERED: Final = _NEEDS_NUMBER | {"callback_late", "download_slow", "unknown_status"}

# As a parameter of any URL (or of an id that looks like one), or as a literal in any text. The literal needs a letter
# behind its colon: a host called `sandbox` may have a port.
_ASKED: Final = re.compile(r"(?:[?&]sandbox=|\bsandbox:(?=[a-z]))([\w:.,%]*)", re.ASCII)
_ONE: Final = re.compile(r"(?P<word>[a-z_0-9]+)(?::(?P<number>\d+(?:\.\d+)?))?")


class UnknownFault(ValueError):
    """A fault word that the sandbox does not have, or a number where none belongs."""


def parse(words: Iterable[str]) -> Faults:
    """The faults in `words`, each `word` or `word:number`. Raises `UnknownFault`."""
    found: Faults = {}
    for text in words:
        match = _ONE.fullmatch(text)
        if match is None or match["word"] not in WORDS:
            raise UnknownFault(f"unknown sandbox fault {text!r}; the words are: {', '.join(sorted(WORDS))}")
        word, number = match["word"], match["number"]
        if (number and word not in _NUMBERED) or (word in _NEEDS_NUMBER and not number):
            raise UnknownFault(f"sandbox fault {text!r}: {'needs a' if word in _NEEDS_NUMBER else 'takes no'} number")
        found[word] = float(number) if number else None
    return found


def asked_in(value: object) -> Faults:
    """The faults that any string anywhere in a JSON value asks for. Raises `UnknownFault`."""
    lists = (unquote(match[1]).split(",") for text in _strings(value) for match in _ASKED.finditer(text))
    return parse(word.strip(".:") for words in lists for word in words if word.strip(".:"))


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)


@dataclass
class Order:
    """Faults that were ordered at `/_sandbox/faults`."""

    vendor: str | None  #: None is every vendor
    faults: Faults
    left: int | None  #: submissions (or, for a vendor's faults, API calls) still to hit; None is all until deleted

    def fits(self, vendor: str) -> bool:
        return self.vendor in (None, vendor) and self.left != 0

    def use(self) -> Faults:
        if self.left is not None:
            self.left -= 1
        return self.faults


class Board:
    """What stands ordered, in the order it was ordered."""

    def __init__(self) -> None:
        self._orders: list[Order] = []

    def place(self, vendor: str | None, faults: Faults, count: int | None) -> None:
        """Faults of jobs and faults of vendors are used up by different calls, so each kind has its own count."""
        for words in (JOB_WORDS, VENDOR_WORDS):
            part = {word: number for word, number in faults.items() if word in words}
            if part:
                self._orders.append(Order(vendor, part, count))

    def outage(self, vendor: str) -> str | None:
        """The vendor's fault that hits the API call that is being made, if any."""
        for order in self._fitting(vendor, VENDOR_WORDS):
            return next(iter(order.use()))
        return None

    def for_submission(self, vendor: str) -> Faults:
        """The faults that hit the submission that is being made; several orders add up."""
        found: Faults = {}
        for order in self._fitting(vendor, JOB_WORDS):
            found |= order.use()
        return found

    def orders(self) -> list[Order]:
        return [order for order in self._orders if order.left != 0]

    def clear(self) -> None:
        self._orders.clear()

    def _fitting(self, vendor: str, words: frozenset[str]) -> Iterator[Order]:
        return (order for order in self._orders if order.fits(vendor) and not words.isdisjoint(order.faults))
