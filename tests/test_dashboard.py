"""The dashboard in a real browser, over a real deployment: what is seen, what is pressed, and what comes of it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from tests.support.browser import SHAPES, chromium, faults
from tests.support.processes import eventually
from tests.support.show import HOSTILE, KEYS, Show, show

expect.set_options(timeout=15_000)

Opened = Callable[..., Page]

REFUSED: Final = "401 (Unauthorized)"


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Show]:
    with show(tmp_path_factory.mktemp("show")) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture
def opened(browser: Browser, shown: Show) -> Iterator[Opened]:
    """Opens pages, signed in with a key; fails at the end if one asked elsewhere for anything, or complained."""
    contexts: list[BrowserContext] = []
    complaints: list[str] = []

    def open_(path: str = "/", key: str | None = "team", **options: Any) -> Page:
        context = browser.new_context(base_url=shown.url, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(15_000)
        page.on("request", lambda sent: complaints.extend([sent.url] * (not sent.url.startswith(shown.url))))
        page.on(
            "console", lambda said: complaints.extend([said.text] * (said.type == "error" and REFUSED not in said.text))
        )
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(path)
        if key:
            page.get_by_label("API key").fill(KEYS[key])
            page.get_by_role("button", name="Sign in").click()
            page.wait_for_url(f"**{path}")
        return page

    yield open_
    for context in contexts:
        context.close()
    assert complaints == []


def paths(shown: Show) -> dict[str, str]:
    """Every page, and a job of every kind."""
    letter = shown.api.get("/v1/quarantine").json()["data"][0]["id"]
    jobs = {label: f"/jobs/{shown.jobs[label]}" for label in ("lost", "asked", "failed", "unanswered", "hostile")}
    named = {"overview": "/", "jobs": "/jobs", "none": "/jobs?status=cancelled", "vendors": "/vendors"}
    more = {"quarantine": "/quarantine", "letter": f"/quarantine/{letter}", "endpoints": "/endpoints"}
    return {**named, **more, **jobs, "endpoint": f"/endpoints/{shown.endpoints['refused']}"}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_page_can_be_read_by_everybody(opened: Opened, shown: Show, shape: str) -> None:
    """No serious fault by axe-core, and nothing to scroll sideways for."""
    page, wrong = opened(key=None, **SHAPES[shape]), {}
    wrong["sign-in"] = faults(page)
    page = opened(**SHAPES[shape])
    for name, path in paths(shown).items():
        answer = page.goto(path)
        assert answer
        assert answer.status == 200, name
        assert page.locator("h1").count() == 1
        wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
        wrong[name] = [*faults(page), *([f"{wide} pixels too wide"] if wide > 0 else [])]
    assert {name: found for name, found in wrong.items() if found} == {}


def test_a_newcomer_finds_why_a_job_failed_what_came_and_asks_again(opened: Opened, shown: Show) -> None:
    page = opened()
    page.get_by_role("navigation", name="Pages").get_by_role("link", name="Jobs").click()
    page.get_by_label("Status").select_option("failed")
    page.get_by_label("Vendor").select_option("lipsync_studio")
    page.get_by_role("button", name="Show").click()
    page.get_by_role("link", name=shown.jobs["failed"]).click()
    expect(page.locator(".note.bad")).to_contain_text("Invalid audio format")
    raw = page.get_by_role("region", name=re.compile("Raw payload")).last
    expect(raw).to_contain_text('"status": "FAILED"', ignore_case=True)
    page.get_by_role("button", name="Ask the vendor now").click()
    expect(page.get_by_role("status").first).to_contain_text("The vendor is being asked")
    expect(page.locator(".entries .operator")).to_contain_text("asked to look again")


def test_any_id_leads_to_its_job(opened: Opened, shown: Show) -> None:
    page, job = opened(), shown.job("lost")
    tries = shown.api.get(f"/v1/jobs/{job['id']}/deliveries").json()["data"]
    letter = next(one for one in shown.api.get("/v1/quarantine").json()["data"] if one["job_id"])
    for any_id in (job["id"], job["vendor_job_id"], tries[0]["event_id"], tries[0]["delivery_id"]):
        page.get_by_label("Find a job by any id").fill(f" {any_id} ")
        page.get_by_role("button", name="Find").click()
        expect(page.locator("h1")).to_have_text(job["id"])
    for other, path in ((letter["id"], "/quarantine/"), (shown.endpoints["taken"], "/endpoints/")):
        page.get_by_label("Find a job by any id").fill(other)
        page.get_by_role("button", name="Find").click()
        page.wait_for_url(f"**{path}{other}")
    page.get_by_label("Find a job by any id").fill("nobody-knows-this")
    page.get_by_role("button", name="Find").click()
    expect(page.get_by_text("No job fits.")).to_be_visible()


def test_outputs_play(opened: Opened, shown: Show) -> None:
    page = opened(f"/jobs/{shown.jobs['stored']}")
    video = page.locator("video")
    eventually(lambda: video.evaluate("video => video.readyState > 0"), "a film that can be played", timeout=10)
    assert video.evaluate("video => video.duration") == pytest.approx(2, abs=0.5)
    video.evaluate("video => video.currentTime = 1")
    eventually(lambda: video.evaluate("video => !video.seeking"), "another place in it", timeout=10)
    part = page.request.get(video.get_attribute("src") or "", headers={"Range": "bytes=4-7"})
    assert (part.status, part.body(), part.headers["content-disposition"][:10]) == (206, b"ftyp", "attachment")


def test_what_happens_shows_up_by_itself_and_disturbs_nobody(opened: Opened, shown: Show) -> None:
    job = shown.api.post("/v1/jobs", json={"vendor": "kitta", "vendor_job_id": "live-1"}).json()
    page = opened(f"/jobs/{job['id']}")
    page.get_by_label("Find a job by any id").fill("half written")
    expect(page.get_by_text("Live", exact=True)).to_be_visible()
    shown.api.post(job["callback_url"], json={"taskId": "live-1", "status": "completed", "data": {}})
    shown.api.post(f"/v1/jobs/{job['id']}/refresh")
    expect(page.locator(".entries li")).not_to_have_count(1)
    details = page.locator("details").first
    details.locator("summary").click()
    page.wait_for_event("requestfinished", lambda request: "hx-request" in request.headers)
    expect(details).to_have_attribute("open", "")
    expect(page.get_by_label("Find a job by any id")).to_have_value("half written")


def test_an_unanswered_job_is_resolved(opened: Opened, shown: Show) -> None:
    page = opened(f"/jobs/{shown.jobs['unanswered']}")
    page.get_by_label("The vendor has it, as").fill(shown.job("stored")["vendor_job_id"])
    page.get_by_role("button", name="Give it up").click()
    expect(page.locator(".note.bad")).to_contain_text("has not taken it")
    assert shown.job("unanswered")["status"] == "failed"
    page.get_by_text("Sent, and not answered").wait_for(state="detached")


def test_a_refusal_is_told_and_leads_back(opened: Opened, shown: Show) -> None:
    page = opened("/quarantine")
    page.get_by_role("link", name="qua_").first.click()
    expect(page.locator("pre").first).to_contain_text("taskId")
    expect(page.get_by_text("Still nothing:")).to_be_visible()


def test_endpoints_are_tested_stopped_and_told_again(opened: Opened, shown: Show) -> None:
    page = opened(f"/endpoints/{shown.endpoints['taken']}")
    page.get_by_role("button", name="Send a test").click()
    expect(page.get_by_role("cell", name="endpoint.test").first).to_be_visible()
    heard = len(shown.heard)
    page.get_by_role("button", name="Send again").nth(1).click()
    expect(page.get_by_role("status").first).to_contain_text("sent again")
    eventually(lambda: len(shown.heard) > heard, "the event, once more", timeout=10)
    page.get_by_label("Send all events again since").select_option(label="a day ago")
    page.locator("form.inline button").click()
    expect(page.get_by_role("status").first).to_contain_text("since then are sent again")
    page.get_by_role("button", name="Disable").click()
    expect(page.locator(".note.bad")).to_contain_text("by hand")
    page.get_by_role("button", name="Enable").click()
    expect(page.get_by_text("It hears of events again.")).to_be_visible()


def test_a_shared_callback_url_is_shown_to_an_admin_who_asks(opened: Opened, shown: Show) -> None:
    page = opened("/vendors")
    assert "shared." not in page.content()
    page.get_by_role("button", name="Show the shared callback URL").first.click()
    url = page.locator(".note.warn code").inner_text()
    assert re.fullmatch(rf"{shown.url}/callbacks/apimodels/shared\.[\w-]{{43}}", url)
    assert shown.api.post(url, json={}).status_code != 404, "it is a good one"
    page.goto("/vendors")
    assert "shared." not in page.content()
    [entry] = [entry for entry in shown.api.get("/v1/audit").json()["data"] if entry["action"] == "vendors.reveal"]
    assert (entry["who"], entry["subject"]) == ("team", "apimodels")
    assert url.rpartition(".")[2] not in shown.log()


def test_who_may_only_read_has_nothing_to_press(opened: Opened, shown: Show) -> None:
    page = opened("/", "reader")
    pressed = set()
    for path in paths(shown).values():
        page.goto(path)
        pressed |= set(page.locator("main form[method=post]").all_inner_texts())
    assert pressed == set()


def test_what_others_say_is_text(opened: Opened, shown: Show) -> None:
    page = opened()
    for path in paths(shown).values():
        page.goto(path)
        assert page.evaluate("window.hacked") is None, path
    page.goto(f"/jobs/{shown.jobs['hostile']}")
    expect(page.get_by_role("region", name="Metadata")).to_contain_text(json.dumps(HOSTILE)[1:-1])


def test_it_can_be_read_without_scripts(opened: Opened, shown: Show) -> None:
    page = opened("/jobs", java_script_enabled=False)
    page.get_by_role("link", name=shown.jobs["failed"]).click()
    expect(page.locator(".note.bad")).to_contain_text("Invalid audio format")
    page.get_by_role("button", name="Ask the vendor now").click()
    expect(page.get_by_text("The vendor is being asked")).to_be_visible()
    assert page.get_by_role("button", name=re.compile("Copy")).count() == 0


def test_it_can_be_used_by_keyboard(opened: Opened, shown: Show) -> None:
    page = opened("/jobs")
    page.goto("/jobs")
    reached = []
    for _ in range(14):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate("document.activeElement.labels?.[0]?.innerText ?? document.activeElement.innerText")
        )
    pages = ["Callsheet", "Overview", "Jobs", "Quarantine", "Endpoints", "Vendors"]
    filters = ["Vendor", "Status", "Our copy", "Any id", "Show"]
    assert [words.split("\n")[0].strip() for words in reached] == [
        "Skip to the content",
        *pages,
        "Find a job by any id",
        "Find",
        *filters,
    ]
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_url("**/jobs/job_*")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"


def test_an_id_is_copied(opened: Opened, shown: Show) -> None:
    page = opened(f"/jobs/{shown.jobs['stored']}", permissions=["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy the job's id").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == shown.jobs["stored"]


def test_signing_in_and_out(opened: Opened, shown: Show) -> None:
    page = opened("/jobs?status=failed", None)
    page.get_by_label("API key").fill("no key of this deployment")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_have_text("This is not a key of this deployment.")
    page.get_by_label("API key").fill(KEYS["reader"])
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url("**/jobs?status=failed")
    expect(page.get_by_text("Signed in with the key reader (read)")).to_be_visible()
    page.get_by_role("button", name="Sign out").click()
    page.wait_for_url("**/sign-in")
    page.goto("/jobs")
    expect(page.get_by_label("API key")).to_be_visible()
