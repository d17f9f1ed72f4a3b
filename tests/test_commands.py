"""Every command that the documents show is run, in the order of its page, where there is something of everything.

What stands in a block of `sh`, and a code span of several words whose first is a program, is a command: a new one is
run without being named here. It fails by its exit code; curl by the status of the answer too, and what asks Redis for a
key of ours by an empty answer. One that does not end by itself runs on to the end of its page.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import shlex
import shutil
import subprocess
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import click
import httpx
import pytest
import redis

from service.cli import main as program
from service.jobs.scripts import pack_body
from service.jobs.tokens import Tokens
from tests.support.processes import ROOT, Processes, environment, eventually, free_port, processes_in
from tests.support.show import KEYS, Show, show

PAGES: Final = [
    path
    for pattern in ("*.md", "docs/*.md", "deploy/**/*")
    for path in sorted(ROOT.glob(pattern))
    if path.is_file() and path.name != "CHANGELOG.md"
]
#: Not on every machine; the first word of a command all the same.
ELSEWHERE: Final = ("heroku", "docker", "kubectl", "systemctl", "redis-cli")

#: What is not run, why, and what is run instead.
NOT_RUN: Final = (
    (
        r"make ([a-z-]+).*",
        "takes minutes or the network, or runs these tests: is there such a target?",
        r"make help | grep 'make \1 '",
    ),
    (r"heroku (?!run ).*", "takes an account", ""),
    (r"docker (?!compose .* exec ).*", "takes a container engine", ""),
    (r"kubectl .*", "takes a cluster", ""),
    (r"systemctl .*", "takes a machine that systemd has started", ""),
    (r"kill -9", "says how a process ends", ""),
)

#: What does not end by itself, and what it says once it works.
ENDLESS: Final = {
    r"(callsheet|python -m) sandbox .*": "sandbox listening on",
    r"honcho start.*|python -m workers\..*": '"(worker|poller) started"',
    r"(curl -N|callsheet events tail) .*": "job.stored",
}


def lines(block: str) -> Iterator[str]:
    """The commands of a block: a line, or several where quotes or a backslash make them one."""
    command = ""
    for line in textwrap.dedent(block).splitlines():
        command += re.sub(r" {2,}# .*", "", line) + "\n"
        with contextlib.suppress(ValueError):  # a quotation goes on in the next line
            if shlex.split(command) and not line.endswith("\\"):
                yield command.strip()
                command = ""
    assert not command.strip(), command


def shown(text: str) -> Iterator[str]:
    """The commands that a text shows, in its order."""
    for match in re.finditer(r"^ *```(\w*)\n(.*?)^ *```|`([^`]+)`", text, re.DOTALL | re.MULTILINE):
        language, block, span = match.groups()
        if language == "sh":
            yield from lines(block)
        elif block:
            yield from shown(block)
        elif span and " " in span and "·" not in span:
            first, *rest = re.sub(r"\s+#?\s*", " ", span).split(" ")
            if first in ELSEWHERE or shutil.which(first, path=environment()["PATH"]):
                yield " ".join((first, *rest))


def every() -> dict[str, str]:
    """Command → the first page that shows it."""
    found = dict[str, str]()
    for page in PAGES:
        for command in shown(page.read_text()):
            found.setdefault(command, page.relative_to(ROOT).as_posix())
    return found


EVERY: Final = every()


def instead(command: str) -> str:
    """What is run for a command: itself, unless it is one of NOT_RUN."""
    for pattern, _, other in NOT_RUN:
        if found := re.fullmatch(pattern, command, re.DOTALL):
            return found.expand(other)
    return command


class World:
    """What the commands are about, and where they are run: in a copy of the project, which they may write into."""

    def __init__(self, shown: Show, folder: Path, processes: Processes) -> None:
        self.show = shown
        self.folder = folder
        self.subscriber = f"{shown.subscriber}/taken"
        self.port = free_port()
        self._processes = processes
        self._numbers = itertools.count()
        self._page = ""
        self._cwd = self._checkout = folder / "checkout"
        ignored = shutil.ignore_patterns(".*", "__pycache__", "node_modules", "var", "build", "*.egg-info")
        shutil.copytree(ROOT, self._checkout, ignore=ignored)
        for place in ("opt", "etc/systemd/system"):
            (folder / place).mkdir(parents=True)
        (folder / ".curlrc").write_text("fail\nshow-error\n")
        sandbox = shown.environ["KITTA_BASE_URL"].removesuffix("/kitta")
        self.media = f"{sandbox}/media/input/"
        self.env = shown.environ | {
            "CALLSHEET_URL": shown.url,
            "CALLSHEET_API_KEY": KEYS["team"],
            "CURL_HOME": str(folder),
            "PORT": str(free_port()),
        }
        self._unwell(sandbox)
        self.letter_id = self._letter()

    def _order(self, vendor: str, faults: str = "") -> str:
        files = {"video_url": f"{self.media}face.mp4?sandbox={faults}", "audio_url": f"{self.media}voice.mp3"}
        return str(self._api("POST", "/v1/jobs", {"vendor": vendor, "input": files})["id"])

    def _api(self, method: str, path: str, body: object = None) -> Any:
        return self.show.api.request(method, path, json=body).raise_for_status().json()

    def _unwell(self, sandbox: str) -> None:
        """A vendor that answers nobody any more, and a fact about a job that nobody has registered."""
        stuck = self._order("chanjing", "job_stuck")
        eventually(lambda: self._api("GET", f"/v1/jobs/{stuck}")["vendor_job_id"], "the job at the vendor")
        httpx.post(f"{sandbox}/_sandbox/faults", json={"vendor": "chanjing", "faults": ["vendor_down"]})
        self._api("POST", f"/v1/jobs/{stuck}/refresh")
        self._order("chanjing")
        url = Tokens((self.env["SECRET_KEYS"],), self.show.url).url("lipsync_studio")
        assert httpx.post(url, json={"id": "nobody's", "status": "failed", "error": "x"}).is_success
        with redis.Redis.from_url(self.env["REDIS_URL"]) as client:
            eventually(lambda: client.exists("callsheet:vendor:chanjing"), "a poll that was not answered")

    def _letter(self) -> str:
        """One that today's code has learned to read."""
        job = self._api("POST", "/v1/jobs", {"vendor": "lipsync_studio"})
        assert httpx.post(job["callback_url"], content=b"nope").is_client_error
        letters = self._api("GET", "/v1/quarantine")["data"]
        letter_id = next(str(letter["id"]) for letter in letters if letter["job_id"] == job["id"])
        body = pack_body(b'{"id": "v", "status": "failed", "error": "x"}')
        with redis.Redis.from_url(self.env["REDIS_URL"]) as client:
            client.hset(f"callsheet:quarantine:{letter_id}", "body", body)
        return letter_id

    def job_id(self, command: str) -> str:
        if "PATCH" in command:
            return str(self._api("POST", "/v1/jobs", {"vendor": "lipsync_studio"})["id"])
        if "resolve" not in command:
            return self.show.jobs["stored"]
        lost = self._order("apimodels", "submit_lost,callback_lost")
        eventually(lambda: self._api("GET", f"/v1/jobs/{lost}")["status"] == "unconfirmed", "the lost answer")
        return lost

    def delivery_id(self) -> str:
        tries = self._api("GET", f"/v1/endpoints/{self.show.endpoints['taken']}/deliveries")["data"]
        return str(tries[0]["delivery_id"])

    def one_more(self) -> None:
        """A job from its beginning to its file at home: something to be heard of."""
        job_id = self._order("lipsync_studio")
        eventually(lambda: self._api("GET", f"/v1/jobs/{job_id}")["archive"] == "stored", "the file at home")

    def run(self, command: str, page: str = "") -> None:
        """AssertionError where it does not work."""
        if page != self._page:
            self._processes.stop()
            self._page, self._cwd = page, self._checkout
        endless = [said for pattern, said in ENDLESS.items() if re.fullmatch(pattern, command)]
        for pattern, other in SUBSTITUTES.items():
            if re.search(pattern, command):
                value = other if isinstance(other, str) else other(self, command)
                command = re.sub(pattern, lambda _, value=value: value, command)  # type: ignore[misc]
        if endless:
            self._start(command, endless[0])
        else:
            self._end(command)

    def _start(self, command: str, said: str) -> None:
        words = ["/bin/sh", "-c", f"exec {command}"]
        process = self._processes.start(f"endless-{next(self._numbers)}", words, env=self.env, cwd=self._cwd)

        def works() -> bool:
            heard = bool(re.search(said, process.output()))
            if not heard:
                self.one_more()
            return heard

        process.wait_until(works, said)

    def _end(self, command: str) -> None:
        words = ["/bin/sh", "-ec", f"{command}\npwd >&2"]
        how: dict[str, Any] = {"stdin": subprocess.DEVNULL, "capture_output": True, "errors": "replace", "timeout": 60}
        ended = subprocess.run(words, cwd=self._cwd, env=environment(self.env), check=False, **how)
        assert ended.returncode == 0, f"$ {command}\n{ended.stdout}{ended.stderr}"
        if re.match(r"redis-cli .* callsheet:", command):
            assert ended.stdout.strip() not in ("", "0"), f"$ {command}\nsays nothing"
        self._cwd = Path(ended.stderr.splitlines()[-1])


#: What means something else here: patterns, and what takes their place.
SUBSTITUTES: Final[dict[str, str | Callable[[World, str], str]]] = {
    r"\bVENDOR_JOB_ID\b": "v-1",
    r"\bJOB_ID\b": lambda world, command: world.job_id(command),
    r"\bENDPOINT_ID\b": lambda world, _: world.show.endpoints["taken"],
    r"\bDELIVERY_ID\b": lambda world, _: world.delivery_id(),
    r"\bLETTER_ID\b": lambda world, _: world.letter_id,
    r"\bVENDOR\b": "chanjing",
    r"\bNAME\b": "shop",
    r"\bN$": "1000",
    r"--scope …": "--scope read",
    r"\bURL$|https://shop\.example/hooks": lambda world, _: world.subscriber,
    r"https://example\.com/": lambda world, _: world.media,
    r"(?<=^python -m sandbox --port )8900": "0",
    r"\b8900\b": lambda world, _: str(world.port),
    r"(?<= )(?=/opt/|/etc/)": lambda world, _: str(world.folder),
    r"^(heroku run|docker compose \S+ \S+ exec web) (?=python )": "",
    r"^pip install ": "pip install --dry-run --no-index --no-build-isolation ",
    r"^redis-cli ": "redis-cli -e -u $REDIS_URL ",
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("world")
    with show(folder) as shown, processes_in(folder) as processes:
        yield World(shown, folder, processes)


@pytest.mark.parametrize(
    ("page", "command"),
    [(page, run) for command, page in EVERY.items() if (run := instead(command))],
    ids=(f"{page}: {' '.join(command.split())}" for command, page in EVERY.items() if instead(command)),
)
def test_what_a_document_shows_can_be_run(world: World, page: str, command: str) -> None:
    if command.startswith("redis-cli") and not shutil.which("redis-cli"):
        pytest.skip("no redis-cli on this machine")
    world.run(command, page)


@pytest.mark.parametrize(
    "command",
    [
        "callsheet jobs show job_unknown",
        "curl -s $CALLSHEET_URL/v1/melted",
        "redis-cli zcard callsheet:melted",
        "redis-cli melt",
        "honcho start --procfile melted",
    ],
)
def test_a_command_that_does_not_work_is_found(world: World, command: str) -> None:
    with pytest.raises(AssertionError):
        world.run(command)


@pytest.mark.parametrize("pattern", [*(pattern for pattern, _, _ in NOT_RUN), *ENDLESS, *SUBSTITUTES])
def test_nothing_is_declared_of_commands_that_no_document_shows(pattern: str) -> None:
    assert any(re.search(pattern, command) for command in EVERY)


def named(group: click.Group, *path: str) -> Iterator[str]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from named(command, *path, name)
        else:
            yield " ".join((*path, name))


def test_the_readme_names_every_command() -> None:
    [text] = re.findall(r"`callsheet (up · [^`]+)`", (ROOT / "README.md").read_text())
    told = set[str]()
    for words in re.split(r"\s+·\s+", text):
        [group, *rest] = words.split()
        names = rest[0].split("|") if rest and rest[0].islower() else []
        told |= {f"{group} {name}" for name in names} or {group}
    assert told == set(named(program))
