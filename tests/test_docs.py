"""What the documents show works: the vendor that docs/adding-a-vendor.md adds passes the conformance suite."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import ROOT, environment

_BLOCK = re.compile(r"`((?:service|tests)/[\w/.-]+)`:\n\n```(?:python|json)\n(.*?)```", re.DOTALL)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the project, to add to."""
    ignore = shutil.ignore_patterns("__pycache__")
    for folder in ("service", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=ignore)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_the_vendor_that_the_documents_add_conforms(checkout: Path) -> None:
    blocks = dict(_BLOCK.findall((ROOT / "docs" / "adding-a-vendor.md").read_text()))
    assert [path for path in blocks if path.startswith("service/")] == ["service/vendors/dubly.py"]
    for path, text in blocks.items():
        (checkout / path).parent.mkdir(exist_ok=True)
        (checkout / path).write_text(text)

    suite = ["tests/test_vendors.py", "tests/test_submission.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *suite, "-k", "dubly"]
    answer = subprocess.run(
        command,
        cwd=checkout,
        env=environment({"PYTHONPATH": str(checkout)}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stdout
    passed = re.search(r"(\d+) passed", answer.stdout)
    assert passed
    assert int(passed[1]) > len(blocks)
