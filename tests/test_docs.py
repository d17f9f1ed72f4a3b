"""What the documents show works: the vendor that docs/adding-a-vendor.md adds conforms, what is submitted is taken."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from service.vendors import VENDORS, catalogue
from tests.pages import pages
from tests.support.processes import BIN, ROOT, environment

_BLOCK = re.compile(r"`((?:service|tests)/[\w/.-]+)`:\n\n```(?:python|json)\n(.*?)```", re.DOTALL)
_REQUEST = re.compile(r"""(?:-d '|```json\n)(\{\s*"vendor".*?\})(?:'|\n```)""", re.DOTALL)


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


def test_what_the_documents_submit_is_taken() -> None:
    text = "".join((ROOT / name).read_text() for name in ("README.md", "docs/submitting.md"))
    requests = [json.loads(body) for body in _REQUEST.findall(text)]
    assert len(requests) == 4
    for request in requests:
        found = catalogue.choose(
            request["vendor"], request.get("model"), request["input"], request.get("vendor_input", {})
        )
        assert isinstance(found, catalogue.Order), (request, found)


@pytest.mark.parametrize("name", list(pages()))
def test_a_page_that_is_made_of_the_code_is_as_the_code_makes_it(name: str) -> None:
    assert (ROOT / "docs" / name).read_text() == pages()[name], "old: run `python -m tests.pages`"


def test_a_link_that_leads_nowhere_is_found(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "mkdocs.yml").write_text(
        (ROOT / "docs" / "mkdocs.yml").read_text().partition("nav:\n  - Start")[0]
    )
    (tmp_path / "build" / "pages").mkdir(parents=True)
    (tmp_path / "build" / "pages" / "index.md").write_text("# Here\n\n[there](there.md)\n")
    build = [str(BIN / "mkdocs"), "build", "--config-file", str(tmp_path / "docs" / "mkdocs.yml")]
    ended = subprocess.run(build, env=environment(), capture_output=True, text=True, check=False)
    assert ended.returncode == 1, ended.stderr
    assert "there.md" in ended.stderr


def test_the_documents_name_every_model() -> None:
    text = (ROOT / "docs" / "submitting.md").read_text()
    models = {model.name for vendor in VENDORS.values() for model in vendor.MODELS}
    assert {name for name in models | VENDORS.keys() if f"`{name}`" not in text} == set()
