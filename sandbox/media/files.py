"""The bytes of all media. Every job's video is the same short film with the job's name behind it.

The name stands in a `free` box, which players skip: each file plays, and has a SHA-256 of its own.
"""

from __future__ import annotations

import hashlib
import struct
from importlib.resources import files
from typing import Final

_FOLDER: Final = files("sandbox.media")
_RESULT: Final = _FOLDER.joinpath("result.mp4").read_bytes()

PREVIEW: Final = _FOLDER.joinpath("preview.jpg").read_bytes()
DURATION: Final = 2.0  #: seconds, of every video

#: What `/media/input/` serves, for callers who need URLs of valid inputs.
INPUTS: Final = {
    "face.mp4": _RESULT,
    "face.png": _FOLDER.joinpath("face.png").read_bytes(),
    "face.jpg": PREVIEW,
    "voice.mp3": _FOLDER.joinpath("voice.mp3").read_bytes(),
}
#: The last part of a file's name, and its content type.
TYPES: Final = {"mp4": "video/mp4", "png": "image/png", "jpg": "image/jpeg", "mp3": "audio/mpeg"}

_RESULT_HASH: Final = hashlib.sha256(_RESULT)


def result(name: str) -> bytes:
    """The video of the job called `name`."""
    return _RESULT + _free_box(name)


def sha256(name: str) -> str:
    """The hex digest of `result(name)`, without hashing the film again."""
    digest = _RESULT_HASH.copy()
    digest.update(_free_box(name))
    return digest.hexdigest()


def size(name: str) -> int:
    return len(_RESULT) + len(_free_box(name))


def marked(name: str, query: str) -> bytes:
    """The input `name` with a query at its end, where players do not look and an upload is searched for fault words."""
    mark = f"?{query}"
    return INPUTS[name] + (_free_box(mark) if name.endswith(".mp4") else mark.encode())


def _free_box(text: str) -> bytes:
    return struct.pack(">I4s", 8 + len(text.encode()), b"free") + text.encode()
