"""The internal services that use the deployment: they submit and register jobs, and come again when told to.

They do as the README says: an `Idempotency-Key` with every job, the same request again where no answer came or a 503.
Whatever else they are answered is strange, and is noted.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any, Final

import aiohttp
import httpx
from httpx_aiohttp import AiohttpTransport

from tests.chaos.ledger import Entry, Ledger
from tests.chaos.orders import Order

IN_FLIGHT: Final = 12
#: Seconds for which the same request is made again and again, and between two tries.
PATIENCE: Final = 300.0
AGAIN_AFTER: Final = 0.4

_FAILURES: Final = (httpx.HTTPError, aiohttp.ClientError, TimeoutError, OSError)


class Crowd:
    """Clients in a thread of their own. Each order is taken to its acknowledgement, or given up."""

    def __init__(self, web: str, sandbox: str, key: str, ledger: Ledger) -> None:
        self._web = web
        self._sandbox = sandbox
        self._key = key
        self._ledger = ledger
        self._threads: list[threading.Thread] = []

    def send(self, orders: Iterable[Order], rate: float | None = None) -> None:
        """Begin with these; `rate` a second, or as fast as they are taken."""
        thread = threading.Thread(target=lambda: asyncio.run(self._send(list(orders), rate)), daemon=True)
        self._threads.append(thread)
        thread.start()

    @property
    def busy(self) -> bool:
        return any(thread.is_alive() for thread in self._threads)

    async def _send(self, orders: list[Order], rate: float | None) -> None:
        entries = [self._ledger.expect(order) for order in orders]
        waiting, began = iter(enumerate(entries)), time.monotonic()
        transport = AiohttpTransport()
        async with httpx.AsyncClient(transport=transport, timeout=20, trust_env=False) as http:

            async def client() -> None:
                for number, entry in waiting:
                    if rate:
                        await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))
                    try:
                        await self._see_to(http, entry)
                    except Exception as error:  # of the suite's own; the other orders go out all the same
                        self._ledger.strange.append(f"{entry.order.vendor}: a client failed: {error!r}")

            await asyncio.gather(*(client() for _ in range(IN_FLIGHT)))

    async def _see_to(self, http: httpx.AsyncClient, entry: Entry) -> None:
        order = entry.order
        headers = {"Idempotency-Key": order.nonce}
        told = await self.call(http, "POST", "/v1/jobs", order.request(), 201 if order.direct else 202, headers)
        if told is None:
            return
        self._ledger.acknowledge(entry, told["id"], told["callback_url"])
        if order.direct and (vendor_job_id := await self._submit(http, order, told["callback_url"])):
            body = {"vendor_job_id": vendor_job_id}
            await self.call(http, "PATCH", f"/v1/jobs/{told['id']}", body, 200)

    async def _submit(self, http: httpx.AsyncClient, order: Order, callback_url: str) -> str | None:
        """The owner's own submission, made once. The sandbox itself never fails here."""
        path, body = order.submission(callback_url)
        # One that the sandbox closes in the moment in which it is used again cannot be told from a lost answer.
        headers = {"Authorization": "Bearer somebody", "access_token": "sandbox-access-token", "Connection": "close"}
        answer = await http.post(f"{self._sandbox}/{order.vendor}{path}", json=body, headers=headers, timeout=60)
        answer.raise_for_status()
        told = answer.json()
        data = told.get("data", told)
        return str(data if isinstance(data, str) else data.get("taskId") or data["id"])

    async def call(
        self,
        http: httpx.AsyncClient,
        method: str,
        path: str,
        body: Any,
        good: int,
        headers: Mapping[str, str] | None = None,
    ) -> dict[str, Any] | None:
        """Make a request until it is answered with `good`; None where it never was."""
        deadline = time.monotonic() + PATIENCE
        known = {"Authorization": f"Bearer {self._key}", **(headers or {})}
        while time.monotonic() < deadline:
            try:
                answer = await http.request(method, f"{self._web}{path}", json=body, headers=known)
            except _FAILURES as error:
                self._ledger.answers[type(error).__name__] += 1
            else:
                self._ledger.answers[str(answer.status_code)] += 1
                if answer.status_code == good:
                    return dict(answer.json())
                if answer.status_code != 503 or "retry-after" not in answer.headers:
                    self._ledger.strange.append(f"{method} {path}: {answer.status_code} {answer.text[:200]}")
                    if answer.status_code < 500:
                        return None
            await asyncio.sleep(AGAIN_AFTER)
        self._ledger.strange.append(f"{method} {path}: no good answer in {PATIENCE:.0f} s")
        return None
