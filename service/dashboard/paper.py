"""What pages are printed on: templates, static files, and the headers that every page has.

Vendors' words are hostile: templates escape everything, and a page runs, loads and frames nothing but our own files.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any, Final

from jinja2 import Environment, PackageLoader
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from service.api.problems import ApiError
from service.dashboard import drawing, words
from service.dashboard.session import Session
from service.model import Archive, Status
from service.vendors import VENDORS

_TYPES: Final = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
_OWN: Final = "script-src 'self'; style-src 'self'; img-src 'self'; media-src 'self'; connect-src 'self'"
_NOWHERE: Final = "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
_HEADERS: Final = {
    "content-security-policy": f"default-src 'none'; {_OWN}; {_NOWHERE}",
    "referrer-policy": "same-origin",  # with less, browsers do not say that a form of ours is ours
}


class Paper:
    def __init__(self) -> None:
        folder = files("service.dashboard") / "static"
        self._files = {file.name: file.read_bytes() for file in folder.iterdir()}
        self._version = hashlib.sha256(b"".join(self._files[name] for name in sorted(self._files))).hexdigest()[:12]
        self._templates = Environment(
            loader=PackageLoader("service.dashboard"),
            autoescape=True,
            auto_reload=False,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        drawn = (drawing.lanes, drawing.bars, drawing.lines, drawing.peak)
        self._templates.globals |= {draw.__name__: draw for draw in drawn}
        self._templates.globals |= {
            "static": self._address,
            "statuses": list(Status),
            "archives": list(Archive),
            "LIVING": drawing.LIVING,
        }
        self._templates.globals |= {"vendors": {slug: f"v{number % 4}" for number, slug in enumerate(sorted(VENDORS))}}
        self._templates.filters |= words.FILTERS

    def routes(self) -> list[Route]:
        return [Route("/static/{version}/{name}", self._static, methods=["GET"])]

    async def _static(self, request: Request) -> Response:
        """The address changes with the content, so that a browser asks once.

        While one release follows another, pages of the other ask here too: they get ours, and do not keep it.
        """
        name, version = request.path_params["name"], request.path_params["version"]
        if name not in self._files:
            raise ApiError(404, "there is no such file")
        headers = {"cache-control": "public, max-age=31536000, immutable"} if version == self._version else None
        return Response(self._files[name], headers=headers, media_type=_TYPES[name.rpartition(".")[2]])

    def _address(self, name: str) -> str:
        return f"/static/{self._version}/{name}"

    def page(
        self, request: Request, template: str, status: int = 200, *, session: Session | None = None, **more: Any
    ) -> Response:
        csrf = Markup('<input type="hidden" name="csrf" value="{}">').format(session.csrf) if session else ""
        here = request.url.path
        html = self._templates.get_template(f"{template}.html").render(
            session=session, csrf=csrf, here=here, now=datetime.now(UTC), **more
        )
        if status == 200 and "hx-request" in request.headers and not more.get("live"):
            status = 286  # by which htmx asks no more
        return Response(html, status, _HEADERS, media_type="text/html")
