"""Everything that a deployment lets be seen, and every secret that must not be in it."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Final

import httpx

from service.jobs.tokens import SHARED, Tokens
from service.vendors import VENDORS

#: Of a MAC so many characters are a leak: nobody guesses what is missing of the beginning, nor of the end.
_PIECE: Final = 16


@dataclass
class Secrets:
    """What must not be seen. Made up for this run, and like nothing else in it."""

    keys: tuple[str, str] = field(default_factory=lambda: (secrets.token_urlsafe(32), secrets.token_urlsafe(32)))
    api_key: str = field(default_factory=lambda: f"ck_{secrets.token_hex(20)}")
    reader: str = field(default_factory=lambda: f"ck_{secrets.token_hex(20)}")
    redis: str = field(default_factory=lambda: f"pw_{secrets.token_hex(20)}")
    vendors: dict[str, str] = field(
        default_factory=lambda: {
            name: f"vc_{secrets.token_hex(20)}" for vendor in VENDORS.values() for name in vendor.CREDENTIALS[-1]
        }
    )

    def pieces(self, job_ids: dict[str, str]) -> dict[bytes, str]:
        """What to look for, and what it is a part of; `job_ids` → vendors."""
        plain = {"an API key": self.api_key, "a reader's API key": self.reader, "the password of Redis": self.redis}
        plain |= {f"SECRET_KEYS {number}": key for number, key in enumerate(self.keys)} | self.vendors
        found = {secret.encode(): name for name, secret in plain.items()}
        for key in self.keys:
            tokens = Tokens((key,), "")
            for vendor, subject in [*product(VENDORS, [SHARED]), *((vendor, id_) for id_, vendor in job_ids.items())]:
                mac = tokens.url(vendor, subject).rpartition(".")[2].encode()
                found |= {
                    mac[:_PIECE]: f"the MAC of {vendor}/{subject}",
                    mac[-_PIECE:]: f"the MAC of {vendor}/{subject}",
                }
        return found


class Outputs:
    """Everything that anybody might get to see."""

    def __init__(self) -> None:
        self._seen: list[tuple[str, bytes, bytes]] = []
        self.answers = 0

    @property
    def size(self) -> int:
        return sum(len(what) for _, what, _ in self._seen)

    def add(self, where: str, what: bytes, asked: bytes = b"") -> None:
        """`asked` is what the one who sees it has just said himself: hearing that again tells him nothing."""
        self._seen.append((where, what, asked))

    def heard(self, answer: httpx.Response) -> None:
        """An answer of the API, but for the one that creates a job: that has its callback URL."""
        answer.read()
        self.answers += 1
        request, path = answer.request, answer.request.url.path
        if request.method == "POST" and path == "/v1/jobs" and answer.is_success:
            return
        asked = b" ".join((str(request.url).encode(), repr(request.headers).encode(), request.content))
        said = repr(answer.headers).encode() + answer.content
        self.add(f"{request.method} {path.partition('.')[0]}", said, asked)

    def searched(self, pieces: Mapping[bytes, str]) -> list[str]:
        """What was found where."""
        found = {
            f"{name} in {where}"
            for where, what, asked in self._seen
            for piece, name in pieces.items()
            if piece in what and piece not in asked
        }
        return sorted(found)
