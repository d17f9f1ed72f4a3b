"""Other people's stacks that take a callback and queue a task: `make bench-peers` installs them under var/peers.

From npm by the lock in peers/, from PyPI into an environment of their own. None of them is a dependency of anything.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.support.processes import ROOT

_HERE: Final = Path(__file__).parent / "peers"
_PLACE: Final = ROOT / "var" / "peers"
#: What FastAPI queues with, each in an environment of its own: they want different versions of redis-py.
_QUEUES: Final = {"celery": "celery[redis]", "arq": "arq"}


@dataclass(frozen=True)
class Peer:
    """A server that is started by `command --port N --redis-url URL`."""

    name: str
    command: Sequence[str | Path]
    folder: Path


SERVERS: Final = (
    Peer("Fastify + BullMQ", ("node", "fastify.mjs"), _PLACE),
    Peer("Express + BullMQ", ("node", "express.mjs"), _PLACE),
    Peer("FastAPI + Celery", (_PLACE / "celery" / "bin" / "python", "fastapi_peers.py", "celery"), _PLACE),
    Peer("FastAPI + arq", (_PLACE / "arq" / "bin" / "python", "fastapi_peers.py", "arq"), _PLACE),
)


def install() -> None:
    """Put them in place, where they are not yet as they should be."""
    _PLACE.mkdir(parents=True, exist_ok=True)
    for source in _HERE.iterdir():
        if source.is_file():
            shutil.copy(source, _PLACE)
    subprocess.run(["npm", "install", "--no-save", "--no-audit", "--no-fund", "--silent"], cwd=_PLACE, check=True)  # noqa: S607
    for folder, queue in _QUEUES.items():
        subprocess.run([sys.executable, "-m", "venv", _PLACE / folder], check=True)
        words = [
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "fastapi",
            "httptools",
            "uvicorn",
            "uvloop",
            queue,
        ]
        subprocess.run([_PLACE / folder / "bin" / "python", "-m", "pip", *words], check=True)
