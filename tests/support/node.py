"""Node with the packages of tests/node, as its lock file has them: subscribers and parsers not written in Python."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest

from .processes import ROOT, environment

FOLDER: Final = ROOT / "tests" / "node"


def installed() -> str:
    """The path of node, once the packages are there; tests that need them are skipped where there is no node."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if not (node and npm):
        pytest.skip("no node and npm on this machine")
    lock, known = FOLDER / "package-lock.json", FOLDER / "node_modules" / ".package-lock.json"
    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)  # tests run in several processes
        if not known.exists() or known.stat().st_mtime < lock.stat().st_mtime:
            npm_ci = [npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
            found = subprocess.run(npm_ci, cwd=FOLDER, capture_output=True, text=True, check=False, timeout=300)
            assert found.returncode == 0, found.stderr
            known.touch()
    return node


def run(script: str | Path, *, stdin: str = "", env: dict[str, str] | None = None) -> str:
    """What a script of tests/node prints."""
    command = [installed(), str(FOLDER / script)]
    how: Any = {"input": stdin, "capture_output": True, "text": True, "timeout": 60}
    found = subprocess.run(command, cwd=FOLDER, env=environment(env), check=False, **how)
    assert found.returncode == 0, found.stderr
    return str(found.stdout)
