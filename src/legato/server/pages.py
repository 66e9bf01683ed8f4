"""The pages and what they ask for besides: the chat, the API's reference with its document, the inspector, Markdown.

It is loaded when something that no dialect has is first asked for, since it brings Starlette's routing and anyio, which
no other request needs.
"""

from __future__ import annotations

import asyncio
import functools
import html
import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request as HTTPRequest
from starlette.responses import FileResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from ..caller import NOBODY, Caller
from ..credentials import without_keys
from ..errors import LegatoError, Unauthorized
from .adaptor import Internal, WholeResponse, respond, respond_error
from .life import Life
from .openapi import document
from .operation import NoSuchRoute, Operation, WrongMethod
from .press import RenderRequest
from .reply import Body
from .request import Request
from .sign_in import SignIn

logger = logging.getLogger("legato")

WEB = Path(__file__).parent.parent / "web"

PAGE_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'self'",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}
PERSONAL_HEADERS = {**PAGE_HEADERS, "cache-control": "no-store", "vary": "Cookie, Authorization"}
"""Of a page that shows who has signed in."""


def pages(operations: Sequence[Operation], life: Life) -> ASGIApp:
    """The application of the pages. To be made in a thread: it takes some 50 ms.

    Args:
        operations: that the reference describes.
        life: of the application.
    """

    @functools.cache
    def described() -> bytes:
        return msgspec.json.encode(document(operations, signs_in=isinstance(life.settings.identify, SignIn)))

    anyio.run(anyio.sleep, 0)  # loads what serves files, which would else be at the first of them, on the loop

    identify = life.settings.identify

    def page(name: str) -> Callable[[HTTPRequest], Any]:
        async def endpoint(http: HTTPRequest) -> Response:
            return FileResponse(WEB / name, headers=PAGE_HEADERS)

        return endpoint

    def own_page(name: str) -> Callable[[HTTPRequest], Any]:
        """A page of who is signed in; for who is not, the one that signs in stands in its place."""
        if not isinstance(identify, SignIn):
            return page(name)
        text = (WEB / name).read_text("utf-8")

        async def endpoint(http: HTTPRequest) -> Response:
            try:
                caller = await identify(http.scope)
            except Unauthorized:
                return FileResponse(WEB / "sign-in.html", 401, headers=PERSONAL_HEADERS)
            return Response(_shown(text, caller), headers=PERSONAL_HEADERS, media_type="text/html")

        return endpoint

    async def openapi(http: HTTPRequest) -> Response:
        return WholeResponse(await anyio.to_thread.run_sync(described), media_type="application/json")

    async def rendering(http: HTTPRequest) -> Response:
        request = Request(http, life, await identify(http.scope) if isinstance(identify, SignIn) else NOBODY)
        request.check_type()
        body = await request.body(RenderRequest)
        rendered = asyncio.ensure_future(life.press.answer(body, http.client.host if http.client else ""))
        left = asyncio.ensure_future(request.left())
        try:
            await asyncio.wait({rendered, left}, return_when=asyncio.FIRST_COMPLETED)
            return respond(Body(200, rendered.result() if rendered.done() else None))
        finally:
            rendered.cancel()  # nobody is there to be answered
            left.cancel()

    async def without_slash(http: HTTPRequest) -> Response:
        # Relative: nobody here knows for sure under which scheme, name and prefix a proxy is reached.
        name = http.url.path.rstrip("/").rpartition("/")[2]
        return Response(status_code=308, headers={"location": f"../{name}"})

    made = Starlette(
        routes=[
            Route("/", own_page("index.html")),
            Route("/docs", page("docs.html")),
            Route("/inspect", own_page("inspect.html")),
            *([Route("/sign-in", page("sign-in.html"))] if isinstance(identify, SignIn) else []),
            Route("/openapi.json", openapi),
            Route("/web/markdown", rendering, methods=["POST"]),
            *(Route(f"/{name}/", without_slash) for name in ("docs", "inspect", "openapi.json")),
            Mount("/web", GZipMiddleware(WebFiles(directory=WEB))),
        ],
        exception_handlers={LegatoError: _on_error, HTTPException: _on_http_error, Exception: _on_crash},
    )
    made.router.redirect_slashes = False  # to an address with the scheme and the name that this server thinks it has
    return made


class WebFiles(StaticFiles):
    """Files; those that are programs without what is said about them, which is a third, line for line."""

    def file_response(self, full_path: Any, stat_result: Any, scope: Any, status_code: int = 200) -> Response:
        """What is sent of a file."""
        found = super().file_response(full_path, stat_result, scope, status_code)
        if not (isinstance(found, FileResponse) and str(full_path).endswith(".js")):
            return found
        headers = {name: found.headers[name] for name in ("etag", "last-modified")}
        program = _program(str(full_path), stat_result.st_mtime)
        return Response(program, status_code, headers=headers, media_type=found.media_type)


@functools.lru_cache(maxsize=256)
def _program(path: str, changed: float) -> str:
    return uncommented(Path(path).read_text("utf-8"))


def uncommented(program: str) -> str:
    """Without its comments; the lines keep their numbers."""
    return _COMMENTS.sub(lambda found: "\n" * found[0].count("\n"), program)


# On lines of their own; of types, within a line; and behind a line's code, where no string can end.
_COMMENTS = re.compile(
    r"^[ \t]*(?://.*|/\*(?:[^*]|\*(?!/))*\*/[ \t]*)$|/\*\* @(?:[^*]|\*(?!/))*\*/ ?|[ \t]+// [^\"`\n]*$", re.MULTILINE
)


def _shown(text: str, caller: Caller) -> str:
    """A page that says who has signed in."""
    name = html.escape(caller.subject)
    who = f' · <a href="sign-in">Signed in as <b dir="auto">{name}</b></a>'
    return text.replace("<!-- who -->", f'{who}<script type="module" src="web/account.js"></script>')


async def _on_error(http: HTTPRequest, exc: Exception) -> Response:
    assert isinstance(exc, LegatoError)
    if exc.status >= 500:
        logger.error("%s %s: %s", http.method, without_keys(http.url.path), exc)
    return respond_error(exc)


async def _on_http_error(http: HTTPRequest, exc: Exception) -> Response:
    assert isinstance(exc, HTTPException)
    headers = exc.headers or {}
    scope = {**http.scope, "root_path": http.scope.get("app_root_path", "")}  # without that of the folder of pages
    error: LegatoError = NoSuchRoute(scope)
    if exc.status_code == 405:
        error = WrongMethod(scope, headers.get("Allow", "another method"))
    answer = respond_error(error)
    answer.status_code = exc.status_code
    answer.headers.update(headers)
    return answer


async def _on_crash(http: HTTPRequest, exc: Exception) -> Response:
    return respond_error(Internal())
