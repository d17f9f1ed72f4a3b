"""What a job is expected to cost: the vendors' own price rules, and the examples on their pages."""

from __future__ import annotations

from typing import Any, Final

import pytest

from service.model import Cost
from service.vendors.catalogue import Order, choose

VIDEO: Final = {"video_url": "https://example.com/video.mp4"}
IMAGE: Final = {"image_url": "https://example.com/person.png"}
AUDIO: Final = {"audio_url": "https://example.com/voice.mp3"}
TEXT: Final = {"text": "你好", "voice": "C-1"}
TWO: Final = {"left_audio_url": "https://example.com/left.mp3", "right_audio_url": "https://example.com/right.mp3"}
FACE: Final = {"session_id": "session_abc123", "face_id": "face_001"}


@pytest.mark.parametrize(
    ("vendor", "model", "input_", "own", "estimated"),
    [
        # The two examples on the page: 3 s at 720p, and 10 s at 480p.
        ("lipsync_studio", None, IMAGE | AUDIO | {"resolution": "720p", "duration_seconds": 3}, {}, 20),
        ("lipsync_studio", None, IMAGE | AUDIO | {"resolution": "480p", "duration_seconds": 10}, {}, 20),
        ("lipsync_studio", None, VIDEO | AUDIO | {"resolution": "720p", "duration_seconds": 3}, {}, 20),
        ("lipsync_studio", None, VIDEO | AUDIO | {"duration_seconds": 10}, {}, 20),
        # At least 5 s; no rounding after that.
        ("lipsync_studio", None, IMAGE | AUDIO | {"duration_seconds": 0.1}, {}, 10),
        ("lipsync_studio", None, IMAGE | AUDIO | {"duration_seconds": 5}, {}, 10),
        ("lipsync_studio", None, IMAGE | AUDIO | {"duration_seconds": 5.5}, {}, 11),
        # A longer video is cut to the voice; a longer voice is charged as the video is.
        ("lipsync_studio", None, VIDEO | AUDIO | {"duration_seconds": 8, "video_duration_seconds": 20}, {}, 16),
        ("lipsync_studio", None, VIDEO | AUDIO | {"duration_seconds": 20, "video_duration_seconds": 8}, {}, 16),
        ("lipsync_studio", None, VIDEO | AUDIO | {"duration_seconds": 20, "video_duration_seconds": 2}, {}, 10),
        ("lipsync_studio", None, VIDEO | AUDIO | {"video_duration_seconds": 8}, {}, 16),
        ("lipsync_studio", None, VIDEO | AUDIO, {}, None),
        ("lipsync_studio", None, IMAGE | AUDIO, {}, None),
        # Both orders.
        ("lipsync_studio", None, IMAGE | TWO | {"left_duration_seconds": 6, "right_duration_seconds": 9}, {}, 18),
        *[
            (
                "lipsync_studio",
                None,
                IMAGE | TWO | {"left_duration_seconds": left, "right_duration_seconds": right, "resolution": "720p"},
                {"order": order},
                credits_,
            )
            for order, left, right, credits_ in (
                ("meanwhile", 6, 9, 36),
                ("left_right", 6, 9, 60),
                ("right_left", 6, 9, 60),
                ("meanwhile", 2, 2, 20),
                ("left_right", 2, 2, 20),
                ("left_right", 3, 4, 28),
            )
        ],
        ("lipsync_studio", None, IMAGE | TWO | {"left_duration_seconds": 6}, {}, None),
        ("lipsync_studio", None, IMAGE | TWO | {"right_duration_seconds": 6}, {"order": "left_right"}, None),
        # The page has no price.
        ("kitta", None, VIDEO | AUDIO | {"duration_seconds": 12}, {}, None),
        ("chanjing", "basic", VIDEO | AUDIO | {"duration_seconds": 12.5}, {}, 12.5),
        ("chanjing", "high-quality", VIDEO | TEXT | {"duration_seconds": 12.5}, {}, 25),
        ("chanjing", "basic", VIDEO | TEXT, {}, None),
        ("apimodels", None, VIDEO, {}, 0.0007),
        *[
            ("apimodels", None, AUDIO | {"duration_seconds": seconds}, FACE, dollars)
            for seconds, dollars in ((0.5, 0.0063), (5, 0.0063), (5.1, 0.0126), (15, 0.0189), (60, 0.0756))
        ],
        ("apimodels", None, AUDIO, FACE, None),
        # With the call that finds the faces.
        ("apimodels", None, VIDEO | AUDIO | {"duration_seconds": 5.1}, {}, 0.0133),
        ("apimodels", None, VIDEO | AUDIO | {"video_duration_seconds": 5}, {}, None),
    ],
)
def test_an_estimate_follows_the_vendors_price_rules(
    vendor: str, model: str | None, input_: dict[str, Any], own: dict[str, Any], estimated: float | None
) -> None:
    order = choose(vendor, model, input_, own)
    assert isinstance(order, Order), order
    cost = order.model.estimate(order.input, order.vendor_input)
    unit = {"apimodels": "USD", "chanjing": "beans"}.get(vendor, "credits")
    assert cost == (None if estimated is None else Cost(estimated=estimated, unit=unit))
