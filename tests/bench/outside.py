"""Everybody outside, on one port: a host of files, fast or slow, and a vendor that is asked.

Written close to the socket, so that what is measured is never waiting for it.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final, cast

import click
import uvloop

_BLOCK: Final = bytes(2**18)
#: So often a slow file sends a piece.
_PIECES: Final = 20


class _Outside(asyncio.Protocol):
    asked = 0  #: requests to the vendor, over all connections

    def __init__(self) -> None:
        self._received = b""
        self._writable = asyncio.Event()
        self._writable.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        self._received += data
        while b"\r\n\r\n" in self._received:
            head, _, self._received = self._received.partition(b"\r\n\r\n")
            _, path, *words = head.partition(b" ")[2].partition(b" ")[0].decode().partition("?")[0].split("/")
            if path == "file":
                self._start(self._file(int(words[0])))
            elif path == "slow":
                self._start(self._slow(int(words[0]), float(words[1])))
            elif path == "asked":
                self._json({"asked": _Outside.asked})
            else:
                _Outside.asked += 1
                self._json(_ANSWERS[path](words[-1]))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        self._sending = asyncio.ensure_future(work)  # kept, or the loop might forget it

    def _json(self, answer: object) -> None:
        body = json.dumps(answer).encode()
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        self._transport.write(head % len(body) + body)

    def _head(self, size: int) -> None:
        self._transport.write(b"HTTP/1.1 200 OK\r\ncontent-type: video/mp4\r\ncontent-length: %d\r\n\r\n" % size)

    async def _file(self, size: int) -> None:
        self._head(size)
        while size > 0:
            await self._writable.wait()
            self._transport.write(_BLOCK[:size])
            size -= len(_BLOCK)

    async def _slow(self, size: int, seconds: float) -> None:
        self._head(size)
        began = time.monotonic()
        for number in range(_PIECES):
            await asyncio.sleep(max(0.0, began + seconds * number / _PIECES - time.monotonic()))
            self._transport.write(bytes(size // _PIECES))
        self._transport.write(bytes(size % _PIECES))


def _lipsync_studio(job: str) -> object:
    return {"id": job, "model": "lipsync", "status": "processing", "output": None, "error": "", "executionTime": 0}


def _kitta(_job: str) -> object:
    """Its list, in which there are 100 jobs."""
    rows = [
        {"taskId": f"job-{n}", "type": "lip_sync", "status": "processing", "inputMode": "video"} for n in range(100)
    ]
    return {"data": rows, "pagination": {"limit": 100, "offset": 0, "hasMore": False}}


_ANSWERS: Final[dict[str, Callable[[str], object]]] = {"lipsync_studio": _lipsync_studio, "kitta": _kitta}


@click.command()
@click.option("--port", type=int, required=True)
def main(port: int) -> None:
    async def serve() -> None:
        server = await asyncio.get_running_loop().create_server(_Outside, "127.0.0.1", port)
        await server.serve_forever()

    uvloop.run(serve())


if __name__ == "__main__":
    main()
