"""Callback URLs: a job's id (or `shared`) and a MAC over it, which is all that proves where a callback came from."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from typing import Final

SHARED: Final = "shared"  #: stands in for the job's id in the one URL that a vendor's own dashboard takes

#: Whatever looks like a token's MAC, wherever it turns up: vendors echo the request, and with it our callback URL. A
#: garbled body may end in the middle of one. Subscribers may tell the secret, where a signature is wrong.
_MACS: Final = (
    (b"job_", re.compile(rb"(job_[0-9a-v]{24}\.)[A-Za-z0-9_-]{1,43}")),
    (b"shared.", re.compile(rb"(shared\.)(?=[A-Za-z0-9_-]{16})[A-Za-z0-9_-]{1,43}")),
    (b"whsec_", re.compile(rb"(whsec_)[A-Za-z0-9+/=]{1,88}")),
)
#: Characters of a token that are looked at; the longest that we make has 72.
_LOOKED_AT: Final = 128
#: So much of one that the rest might be guessed, for what has to stay as it was said: file names may look a little like
#: tokens. Vendors cut their words off anywhere.
_MOST_OF_A_MAC: Final = (
    (b"job_", re.compile(rb"(job_[0-9a-v]{24}\.)[A-Za-z0-9_-]{16,43}")),
    (b"shared.", re.compile(rb"(shared\.)[A-Za-z0-9_-]{36,43}(?![A-Za-z0-9_-])")),
)


class Tokens:
    """Makes and checks the tokens of callback URLs. The first key signs, every key verifies."""

    def __init__(self, secret_keys: tuple[str, ...], public_url: str) -> None:
        # Keyed once: copying a prepared HMAC costs less than making one per callback.
        self._macs = [hmac.new(key.encode(), b"callsheet callback\0", hashlib.sha256) for key in secret_keys]
        self._base = public_url.rstrip("/")

    def url(self, vendor: str, job_id: str = SHARED) -> str:
        """The callback URL to hand to the vendor. It is a secret."""
        return f"{self._base}/callbacks/{vendor}/{job_id}.{_sign(self._macs[0], vendor, job_id)}"

    def verify(self, vendor: str, token: str) -> str | None:
        """The job id (or `shared`) that the token was made for, or None.

        The same work is done whatever is wrong, with every key, whatever came of the one before: time tells nothing.
        """
        subject, _, mac = token[:_LOOKED_AT].rpartition(".")
        given = mac.encode(errors="replace")
        good = False
        for keyed in self._macs:
            good |= hmac.compare_digest(_sign(keyed, vendor, subject).encode(), given)
        return subject if good else None


def _sign(keyed: hmac.HMAC, vendor: str, subject: str) -> str:
    mac = keyed.copy()
    mac.update(f"{vendor}/{subject}".encode(errors="replace"))
    return base64.urlsafe_b64encode(mac.digest()).rstrip(b"=").decode()


def redact(raw: bytes) -> bytes:
    """Evidence or a log line with the MAC of every callback token in it, or a part of one, and secrets blanked out."""
    return _blanked(raw, _MACS)


def redact_whole(said: bytes) -> bytes:
    """What somebody said about a job, with every callback token in it, or most of one, blanked out."""
    return _blanked(said, _MOST_OF_A_MAC)


def may_hold_a_secret(said: bytes) -> bool:
    """Whether there is anything in it for the two to blank out."""
    return any(begins in said and mac.search(said) for begins, mac in _MACS)


def _blanked(said: bytes, macs: tuple[tuple[bytes, re.Pattern[bytes]], ...]) -> bytes:
    for begins, mac in macs:
        if begins in said:  # a tenth of what the pattern costs
            said = mac.sub(_blank, said)
    return said


def _blank(found: re.Match[bytes]) -> bytes:
    return found[1] + b"***"
