"""`GET /v1/vendors`, and the same in the terminal: what can be asked of whom, and never a secret."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import msgspec
import pytest

from service.app import create_app
from service.model import Limit
from service.settings import Account
from service.vendors import VENDORS
from tests.support.deployment import API_KEY, accounts, settings
from tests.support.terminal import run
from tests.support.web import API_KEY as WEB_KEY
from tests.support.web import Web, web_process

#: Nothing is asked of Redis.
NO_REDIS = "redis://127.0.0.1:9/0"


async def listed(given: dict[str, Account] | None = None) -> dict[str, dict[str, Any]]:
    """The vendors by slug, as a deployment with these accounts tells them."""
    app = create_app(settings(NO_REDIS, accounts=given or accounts()))
    headers = {"Authorization": f"Bearer {API_KEY}"}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://web", headers=headers) as client:
        answer = await client.get("/v1/vendors")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    assert "secret of" not in answer.text
    assert answer.json().keys() == {"data"}
    found: dict[str, dict[str, Any]] = {entry["vendor"]: entry for entry in answer.json()["data"]}
    assert len(found) == len(answer.json()["data"])
    return found


async def test_every_vendor_is_listed_with_all_its_models() -> None:
    found = await listed()
    assert found.keys() == VENDORS.keys()
    for slug, vendor in VENDORS.items():
        entry = found[slug]
        assert (entry["name"], entry["docs"]) == (vendor.NAME, vendor.DOCS)
        assert [model["name"] for model in entry["models"]] == [model.name for model in vendor.MODELS]
        assert all(model["price"] and model["limits"] and model["unit"] for model in entry["models"])
        assert entry["callbacks"] == (vendor.RHYTHM.grace is not None)
    assert (found["kitta"]["callbacks"], found["chanjing"]["callbacks"]) == (False, True)


async def test_limits_are_those_of_this_deployment() -> None:
    found = await listed()
    assert found["kitta"]["limits"] == {"read": {"requests": 10, "seconds": 1}}
    assert found["chanjing"]["limits"].keys() == {"read", "submit", "upload"}
    assert found["chanjing"]["limits"]["submit"] == {"requests": 10, "seconds": 60}
    slower = accounts()
    slower["kitta"] = msgspec.structs.replace(slower["kitta"], limits={"read": Limit(requests=1, seconds=2.5)})
    found = await listed(slower)
    assert found["kitta"]["limits"] == {"read": {"requests": 1, "seconds": 2.5}}


async def test_inputs_are_told_as_json_schema() -> None:
    video = (await listed())["lipsync_studio"]["models"][0]
    assert video["name"] == "lipsync-video"
    assert video["makes_media"] is True
    input_ = video["input"]
    assert (input_["type"], input_["additionalProperties"]) == ("object", False)
    assert set(input_["required"]) == {"video_url", "audio_url"}
    assert input_["properties"]["video_url"]["type"] == "string"
    assert input_["properties"]["video_url"]["maxLength"] == 2048
    [resolution, nothing] = input_["properties"]["resolution"]["anyOf"]
    assert (resolution["enum"], nothing) == (["480p", "720p"], {"type": "null"})
    assert video["vendor_input"]["properties"] == {}


async def test_what_only_one_vendor_has_and_which_fields_go_together_is_told() -> None:
    found = await listed()
    order = found["lipsync_studio"]["models"][2]["vendor_input"]["properties"]["order"]
    assert (order["enum"], order["default"]) == (["left_right", "meanwhile", "right_left"], "meanwhile")
    assert found["kitta"]["models"][0]["one_of"] == [["input.video_url", "input.image_url"]]
    assert found["kitta"]["models"][0]["needs"] == {"input.reference_image_url": "input.image_url"}
    faces = {model["name"]: model["makes_media"] for model in found["apimodels"]["models"]}
    assert faces == {"kling-identify-face": False, "kling-advanced-lip-sync": True}


async def test_credentials_are_told_by_their_presence_alone() -> None:
    assert all(entry["credentials"]["present"] for entry in (await listed()).values())
    found = await listed(accounts(without=("chanjing",)))
    assert found["chanjing"]["credentials"] == {
        "present": False,
        "settings": "CHANJING_ACCESS_TOKEN or CHANJING_APP_ID + CHANJING_SECRET_KEY",
    }
    assert found["kitta"]["credentials"] == {"present": True, "settings": "KITTA_API_TOKEN"}


# -- in the terminal ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def web(valkey: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    with web_process(tmp_path_factory.mktemp("web"), {"REDIS_URL": valkey, "KITTA_API_TOKEN": "made-up-token"}) as web:
        yield web


def callsheet(web: Web, *arguments: str) -> str:
    """What a command prints."""
    answer = run("--url", web.url, "--api-key", WEB_KEY, *arguments)
    assert answer.returncode == 0, answer.stderr
    assert "made-up-token" not in answer.stdout
    return answer.stdout


def test_the_terminal_prints_the_answer_as_it_is(web: Web) -> None:
    assert json.loads(callsheet(web, "vendors", "--json")) == web.api.get("/v1/vendors").json()


def test_the_terminal_shows_a_line_for_every_model(web: Web) -> None:
    shown = callsheet(web, "vendors")
    for slug, vendor in VENDORS.items():
        for model in vendor.MODELS:
            [line] = [line for line in shown.splitlines() if line.startswith(f"{slug} ") and f" {model.name} " in line]
            assert line.rstrip().endswith("yes" if slug == "kitta" else "no")
