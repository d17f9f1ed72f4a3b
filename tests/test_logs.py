"""Log lines as another process writes them: each a JSON object, whoever it is from, and never a callback token."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import datetime
from functools import cache
from textwrap import dedent
from typing import Any, Final

import msgspec
import pytest

from service.jobs.tokens import Tokens
from tests.support.processes import ROOT, environment

JOB: Final = "job_0123456789abcdefghijklmn"
URL: Final = Tokens(("a key",), "https://callsheet.example").url("kitta", JOB)
SHARED_URL: Final = Tokens(("a key",), "https://callsheet.example").url("kitta")
MACS: Final = tuple(url.rpartition(".")[2] for url in (URL, SHARED_URL))

#: Logging is set up once a process and for all of it, so it is tried in processes of its own: one for many snippets.
PROGRAM: Final = """
import json, logging, logging.config, sys, traceback
import structlog
from service import logs
from service.jobs.tokens import redact

format_, urls, snippets = json.load(sys.stdin)
url, shared_url = urls
logs.configure(format_, redact)
log = logs.get("tests")
for number, snippet in enumerate(snippets):
    try:
        exec(compile(snippet, f"snippet {number}", "exec"), globals())
    except Exception as error:
        print("raised:", ascii(error))
    structlog.contextvars.clear_contextvars()
    print(flush=True, end="\\0")
"""


@cache
def written(format_: str, *snippets: str) -> tuple[str, ...]:
    """What each of the snippets writes in a process that logs in this format."""
    given = json.dumps([format_, [URL, SHARED_URL], [dedent(snippet) for snippet in snippets]]).encode()
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, input=given, cwd=ROOT, env=environment(), capture_output=True, check=False)
    assert (done.returncode, done.stderr.decode()) == (0, "")
    return tuple(done.stdout.decode().split("\0")[:-1])


def lines(snippet: str) -> list[dict[str, Any]]:
    """What a snippet logs, decoded line by line."""
    [found] = written("json", snippet)
    return decoded(found)


def decoded(found: str) -> list[dict[str, Any]]:
    """Line by line, by a reader that takes neither NaN nor half a surrogate pair."""
    return [msgspec.json.decode(line) for line in found.removesuffix("\n").split("\n") if found]


def test_a_line_is_one_json_object_that_says_when_where_and_what() -> None:
    [line] = lines(f'log.info("callback", job_id={JOB!r}, vendor="kitta", bytes=12, ms=0.5, problem=None)')
    assert list(line) == ["at", "level", "part", "event", "job_id", "vendor", "bytes", "ms", "problem"]
    assert datetime.fromisoformat(line.pop("at")).utcoffset() is not None
    assert line == {
        "level": "info",
        "part": "tests",
        "event": "callback",
        "job_id": JOB,
        "vendor": "kitta",
        "bytes": 12,
        "ms": 0.5,
        "problem": None,
    }


def test_what_is_bound_to_the_context_is_in_every_line_whoever_writes_it() -> None:
    ours, theirs = lines("""
        structlog.contextvars.bind_contextvars(trace_id="t-1")
        log.bind(vendor="kitta").warning("poll")
        logging.getLogger("some.library").warning("something")
    """)
    assert (ours["trace_id"], ours["vendor"], ours["level"]) == ("t-1", "kitta", "warning")
    assert theirs["trace_id"] == "t-1"


def test_a_line_stays_one_line_whatever_is_in_it() -> None:
    text = 'a\nb\r\n\x00\x1b[31m "quoted" \\ \u2028 🎬 \ufffe'
    [line] = lines(f"log.info({text!r}, detail={text!r}, **{{{text!r}: 1}})")
    assert (line["event"], line["detail"], line[text]) == (text, text, 1)


ODD_VALUES: Final = (
    "object()",
    "{1: {2: (3,)}}",
    "{(1, 2): 3}",
    "{'a', 'b'}",
    "float('nan')",
    "10**40",
    "b'bytes'",
    "ValueError('bad')",
    "logging.INFO",
    "sys.version_info",
    "type",
    "'\\ud800 alone'",
    "['\\udcff', float('nan'), {'\\ud800': b'x'}]",
    "__import__('datetime').datetime.now()",
    "__import__('pathlib').Path('/srv')",
    "__import__('service.model').model.Status.QUEUED",
    "__import__('service.model').model.Output(url='https://cdn.example/1.mp4')",
)


@pytest.mark.parametrize("value", ODD_VALUES)
def test_no_value_stops_a_line_from_being_written(value: str) -> None:
    snippets = [f'log.info("odd", value={value})' for value in ODD_VALUES]
    [line] = decoded(written("json", *snippets)[ODD_VALUES.index(value)])
    assert line["event"] == "odd"
    assert "value" in line


def test_what_is_less_than_info_is_not_written() -> None:
    assert lines('log.debug("hidden"); logging.getLogger("some.library").debug("hidden")') == []


# -- the standard library's records ----------------------------------------------------------------------


def test_records_of_the_standard_library_come_out_in_the_same_form() -> None:
    found = lines("""
        logging.getLogger("uvicorn.error").info("Started server process [%d]", 7)
        logging.getLogger("some.library").warning("%s is %r", "x", {"y": 1})
        logging.getLogger().error("from the root")
        logging.getLogger("rq.worker").warning("kept")
    """)
    assert [(line["level"], line["event"]) for line in found] == [
        ("info", "Started server process [7]"),
        ("warning", "x is {'y': 1}"),
        ("error", "from the root"),
        ("warning", "kept"),
    ]
    assert all(datetime.fromisoformat(line["at"]).utcoffset() is not None for line in found)
    assert all(list(line)[:4] == ["at", "level", "part", "event"] for line in found)


@pytest.mark.parametrize("when", ["before", "after"])
def test_uvicorns_own_handlers_do_not_write_a_second_line(when: str) -> None:
    """uvicorn sets up its logging before it makes the application, whose settings set up ours."""
    own = "import uvicorn.config; logging.config.dictConfig(uvicorn.config.LOGGING_CONFIG)"
    code = f"""
        {own if when == "before" else ""}
        logs.configure("json", redact)
        logging.getLogger("uvicorn.error").info("Started")
        logging.getLogger("uvicorn").warning("Shutting down")
    """
    assert [line["event"] for line in lines(code)] == ["Started", "Shutting down"]


@pytest.mark.parametrize("name", ["httpx", "httpcore.connection", "uvicorn.access", "rq.worker", "asyncio"])
def test_what_libraries_say_about_every_request_is_left_to_our_own_lines(name: str) -> None:
    assert lines(f"logging.getLogger({name!r}).info('a request')") == []


def test_a_traceback_is_part_of_its_line() -> None:
    ours, theirs = lines("""
        try:
            {}["missing"]
        except KeyError:
            log.exception("a turn failed", vendor="kitta")
            logging.getLogger("some.library").exception("theirs")
    """)
    for line in (ours, theirs):
        assert line["level"] == "error"
        assert line["exception"].startswith("Traceback (most recent call last):")
        assert line["exception"].endswith("KeyError: 'missing'")
    assert ours["vendor"] == "kitta"


# -- callback tokens ---------------------------------------------------------------------------------------

TOKENS: Final = {
    "in a message": "log.info(f'POST {url} and {shared_url}')",
    "in a value": "log.info('x', path=url, other=shared_url)",
    "in a nested value": "log.info('x', request={'headers': [url, {'referer': shared_url}]})",
    "in a key": "log.info('x', **{url: 1, shared_url: 2})",
    "in an object": "log.info('x', error=ValueError(url), other=KeyError(shared_url))",
    "in what is bound": "log.bind(url=url).bind(other=shared_url).info('x')",
    "in a record": "logging.getLogger('uvicorn.error').warning('%s - \"POST %s\"', shared_url, url)",
    "in a format": "logging.getLogger('some.library').warning(url + shared_url)",
    "in a traceback": """
        def handle(callback_url, path):
            secret = [callback_url, path]
            raise ValueError(f'cannot deliver to {callback_url} or {path}')
        try:
            handle(url, shared_url)
        except ValueError:
            log.exception('x')
            log.info('y', exc_info=True)
            logging.getLogger('some.library').exception('z')
    """,
    "in a chain of exceptions": """
        try:
            try:
                raise KeyError(url)
            except KeyError as error:
                raise ValueError(shared_url) from error
        except ValueError:
            log.exception('x')
    """,
    "in a long traceback": """
        try:
            raise ValueError(' '.join(['x' * 30, url, 'y' * 50, shared_url]))
        except ValueError:
            log.exception('x')
    """,
}


@pytest.mark.parametrize("format_", ["json", "console"])
@pytest.mark.parametrize("where", list(TOKENS))
def test_no_token_is_ever_written(where: str, format_: str) -> None:
    found = written(format_, *TOKENS.values())[list(TOKENS).index(where)]
    assert found
    for mac in MACS:
        parts = (mac[start : start + 8] for start in range(len(mac) - 7))
        assert not [part for part in parts if part in found]


def test_what_is_blanked_out_still_says_whose_it_was() -> None:
    [line] = lines("log.info('x', path=url, other=shared_url)")
    assert line["path"] == f"https://callsheet.example/callbacks/kitta/{JOB}.***"
    assert line["other"] == "https://callsheet.example/callbacks/kitta/shared.***"


# -- for people ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("format_", "is_json"), [("json", True), ("auto", True), ("console", False)])
def test_without_a_terminal_lines_are_json_unless_asked_otherwise(format_: str, is_json: bool) -> None:
    [found] = written(format_, 'log.info("callback", vendor="kitta")')
    assert found.startswith("{") is is_json
    assert "callback" in found
    assert "kitta" in found


def test_people_see_records_of_the_standard_library_too() -> None:
    snippet = "logging.getLogger('uvicorn.error').info('Started'); log.info('ours', detail='\\ud800')"
    [found] = written("console", snippet)
    assert "Started" in found
    assert "ours" in found
