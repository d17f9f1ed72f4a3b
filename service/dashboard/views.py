"""The dashboard's routes: pages and buttons, both as tables, over the API from within.

A page asks the API and fills a template. A button is a form that is passed to the API. Nothing here knows a rule.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl, quote

import msgspec
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from service import logs
from service.api.auth import Keys, check_method
from service.api.problems import REFUSALS, ApiError, as_problem, by_method, read_body
from service.dashboard import words
from service.dashboard.drawing import LIVING
from service.dashboard.inside import Inside
from service.dashboard.media import streamed
from service.dashboard.paper import Paper
from service.dashboard.session import Session, Sessions
from service.deployment import Deployment
from service.jobs import audit
from service.model import Stored
from service.vendors import VENDORS


class Page(NamedTuple):
    template: str
    asks: dict[str, str]  #: name in the template → path of the API; the first is asked with the page's own query
    live: bool = False


PAGES: Final = {
    "/": Page("overview", {"overview": "/overview", "costs": "/costs?group=vendor&since={week}"}, live=True),
    "/jobs": Page("jobs", {"page": "/jobs"}, live=True),
    "/jobs/{id}": Page(
        "job",
        {"job": "/jobs/{id}", "timeline": "/jobs/{id}/timeline", "deliveries": "/jobs/{id}/deliveries"},
        live=True,
    ),
    "/quarantine": Page("letters", {"page": "/quarantine"}, live=True),
    "/quarantine/{id}": Page("letter", {"letter": "/quarantine/{id}"}),
    "/endpoints": Page("endpoints", {"endpoints": "/endpoints"}, live=True),
    "/endpoints/{id}": Page(
        "endpoint", {"page": "/endpoints/{id}/deliveries", "endpoint": "/endpoints/{id}"}, live=True
    ),
    "/vendors": Page("vendors", {"found": "/vendors", "overview": "/overview?hours=1"}),
}


class Button(NamedTuple):
    """A form's path is the API's too, but for what the API does by other methods."""

    done: str  #: for people, in the words of what will happen
    path: str = ""
    method: str = "POST"
    body: dict[str, object] | None = None  #: None: the form's fields


BUTTONS: Final = {
    "/jobs/{id}/refresh": Button("The vendor is being asked. What it says shows up here.", body={}),
    "/jobs/{id}/resolve": Button("Noted. The job goes on from here."),
    "/quarantine/{id}/replay": Button("The callback was understood, and has left quarantine.", body={}),
    "/endpoints/{id}/test": Button("A test event is on its way; its delivery shows up here.", body={}),
    "/endpoints/{id}/replay": Button("The events since then are sent again."),
    "/endpoints/{id}/enable": Button("It hears of events again.", "/endpoints/{id}", "PATCH", {"enabled": True}),
    "/endpoints/{id}/disable": Button("It hears of nothing any more.", "/endpoints/{id}", "PATCH", {"enabled": False}),
    "/deliveries/{id}/replay": Button("The event is sent again.", body={}),
}
#: What a page says afterwards, by a word in its address.
_DONE: Final = {path.strip("/").replace("/{id}/", "-"): button.done for path, button in BUTTONS.items()}

_OURS: Final = re.compile(r"/(?![/\\])[^\s\\]{0,500}")  #: an address on this site
_ELSEWHERE: Final = {"qua_": "/quarantine/", "ep_": "/endpoints/"}

_log = logs.get("dashboard")

View = Callable[[Request, Session], Awaitable[Response]]


def routes(deployment: Deployment, api: ASGIApp, keys: Keys) -> list[Route]:
    """`api` is what is behind `/v1`, without the question for a key."""
    dashboard = _Dashboard(deployment, api, keys)
    signed_in = dashboard.signed_in
    return [
        *dashboard.paper.routes(),
        by_method("/sign-in", GET=dashboard.door, POST=dashboard.sign_in),
        Route("/sign-out", signed_in(dashboard.sign_out), methods=["POST"]),
        Route("/jobs/{id}/outputs/{number:int}", signed_in(dashboard.output), methods=["GET"]),
        Route("/vendors/{vendor}/callback-url", signed_in(dashboard.reveal), methods=["POST"]),
        *(Route(path, signed_in(partial(dashboard.page, page)), methods=["GET"]) for path, page in PAGES.items()),
        *(Route(path, signed_in(partial(dashboard.press, path)), methods=["POST"]) for path in BUTTONS),
    ]


class _Dashboard:
    def __init__(self, deployment: Deployment, api: ASGIApp, keys: Keys) -> None:
        self.paper = Paper()
        self._inside = Inside(api)
        self._sessions = Sessions(deployment.settings)
        self._keys = keys
        self._tokens = deployment.tokens
        self._storage = deployment.storage
        self._store = deployment.store

    # -- sessions ------------------------------------------------------------------------------------------------------

    def signed_in(self, view: View) -> Callable[[Request], Awaitable[Response]]:
        async def handle(request: Request) -> Response:
            session = self._sessions.read(request)
            if session is None:
                return _to_sign_in(request)
            try:
                return await view(request, session)
            except REFUSALS as refused:
                return self._problem(request, session, as_problem(refused))

        return handle

    async def door(self, request: Request) -> Response:
        return self.paper.page(request, "sign-in", next=request.query_params.get("next", "/"))

    async def sign_in(self, request: Request) -> Response:
        form = await _form(request)
        next_ = form.get("next", "/")
        try:
            self._sessions.check_origin(request)
            key = form.get("key", "").strip()
            name, scopes = self._keys.holder(key.encode(errors="replace"), request.scope, told=True)
            check_method(scopes, "GET")
        except ApiError as refused:
            told = "This is not a key of this deployment." if refused.status == 401 else refused.detail
            return self.paper.page(request, "sign-in", refused.status, next=next_, problem=told)
        response = RedirectResponse(next_ if _OURS.fullmatch(next_) else "/", 303)
        self._sessions.begin(response, name)
        _log.info("signed in", key_name=name)
        return response

    async def sign_out(self, request: Request, session: Session) -> Response:
        await self._checked_form(request, session)
        response = RedirectResponse("/sign-in", 303)
        self._sessions.end(response)
        return response

    async def _checked_form(self, request: Request, session: Session) -> dict[str, str]:
        """The fields of a form of this session, without what is ours in it."""
        form = await _form(request)
        self._sessions.check_form(request, session, form.pop("csrf", ""))
        return form

    # -- pages ---------------------------------------------------------------------------------------------------------

    async def page(self, page: Page, request: Request, session: Session, **more: Any) -> Response:
        query = {name: value.strip() for name, value in request.query_params.items()}
        told: dict[str, Any] = {"done": _DONE.get(query.pop("done", "")), "live": page.live, "query": query}
        told["address"] = request.url.path + words.kept(query)
        week = (datetime.now(UTC) - timedelta(days=6)).date().isoformat()
        for number, (name, asked) in enumerate(page.asks.items()):
            path, _, own = asked.partition("?")
            given = query if number == 0 else dict(parse_qsl(own.format(week=week)))
            told[name] = await self._inside.get(session, path.format(**request.path_params), given)
        if page.template == "jobs" and (elsewhere := _one_and_only(query, told["page"]["data"])):
            return RedirectResponse(elsewhere, 303)
        if "job" in told:  # nothing moves by itself any more, unless somebody has just pressed something
            told["live"] = bool(told["done"]) or told["job"]["archive"] == "waiting" or told["job"]["status"] in LIVING
        return self.paper.page(request, page.template, session=session, **told, **more)

    def _problem(self, request: Request, session: Session, problem: ApiError) -> Response:
        back = getattr(request.state, "back", None)
        return self.paper.page(request, "problem", problem.status, session=session, problem=problem, back=back)

    async def output(self, request: Request, session: Session) -> Response:
        """A stored file, for the player on a job's page."""
        job_id, number = request.path_params["id"], request.path_params["number"]
        outputs = (await self._inside.get(session, f"/jobs/{job_id}"))["outputs"]
        stored = outputs[number]["stored"] if number < len(outputs) else None
        if stored and self._storage.path(stored["key"]) is None:
            return await streamed(request, self._storage, msgspec.convert(stored, Stored))
        return _Passed(partial(self._inside.pass_on, session, f"/jobs/{job_id}/outputs/{number}"))

    # -- buttons -------------------------------------------------------------------------------------------------------

    async def press(self, path: str, request: Request, session: Session) -> Response:
        form, button = await self._checked_form(request, session), BUTTONS[path]
        back = form.pop("back", "/")
        request.state.back = back = back if _OURS.fullmatch(back) else "/"
        body = {name: value for name, value in form.items() if value} if button.body is None else button.body
        asked = (button.path or path).format(**request.path_params)
        await self._inside.call(session, button.method, asked, body=body)
        return RedirectResponse(f"{back}?done={path.strip('/').replace('/{id}/', '-')}", 303)

    async def reveal(self, request: Request, session: Session) -> Response:
        """Show a vendor's shared callback URL, once, to an admin, and note to whom."""
        await self._checked_form(request, session)
        vendor = request.path_params["vendor"]
        if not session.may("admin"):
            raise ApiError(403, "only a key with the scope 'admin' may see a callback URL")
        if vendor not in VENDORS:
            raise ApiError(404, "there is no such vendor")
        await audit.note(self._store, session.key_name, "vendors.reveal", vendor, "200")  # or it is not shown
        return await self.page(PAGES["/vendors"], request, session, revealed={vendor: self._tokens.url(vendor)})


class _Passed(Response):
    """An answer that somebody else gives."""

    def __init__(self, answer: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        super().__init__()
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._answer(scope, receive, send)


async def _form(request: Request) -> dict[str, str]:
    try:
        return dict(parse_qsl((await read_body(request)).decode(errors="replace"), max_num_fields=20))
    except ValueError:
        raise ApiError(400, "the form cannot be read") from None


def _to_sign_in(request: Request) -> Response:
    if "hx-request" in request.headers:  # a live part of a page: the page itself has to go
        return Response(status_code=204, headers={"HX-Redirect": "/sign-in"})
    address = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    next_ = f"?next={quote(address)}" if request.method == "GET" and address != "/" else ""
    return RedirectResponse(f"/sign-in{next_}", 303)


def _one_and_only(query: dict[str, str], jobs: list[dict[str, Any]]) -> str | None:
    """Where somebody wants to go who looks for an id."""
    if set(query) != {"id"}:
        return None
    any_id = query["id"]
    for prefix, path in _ELSEWHERE.items():
        if re.fullmatch(prefix + "[0-9a-v]{24}", any_id):
            return path + any_id
    return f"/jobs/{jobs[0]['id']}" if len(jobs) == 1 else None
