"""A job that takes two of a vendor's jobs: the first finds faces, the second is the job itself."""

from __future__ import annotations

from typing import Any, Final

import pytest

from service.jobs.tokens import Tokens
from service.model import Job, Status
from service.settings import Settings
from tests.support.processes import eventually, eventually_async
from tests.support.sandbox import Desk, Sandbox
from tests.support.submissions import IDENTIFY, KLING, LIP_SYNC, Crew, bought, order


def models(sandbox: Sandbox) -> list[str]:
    return [str(taken["model"]) for taken in bought(sandbox, "apimodels")]


async def settled(desk: Desk, crew: Crew, job_id: str) -> Job:
    """The job once it is over, whoever tells so first."""

    async def over() -> bool:
        await crew.round()
        return desk.job(job_id).status in (Status.SUCCEEDED, Status.FAILED)

    await eventually_async(over, "its end")
    return desk.job(job_id)


@pytest.fixture
def quick(sandbox: Sandbox) -> None:
    """Both steps take no time, unless a test says otherwise."""
    sandbox.order("apimodels", "seconds:0")


async def step_sent(desk: Desk, crew: Crew, vendor_input: dict[str, Any] | None = None) -> str:
    """A job whose first step the vendor has taken."""
    job_id = order(desk, "apimodels", KLING, vendor_input)
    assert crew.queued() == [job_id]
    await crew.send(job_id)
    return job_id


async def test_faces_are_found_first_and_both_jobs_of_the_vendor_are_told(
    desk: Desk, crew: Crew, sandbox: Sandbox, settings: Settings
) -> None:
    job_id = await step_sent(desk, crew)
    job = desk.job(job_id)
    assert (job.status, job.vendor_job_id, job.submitted_at) == (Status.PENDING, None, None)
    assert desk.announced(job_id) == []
    assert desk.due_in(job_id, "polls", "apimodels") is not None
    job = await settled(desk, crew, job_id)
    identify, lip_sync = bought(sandbox, "apimodels")
    assert [identify["model"], lip_sync["model"]] == [IDENTIFY, LIP_SYNC]
    assert (job.status, job.model, job.vendor_job_id) == (Status.SUCCEEDED, LIP_SYNC, lip_sync["id"])
    told = [seen["vendor_job_id"] for seen in desk.timeline(job_id) if "vendor_job_id" in seen]
    assert told == [identify["id"], lip_sync["id"]]
    assert "1 face: face_001 (the first)" in [seen.get("detail") for seen in desk.timeline(job_id)]
    assert lip_sync["request"]["session_id"] == f"session_{identify['id']}"
    url = Tokens(settings.secret_keys, settings.public_url).url("apimodels", job_id)
    assert {identify["callback_url"], lip_sync["callback_url"]} == {url}
    heard = [type_ for type_ in desk.announced(job_id) if type_ != "job.processing"]
    assert heard == ["job.submitted", "job.succeeded"]
    assert [output.url for output in job.outputs] == [lip_sync["outputs"][0]["url"]]


FACES: Final = [
    (None, "face_001"),
    ("first", "face_001"),
    (0, "face_001"),
    (2, "face_003"),
    ("face_002", "face_002"),
    ("largest", "face_001"),  # the sandbox tells no sizes, like the vendor
]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("face", "face_id"), FACES)
async def test_the_face_that_is_meant_is_synced(
    desk: Desk, crew: Crew, sandbox: Sandbox, face: str | int | None, face_id: str
) -> None:
    sandbox.order("apimodels", "faces:3")
    await step_sent(desk, crew, {} if face is None else {"face": face})
    await crew.settle()
    assert models(sandbox) == [IDENTIFY, LIP_SYNC]
    assert bought(sandbox, "apimodels")[1]["request"]["face_id"] == face_id


#: What the first job suffers from, the face that is meant, and the error's code and words.
NO_FACE: Final = {
    "no list": ("faces:0", None, "no_face", "no face was found in the video"),
    "not so many": ("faces:2", 2, "no_face", "the video has 2 faces"),
    "no such id": ("faces:2", "face_009", "no_face", "there is no face face_009"),
    "identify fails": ("no_face", None, "", "Face detection failed: no faces found"),
}


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("case", NO_FACE)
async def test_without_the_face_nothing_is_synced(desk: Desk, crew: Crew, sandbox: Sandbox, case: str) -> None:
    fault, face, code, words = NO_FACE[case]
    sandbox.order("apimodels", fault, count=1)
    job_id = await step_sent(desk, crew, {} if face is None else {"face": face})
    job = await settled(desk, crew, job_id)
    assert (job.status, job.vendor_job_id) == (Status.FAILED, None)
    assert job.error is not None
    assert (job.error.code, job.error.retryable) == (code or job.error.code, False)
    assert words in job.error.message
    assert models(sandbox) == [IDENTIFY]
    assert crew.due() == []


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    "faults",
    [
        ("callback_doubled",),
        ("callback_reordered",),
        ("callback_garbled",),
        ("callback_forged",),
        ("callback_early",),
        ("callback_lost",),
        ("callback_late:0.2",),
        ("unknown_status:0.1",),
        ("callback_early", "unknown_status:0.1"),
        ("callback_doubled", "callback_reordered", "callback_early"),
    ],
    ids="+".join,
)
async def test_whatever_becomes_of_the_first_callback_each_step_is_bought_once(
    desk: Desk, crew: Crew, sandbox: Sandbox, faults: tuple[str, ...]
) -> None:
    sandbox.order("apimodels", *faults, count=1)
    job_id = await step_sent(desk, crew)
    job = await settled(desk, crew, job_id)
    assert (job.status, job.vendor_job_id) == (Status.SUCCEEDED, bought(sandbox, "apimodels")[1]["id"])
    assert models(sandbox) == [IDENTIFY, LIP_SYNC]


async def test_a_callback_about_the_first_step_that_comes_after_the_second_was_sent_changes_nothing(
    desk: Desk, crew: Crew, sandbox: Sandbox
) -> None:
    sandbox.order("apimodels", "callback_late:0.6", "callback_reordered", "seconds:0", count=1)
    job_id = await step_sent(desk, crew)
    sandbox.order("apimodels", "job_stuck", count=1)
    desk.make_due("polls", "apimodels")
    await crew.poller.look_after("apimodels")
    assert crew.queued() == [job_id]
    await crew.send(job_id)
    known = desk.job(job_id)
    assert known.vendor_job_id == bought(sandbox, "apimodels")[1]["id"]
    assert bought(sandbox, "apimodels")[0]["callbacks"] == []

    eventually(lambda: len(bought(sandbox, "apimodels")[0]["callbacks"]) == 2, "the late callbacks")
    assert {call["http_status"] for call in bought(sandbox, "apimodels")[0]["callbacks"]} == {200}
    assert desk.job(job_id) == known
    assert models(sandbox) == [IDENTIFY, LIP_SYNC]


async def test_a_task_that_is_run_again_while_faces_are_looked_for_buys_nothing(
    desk: Desk, crew: Crew, sandbox: Sandbox
) -> None:
    sandbox.order("apimodels", "job_stuck")
    job_id = await step_sent(desk, crew)
    for _ in range(2):
        await crew.send(job_id)
    assert models(sandbox) == [IDENTIFY]
    assert desk.job(job_id).status is Status.PENDING


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize("fault", ["submit_lost", "submit_500"])
async def test_a_step_that_was_not_answered_is_told_by_its_callback(
    desk: Desk, crew: Crew, sandbox: Sandbox, step: int, fault: str
) -> None:
    if step == 1:
        sandbox.order("apimodels", fault, count=1)
    job_id = order(desk, "apimodels", KLING)
    await crew.send(job_id)
    if step == 2:
        sandbox.order("apimodels", fault, count=1)
    job = await settled(desk, crew, job_id)
    assert job.status is Status.SUCCEEDED
    assert models(sandbox) == [IDENTIFY, LIP_SYNC]
