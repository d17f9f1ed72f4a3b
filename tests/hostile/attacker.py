"""A process that holds connections to the web process and never gets on with them, until it is told to stop.

`python -m tests.hostile.attacker '{"port": …, "crowd": {"silent": 150, …}, …}'`. A connection that is cut off is opened
again. On SIGTERM it says in one line of JSON what it has met, and ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import signal
import socket
import sys
from collections import Counter
from typing import Any, Final

#: A second is as slow as a drip has to be.
_DRIP: Final = 1.0
_BLOCK: Final = b" " * 2**18
#: What a body of a gigabyte is sent in, over and over.
_PIECES: Final = {
    "length": _BLOCK,
    "chunked": b"%x\r\n%b\r\n" % (len(_BLOCK), _BLOCK),
    "crumbs": b"1\r\n \r\n" * 2**15,
}
GIGABYTE: Final = 2**30


class Attack:
    """What is held at the moment, and what came of what was held before."""

    def __init__(self, *, port: int, good: str, forged: str, answer: str, key: str) -> None:
        """`good` and `forged` are paths of callback URLs, `answer` one whose answer is large and needs `key`."""
        self._port = port
        self._paths = {"good": good, "forged": forged}
        self._large = f"GET {answer} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n\r\n".encode()
        self.open: Counter[str] = Counter()
        self.cut: Counter[str] = Counter()
        self.most: dict[str, int] = {}  #: bytes that one connection of a kind got rid of
        self.refused = 0

    async def hold(self, kind: str, stop: asyncio.Event) -> None:
        """One connection of this kind after the other."""
        while not stop.is_set():
            try:
                reader, writer = await asyncio.open_connection(sock=await self._connected(kind))
            except OSError:
                self.refused += 1
                await _for(stop, 0.1)
                continue
            self.open[kind] += 1
            playing = asyncio.create_task(self._play(kind, reader, writer, stop))
            stopping = asyncio.create_task(stop.wait())
            await asyncio.wait((playing, stopping), return_when=asyncio.FIRST_COMPLETED)
            for task in (playing, stopping):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, OSError):
                    await task
            self.cut[kind] += not stop.is_set()
            self.open[kind] -= 1
            writer.transport.abort()

    async def _connected(self, kind: str) -> socket.socket:
        made = socket.socket()
        if kind == "slow reader":
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        made.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(made, ("127.0.0.1", self._port))
        except OSError:
            made.close()
            raise
        return made

    async def _play(
        self, kind: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, stop: asyncio.Event
    ) -> None:
        head = f"POST {self._paths['good']} HTTP/1.1\r\nhost: x\r\n"
        match kind.split(" ", 1):
            case ["silent"]:
                await _gone(reader)
            case ["half", part]:
                writer.write(
                    head.encode() + (b"x-half" if part == "head" else b'content-length: 1000\r\n\r\n{"code": ')
                )
                await _gone(reader)
            case ["drip", part]:
                writer.write(head.encode() + (b"" if part == "head" else b"content-length: 100000\r\n\r\n"))
                while not reader.at_eof() and not stop.is_set():
                    writer.write(b"x: y\r\n" if part == "head" else b" ")
                    await writer.drain()
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(reader.read(1000), _DRIP)
            case ["slow", _]:
                writer.write(self._large)
                reader._transport.pause_reading()  # type: ignore[attr-defined]  # or it would buffer the answer for us
                while not writer.transport.is_closing() and not stop.is_set():
                    await _for(stop, _DRIP)
                    if writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                        return
            case ["gigabyte", how]:
                path, coding = how.split()
                await self._pump(kind, writer, f"POST {self._paths[path]} HTTP/1.1\r\nhost: x\r\n", coding)

    async def _pump(self, kind: str, writer: asyncio.StreamWriter, head: str, coding: str) -> None:
        length = f"content-length: {GIGABYTE}" if coding == "length" else "transfer-encoding: chunked"
        writer.write(f"{head}{length}\r\n\r\n".encode())
        piece, sent = _PIECES[coding], 0
        try:
            while sent < GIGABYTE:
                writer.write(piece)
                await writer.drain()
                sent += len(piece)
        finally:
            self.most[kind] = max(self.most.get(kind, 0), sent)


async def _gone(reader: asyncio.StreamReader) -> None:
    while await reader.read(1000):
        pass


async def _for(stop: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), seconds)


async def _main(orders: dict[str, Any]) -> None:
    stop, crowd = asyncio.Event(), orders.pop("crowd")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    attack = Attack(**orders)
    async with asyncio.TaskGroup() as group:
        for kind, number in crowd.items():
            for _ in range(number):
                group.create_task(attack.hold(kind, stop))
        while sum(attack.open.values()) < sum(crowd.values()) and not stop.is_set():
            await _for(stop, 0.05)
        print("all there", flush=True)
    told = {"cut": attack.cut, "most": attack.most, "refused": attack.refused}
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    asyncio.run(_main(json.loads(sys.argv[1])))
