"""The server of the page: links in, HTML out. It runs on this machine and for it alone."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import uvicorn
from anyio import to_thread
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from reconv.explorer import state as states
from reconv.explorer.kinds import CONTROLS, KINDS
from reconv.explorer.panel import measured, panel_of
from reconv.reporting.drawn import OFFSETS

HERE = Path(__file__).parent
HOSTS = ["127.0.0.1", "localhost"]
LONGEST_QUERY = 2000
LONGEST_HEAD = 2**14  # bytes of a request's headers
THREADS = 6
PREFIXES = ("", "b.")
HEADERS = {
    b"content-security-policy": b"default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    b"img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-resource-policy": b"same-origin",
}
_templates = Environment(loader=FileSystemLoader(HERE / "templates"), autoescape=True, undefined=StrictUndefined)
_measuring = Lock()


@dataclass(frozen=True)
class Given:
    """A page of something that was named on the command line: a run folder's report, a network's summary."""

    title: str
    html: str


def app(given: Sequence[Given] = ()) -> Starlette:
    """The page as an ASGI application."""

    def index(request: Request) -> Response:
        query = dict(request.query_params)
        compared = query.get("compare") == "1"
        panels = [panel_of(states.read(query, prefix), prefix) for prefix in PREFIXES[: 1 + compared]]
        return _html("page.html", panels=panels, compared=compared, given=given)

    def given_page(request: Request) -> Response:
        number = request.path_params["number"]
        if not 0 <= number < len(given):
            return PlainTextResponse("There is no such page.", 404)
        return HTMLResponse(given[number].html)

    routes = [
        Route("/", index),
        Route("/panel", panel),
        Route("/latency", latency),
        Route("/given/{number:int}", given_page),
        Route("/favicon.ico", lambda request: RedirectResponse("/static/icon.svg")),
        Mount("/static", StaticFiles(directory=HERE / "static")),
    ]
    guards = [Middleware(Guard), Middleware(TrustedHostMiddleware, allowed_hosts=HOSTS, www_redirect=False)]
    return Starlette(routes=routes, middleware=guards, lifespan=_few_threads)


def server(served: Starlette) -> uvicorn.Server:
    """What serves the page, to this machine: no proxy speaks for others, and heads of requests are short."""
    return uvicorn.Server(uvicorn.Config(
        served, log_level="warning", http="h11", h11_max_incomplete_event_size=LONGEST_HEAD, proxy_headers=False,
        server_header=False))  # fmt: skip


@asynccontextmanager
async def _few_threads(app: Starlette) -> AsyncIterator[None]:
    """Drawing is Python's alone: more threads are no faster, and each keeps the memory of its largest picture."""
    to_thread.current_default_thread_limiter().total_tokens = THREADS
    yield


def panel(request: Request) -> Response:
    """One panel by itself, which the page puts in the place of the old one."""
    query = dict(request.query_params)
    prefix = query.get("panel", "")
    if prefix not in PREFIXES:
        return PlainTextResponse("panel must be empty or b.", 400)
    return _html("panel.html", panel=panel_of(states.read(query, prefix), prefix))


def latency(request: Request) -> Response:
    """Measured here, one at a time."""
    query = dict(request.query_params)
    prefix = query.get("panel", "")
    state = states.read(query, prefix if prefix in PREFIXES else "")
    if state.wrong:
        return JSONResponse({"latency": "not measured: a value is wrong"}, 422)
    if not _measuring.acquire(blocking=False):
        return JSONResponse({"latency": "another measurement is running"}, 503, {"retry-after": "1"})
    try:
        return JSONResponse(measured(state))
    finally:
        _measuring.release()


def _html(template: str, **values: Any) -> HTMLResponse:
    page = _templates.get_template(template).render(kinds=KINDS, controls=CONTROLS, offsets=OFFSETS, **values)
    return HTMLResponse(page)


class Guard:
    """Lets no other page's requests in, and no query that is too long; says so to whom it lets in."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        origin, host = headers.get(b"origin"), headers.get(b"host", b"")
        refused = None
        elsewhere = headers.get(b"sec-fetch-site") == b"cross-site" and headers.get(b"sec-fetch-mode") != b"navigate"
        if elsewhere or (origin is not None and origin != b"http://" + host):
            refused = PlainTextResponse("Requests of other pages are not answered.", 403)
        elif len(scope["query_string"]) > LONGEST_QUERY:
            refused = PlainTextResponse(f"A link has at most {LONGEST_QUERY} characters.", 414)

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *HEADERS.items()]
            await send(message)

        await (refused or self.app)(scope, receive, guarded)
