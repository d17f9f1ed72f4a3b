"""A real Chromium without a window: one that is installed here, else the one that Playwright has downloaded."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from . import node

#: The two ways in which each page is looked at.
SHAPES: Final[dict[str, dict[str, Any]]] = {
    "wide and light": {"viewport": {"width": 1440, "height": 900}, "color_scheme": "light"},
    "small and dark": {"viewport": {"width": 360, "height": 740}, "color_scheme": "dark"},
}
_NAMES: Final = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
#: For root in a container; and it calls nobody by itself.
_FLAGS: Final = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """Run it; tests that need it are skipped where there is none, but never in CI."""
    with sync_playwright() as playwright:
        found = next(filter(None, map(shutil.which, _NAMES)), playwright.chromium.executable_path)
        if not Path(found).exists():
            words = "no Chromium on this machine: install it, or run 'playwright install chromium'"
            (pytest.fail if os.environ.get("CI") else pytest.skip)(words)
        browser = playwright.chromium.launch(executable_path=found, args=_FLAGS)
        try:
            yield browser
        finally:
            browser.close()


def faults(page: Page) -> list[str]:
    """What axe-core finds wrong with a page, of what it calls serious or critical."""
    node.installed()
    page.evaluate((node.FOLDER / "node_modules" / "axe-core" / "axe.min.js").read_text())
    told: dict[str, Any] = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{violation['id']}: {violation['nodes'][0]['target']} {violation['nodes'][0]['failureSummary']}"
        for violation in told["violations"]
        if violation["impact"] in ("serious", "critical")
    ]
