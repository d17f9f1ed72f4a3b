"""Files that take their time: a vendor whose results are large or slow, played by the suite itself.

Such a job is registered as any other; its only callback is sent here, until it is taken, and says where the file is.
"""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections.abc import Callable
from typing import Final

import httpx

from tests.chaos.ledger import Entry
from tests.chaos.orders import Order
from tests.chaos.stage import API_KEY, Stage
from tests.support.files import MP4, Answer, Files, slow

LARGE: Final = 20 * 2**20  #: more than all buffers on the way
_VENDOR: Final = "lipsync_studio"


class Films:
    """Makes jobs whose files a `Files` serves."""

    def __init__(self, stage: Stage, files: Files) -> None:
        self._stage = stage
        self._files = files
        self._headers = {"Authorization": f"Bearer {API_KEY}"}
        self._bodies: dict[str, bytes] = {}  #: by nonce

    def make(
        self, count: int, group: str, *, size: int = LARGE, answer: Callable[[bytes], Answer] | None = None
    ) -> list[Entry]:
        """So many jobs, acknowledged, whose vendor says that they have succeeded; `answer` is how the file comes."""
        return [self._make(number, group, size, answer or (lambda body: slow(body, 2))) for number in range(count)]

    def fetched(self, entry: Entry) -> int:
        """How often a job's file was asked for."""
        return len(self._files.requests(f"/{entry.order.nonce}.mp4"))

    def serve(self, entry: Entry, answer: Callable[[bytes], Answer]) -> str:
        """Let a job's file come so from now on, and count who asks for it anew."""
        nonce = entry.order.nonce
        return self._files.serve(f"/{nonce}.mp4", answer(self._bodies[nonce]))

    def _make(self, number: int, group: str, size: int, answer: Callable[[bytes], Answer]) -> Entry:
        stage = self._stage
        nonce = f"c{stage.chance.getrandbits(48):012x}"
        body = self._bodies[nonce] = MP4 + random.Random(number).randbytes(16) * (size // 16)
        order = Order(nonce=nonce, vendor=_VENDOR, group=group, words=(), direct=True)
        entry = stage.ledger.expect(order)
        entry.sha256 = hashlib.sha256(body).hexdigest()
        link = self.serve(entry, answer)
        told = self._post(f"{stage.url}/v1/jobs", order.request() | {"vendor_job_id": f"film-{nonce}"}, nonce)
        stage.ledger.acknowledge(entry, told["id"], told["callback_url"])
        report = {"id": f"film-{nonce}", "model": "lipsync-video", "status": "completed", "output": link, "error": ""}
        self._post(entry.callback_url, report | {"executionTime": 2000, "timings": None})
        return entry

    def _post(self, url: str, body: dict[str, object], key: str = "") -> dict[str, str]:
        """As a client and as a vendor that come again until they are heard."""
        headers = self._headers | ({"Idempotency-Key": key} if key else {})
        for _ in range(100):
            try:
                answer = httpx.post(url, json=body, headers=headers, trust_env=False, timeout=20)
                if answer.is_success:
                    return dict(json.loads(answer.content))
            except httpx.HTTPError:
                pass
            time.sleep(0.2)
        raise AssertionError(f"nobody takes {body}")
