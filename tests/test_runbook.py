"""The runbook has an entry for each alarm that the processes can raise."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Final

import pytest

from tests.support.processes import ROOT

LEVELS: Final = ("warning", "error", "exception", "critical")
#: Lines whose level is chosen when they are written.
CHOSEN: Final = {"callback"}


def alarms() -> Iterator[str]:
    """What log lines at these levels say, by the code that writes them."""
    yield from CHOSEN
    for path in [path for package in ("service", "workers") for path in sorted((ROOT / package).rglob("*.py"))]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LEVELS:
                owner = node.func.value
                if isinstance(owner, ast.Name) and owner.id == "_log":
                    assert isinstance(node.args[0], ast.Constant), f"{path}:{node.lineno} says what nobody can look up"
                    yield str(node.args[0].value)


def sections() -> dict[str, str]:
    """Heading → what stands under it, up to the first list: there, alarms are named."""
    found = re.split(r"^## (.+)\n", (ROOT / "deploy/runbook.md").read_text(), flags=re.MULTILINE)[1:]
    return {heading: text.partition("\n- **Means**")[0] for heading, text in zip(found[::2], found[1::2], strict=True)}


@pytest.mark.parametrize("alarm", sorted(set(alarms())))
def test_every_alarm_has_its_heading(alarm: str) -> None:
    assert [heading for heading, text in sections().items() if f"`{alarm}`" in text]
