"""Which of the faces that Kling has found in a video is taken, and what is said where it is not there."""

from __future__ import annotations

from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.model import JobError
from service.vendors.apimodels import Face, choose_face
from service.vendors.inputs import Choice

#: Two faces as the page shows one: no sizes.
PLAIN: Final = [{"face_id": "face_001", "face_reference": "https://files.example/1.jpg"}, {"face_id": "face_002"}]


def sized(*sizes: object, under: str) -> list[dict[str, object]]:
    """Faces with something about their sizes `under` a name, or with nothing where it is None."""
    return [{"face_id": f"face_{n:03}"} | ({} if size is None else {under: size}) for n, size in enumerate(sizes, 1)]


@pytest.mark.parametrize(
    ("face", "faces", "face_id", "words"),
    [
        (None, PLAIN, "face_001", "2 faces: face_001 (the first)"),
        (None, PLAIN[:1], "face_001", "1 face: face_001 (the first)"),
        ("first", PLAIN, "face_001", "2 faces: face_001 (the first)"),
        (0, PLAIN, "face_001", "2 faces: face_001 (number 0)"),
        (1, PLAIN, "face_002", "2 faces: face_002 (number 1)"),
        ("face_002", PLAIN, "face_002", "2 faces: face_002 (as asked for)"),
        ("largest", PLAIN, "face_001", "2 faces: face_001 (the first: sizes are not told)"),
        # What cannot be used is not counted; numbers read as ids.
        (0, [None, "x", {}, {"face_id": " "}, {"face_id": 7}], "7", "1 face: 7 (number 0)"),
        *[
            ("largest", faces, "face_002", f"{len(faces)} faces: face_002 (the largest)")
            for faces in (
                sized(10, "20", 5, under="area"),
                sized(None, 1, under="area"),
                sized([90, 90, 2, 2], [0, 0, 3, 4], under="bbox"),
                sized([90, 90, 2, 2], ["0", "0", "3", "4"], [9], under="box"),
                sized("huge", {"width": 3, "height": "4"}, {"width": 99}, under="face_bbox"),
                sized([9, 9, -50, -50], [0, 0, 1, 1], under="bbox"),
                [{"face_id": "face_001", "width": 2, "height": 2}, {"face_id": "face_002", "width": 3, "height": 3}],
            )
        ],
    ],
)
def test_the_face_that_is_meant_is_taken(face: int | str | None, faces: list[Any], face_id: str, words: str) -> None:
    found = {"session_id": "session_abc123", "face_list": faces, "execution_time_ms": 5}
    chosen: dict[str, object] = {"session_id": "session_abc123", "face_id": face_id}
    assert choose_face(Face(face=face), found) == Choice(vendor_input=chosen, words=words)


@pytest.mark.parametrize("face", [None, "first", "largest", 0, "face_001"])
@pytest.mark.parametrize(
    "found",
    [
        {},
        {"session_id": "s"},
        {"session_id": "s", "face_list": []},
        {"session_id": "s", "face_list": "face_001"},
        {"session_id": "s", "face_list": [{"face_reference": "https://files.example/1.jpg"}, None]},
        {"session_id": " ", "face_list": PLAIN},
        {"face_list": PLAIN},
    ],
)
def test_a_video_without_a_usable_face_has_none(face: int | str | None, found: dict[str, object]) -> None:
    assert choose_face(Face(face=face), found) == JobError(code="no_face", message="no face was found in the video")


@pytest.mark.parametrize("face", [2, "face_003"])
def test_a_face_that_is_not_there_is_told_with_the_number_of_those_that_are(face: int | str) -> None:
    message = f"there is no face {face}: the video has 2 faces, numbered from 0"
    error = JobError(code="no_face", message=message)
    assert choose_face(Face(face=face), {"session_id": "s", "face_list": PLAIN}) == error


ODD: Final = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["face_id", "area", "bbox", "box", "width", "height"]), inner)
    ),
)


@given(face=st.sampled_from([None, "first", "largest", 1, "1"]), session_id=ODD, faces=st.lists(ODD, max_size=4) | ODD)
def test_whatever_was_found_leads_to_a_face_or_to_none(
    face: int | str | None, session_id: object, faces: object
) -> None:
    chosen = choose_face(Face(face=face), {"session_id": session_id, "face_list": faces})
    if isinstance(chosen, Choice):
        assert all(isinstance(value, str) and value for value in chosen.vendor_input.values())
    else:
        assert chosen.code == "no_face"
