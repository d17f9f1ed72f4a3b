"""`make pictures`: what the dashboard looks like, for the documents, from a deployment that really runs."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from tests.support.browser import SHAPES, chromium
from tests.support.processes import ROOT
from tests.support.show import KEYS, show

FOLDER: Final = ROOT / "docs" / "pictures"

_PAGES: Final = {"overview": "/"} | {name: f"/{name}" for name in ("jobs", "quarantine", "endpoints", "vendors")}
_JOBS: Final = {"job-stored": "lost", "job-failed": "failed", "job-unanswered": "unanswered"}


def main() -> None:
    """Take them all anew."""
    FOLDER.mkdir(exist_ok=True)
    for old in FOLDER.glob("*.png"):
        old.unlink()
    said = "the queue is full, come again"
    with TemporaryDirectory() as folder, show(Path(folder), said) as shown, chromium() as browser:
        letter = shown.api.get("/v1/quarantine").json()["data"][0]["id"]
        jobs = {name: f"/jobs/{shown.jobs[label]}" for name, label in _JOBS.items()}
        pages = {**_PAGES, **jobs, "letter": f"/quarantine/{letter}"}
        pages["endpoint"] = f"/endpoints/{shown.endpoints['refused']}"
        for shape, options in SHAPES.items():
            size = shape.partition(" ")[0]
            page = browser.new_context(base_url=shown.url, **options).new_page()
            page.goto("/sign-in")
            page.screenshot(path=FOLDER / f"sign-in-{size}.png")
            page.get_by_label("API key").fill(KEYS["team"])
            page.get_by_role("button", name="Sign in").click()
            for name, path in pages.items():
                page.goto(path)
                page.screenshot(path=FOLDER / f"{name}-{size}.png", full_page=True)


if __name__ == "__main__":
    main()
