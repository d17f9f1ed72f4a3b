"""Chanjing's file management: inputs are uploaded there first, and named by id afterwards.

Ask for an address, PUT the bytes there, ask until the file is ready. Not on the lip-sync page: as the
vendor's other public pages have it.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field
from typing import Final

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from sandbox.faults import Faults, UnknownFault, asked_in
from sandbox.vendor import Refusal, Why, Window

VIDEO: Final = "lip_sync_video"
AUDIO: Final = "lip_sync_audio"

_TYPES: Final = {
    VIDEO: {"mp4": "video/mp4", "mov": "video/quicktime", "webm": "video/webm"},
    AUDIO: {"mp3": "audio/mpeg", "m4a": "audio/mp4", "wav": "audio/wav"},
}
_ADDRESS_SECONDS: Final = 15 * 60
_TAIL: Final = 1024  #: bytes at the end of an upload that are searched for fault words

_WAITING, _READY = 0, 1


@dataclass
class File:
    id: str
    service: str
    name: str
    mime_type: str
    sign: str = field(default_factory=lambda: secrets.token_hex(16))
    made_at: float = field(default_factory=time.time)
    size: int | None = None  #: None until the bytes are there
    asked: int = 0  #: details answered since then
    faults: Faults = field(default_factory=dict)  #: asked for in the uploaded bytes

    @property
    def status(self) -> int:
        """Waiting in the first detail after the upload, ready from the second one on."""
        return _READY if self.size is not None and self.asked else _WAITING


class Files:
    """The files that were uploaded, or for which there is an address."""

    def __init__(self) -> None:
        self._files: dict[str, File] = {}
        self._addresses = Window(30, 60)

    def address(self, service: str, name: str, base: str) -> dict[str, object]:
        """Where to PUT a file, and the id it will have. Raises `Refusal`."""
        suffix = name.rpartition(".")[2].lower()
        if service not in _TYPES:
            raise Refusal(Why.INVALID, f"service must be one of {', '.join(_TYPES)}")
        if suffix not in _TYPES[service]:
            raise Refusal(Why.INVALID, f"name must end in one of {', '.join(_TYPES[service])}")
        self._addresses.take()
        file = File(secrets.token_hex(16), service, name, _TYPES[service][suffix])
        self._files[file.id] = file
        key = f"sandbox/{file.id}.{suffix}"
        return {
            "sign_url": f"{base}/chanjing/upload/{file.id}?sign={file.sign}",
            "mime_type": file.mime_type,
            "file_id": file.id,
            "full_path": f"{base}/chanjing/upload/{file.id}",
            "key": key,
        }

    async def put(self, request: Request) -> Response:
        """The storage behind `sign_url`: not the vendor's API, so it speaks plainly."""
        file = self._files.get(request.path_params["id"])
        if file is None:
            return PlainTextResponse("no such upload", 404)
        if request.query_params.get("sign") != file.sign or time.time() > file.made_at + _ADDRESS_SECONDS:
            return PlainTextResponse("wrong or expired signature", 403)
        if request.headers.get("content-type") != file.mime_type:
            return PlainTextResponse(f"Content-Type must be {file.mime_type}", 403)
        size, tail = 0, b""
        async for chunk in request.stream():
            size += len(chunk)
            tail = (tail + chunk)[-_TAIL:]
        try:
            file.faults = asked_in(tail.decode("latin-1"))
        except UnknownFault as unknown:
            return PlainTextResponse(str(unknown), 400)
        file.size, file.asked = size, 0
        return Response()

    def detail(self, id: str) -> dict[str, object]:
        """What there is to know about a file. Raises `Refusal`."""
        file = self._files.get(id)
        if file is None:
            raise Refusal(Why.NOT_FOUND, f"unknown file id: {id}")
        status = file.status
        if file.size is not None:
            file.asked += 1
        return {
            "id": file.id,
            "status": status,
            "name": file.name,
            "type": file.service,
            "size": file.size or 0,
            "create_time": int(file.made_at),
        }

    def use(self, id: str, service: str) -> Faults:
        """The faults that a file brings along. Raises `Refusal` unless it is ready and of that kind."""
        if id.startswith("sandbox-"):
            return {}
        file = self._files.get(id)
        if file is None or file.service != service:
            raise Refusal(Why.INVALID, f"no {service} file has the id {id}")
        if file.status != _READY:
            raise Refusal(Why.INVALID, f"file {id} is not ready")
        return file.faults
