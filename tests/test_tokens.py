"""Callback URLs: who holds one may speak of exactly the job it was made for, at exactly the vendor it was made for."""

from __future__ import annotations

import base64
import json
from typing import Final
from urllib.parse import quote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.jobs.tokens import SHARED, Tokens, redact

JOB: Final = "job_06hhgn2g01b72itgvotbapli"
OTHER: Final = "job_06hhgn2g05033c7fbtb4j2t6"
NOW: Final = Tokens(("the key of today", "the key of yesterday"), "https://callsheet.example")
BEFORE: Final = Tokens(("the key of yesterday",), "https://callsheet.example")
TOMORROW: Final = Tokens(("the key of tomorrow", "the key of today"), "https://callsheet.example")
STRANGER: Final = Tokens(("some other key",), "https://callsheet.example")


def token(tokens: Tokens, vendor: str = "kitta", job_id: str = JOB) -> str:
    """The last segment of the URL's path."""
    return urlsplit(tokens.url(vendor, job_id)).path.rpartition("/")[2]


GOOD: Final = token(NOW)
MAC: Final = GOOD.rpartition(".")[2]


@pytest.mark.parametrize("job_id", [JOB, OTHER, SHARED])
@pytest.mark.parametrize("vendor", ["kitta", "chanjing"])
def test_a_token_is_good_for_what_it_was_made_for(vendor: str, job_id: str) -> None:
    assert NOW.verify(vendor, token(NOW, vendor, job_id)) == job_id


@pytest.mark.parametrize("base", ["https://callsheet.example", "https://callsheet.example/"])
def test_the_url_is_below_the_public_one_and_needs_no_escaping(base: str) -> None:
    url = Tokens(("key",), base).url("kitta", JOB)
    assert url.startswith(f"https://callsheet.example/callbacks/kitta/{JOB}.")
    assert quote(url, safe=":/") == url


def test_without_a_job_the_url_is_the_vendors_shared_one() -> None:
    assert NOW.url("kitta").startswith("https://callsheet.example/callbacks/kitta/shared.")
    assert NOW.url("kitta") != NOW.url("chanjing").replace("chanjing", "kitta")


@pytest.mark.parametrize(
    ("signed_by", "read_by", "good"),
    [
        (BEFORE, NOW, True),  # the new key is first, URLs that are out there stay good
        (NOW, NOW, True),
        (NOW, TOMORROW, True),
        (BEFORE, TOMORROW, False),  # a key that was taken away
        (NOW, BEFORE, False),
        (TOMORROW, NOW, False),
        (STRANGER, NOW, False),
    ],
)
def test_keys_are_rotated_by_putting_the_new_one_first(signed_by: Tokens, read_by: Tokens, good: bool) -> None:
    assert read_by.verify("kitta", token(signed_by)) == (JOB if good else None)


def test_the_first_key_signs() -> None:
    assert token(NOW) == token(Tokens(("the key of today",), "https://elsewhere.example"))


REFUSED: Final = {
    "another job": f"{OTHER}.{MAC}",
    "another vendor": token(NOW, "chanjing"),
    "the shared token of another vendor": token(NOW, "chanjing", SHARED),
    "another key": token(STRANGER),
    "the MAC of the shared token": f"{JOB}.{token(NOW, job_id=SHARED).rpartition('.')[2]}",
    "a job's MAC for the shared token": f"shared.{MAC}",
    "shared alone": "shared",
    "shared without a MAC": "shared.",
    "the job alone": JOB,
    "the job without a MAC": f"{JOB}.",
    "the MAC alone": f".{MAC}",
    "empty": "",
    "a dot": ".",
    "truncated by one": GOOD[:-1],
    "truncated by half": GOOD[:-20],
    "extended": f"{GOOD}A",
    "padded": f"{GOOD}=",
    "with white space": f"{GOOD} ",
    "with a line's end": f"{GOOD}\n",
    "with a NUL": f"{GOOD}\0",
    "with a slash": f"{GOOD}/",
    "twice": f"{GOOD}.{MAC}",
    "in another case": f"{JOB}.{MAC.swapcase()}",
    "the job in another case": f"{JOB.upper()}.{MAC}",
    "in another alphabet": f"{JOB}.{base64.b64encode(base64.urlsafe_b64decode(MAC + '=')).decode()}",
    "percent-encoded": GOOD.replace(".", "%2E"),
    "unicode": f"{JOB}.{'é' * 43}",
    "unicode that looks alike": GOOD.replace("o", "\u043e"),
    "a unicode job": f"对口型.{MAC}",
    "lone surrogates": f"{JOB}.\ud800{MAC[1:]}",
    "a job of lone surrogates": f"\udcff.{MAC}",
    "long": "A" * 1_000_000,
    "zeros": f"{JOB}.{'A' * 43}",
}


@pytest.mark.parametrize("given_token", list(REFUSED.values()), ids=list(REFUSED))
def test_any_other_token_is_refused(given_token: str) -> None:
    assert NOW.verify("kitta", given_token) is None


@pytest.mark.parametrize("vendor", ["", "chanjing", "Kitta", "kitta ", "kitta\0", "k\ud800", "kitta/" + JOB[:4]])
def test_a_token_is_refused_at_any_other_vendor(vendor: str) -> None:
    assert NOW.verify(vendor, GOOD) is None


@given(st.text(), st.text())
def test_no_text_is_a_token_by_chance(vendor: str, text: str) -> None:
    assert NOW.verify(vendor, text) is None


@given(st.integers(0, len(GOOD) - 1), st.characters(codec="utf-8"))
def test_a_token_with_one_character_changed_is_refused(position: int, character: str) -> None:
    changed = GOOD[:position] + character + GOOD[position + 1 :]
    assert NOW.verify("kitta", changed) == (JOB if changed == GOOD else None)


def test_without_keys_nothing_is_good() -> None:
    assert Tokens((), "https://callsheet.example").verify("kitta", GOOD) is None


# -- what is written of tokens ----------------------------------------------------------------------------

URL: Final = NOW.url("kitta", JOB)


@pytest.mark.parametrize(
    "echo",
    [
        URL,
        json.dumps({"callback_url": URL}),
        json.dumps(json.dumps({"callback_url": URL})),
        json.dumps({"callback_url": URL}).replace("/", "\\/"),
        f"a={URL}&b={URL}",
        quote(URL, safe=""),
        f"{GOOD}{GOOD}",
        f'POST /callbacks/kitta/{GOOD} HTTP/1.1" 200',
        NOW.url("kitta"),
        f"{GOOD}=",
    ],
)
def test_the_mac_is_blanked_out_wherever_it_is_echoed(echo: str) -> None:
    written = redact(echo.encode())
    for url in (URL, NOW.url("kitta")):
        assert url.rpartition(".")[2].encode() not in written
    assert b"***" in written


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"no token",
        JOB.encode(),
        f"https://cdn.example/{JOB}/0.mp4?signature={'A' * 43}".encode(),
        b"shared.py",
        b"\xff\xfe\x00",
    ],
)
def test_what_is_no_token_stays_as_it_is(text: bytes) -> None:
    assert redact(text) == text


@pytest.mark.parametrize("left", [1, 20, 42])
def test_what_is_left_of_a_mac_where_an_echo_was_cut_is_blanked_out_too(left: int) -> None:
    assert redact(URL[: left - 43].encode()) == redact(URL.encode())


def test_what_is_blanked_out_still_says_whose_it_was() -> None:
    assert redact(URL.encode()) == f"https://callsheet.example/callbacks/kitta/{JOB}.***".encode()
