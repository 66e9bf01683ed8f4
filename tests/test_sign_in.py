"""``Legato(auth=...)``: who is let in, scopes, rules of sessions, cookies, tickets, streams that end with a sign-in."""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.routing import Mount

from driving import reason
from held_store import quiet
from legato import Caller, Legato
from legato.auth import JWT, APIKeys, ProxyHeader, jwt
from legato.auth.bearer import bearer
from legato.auth.keys import add_key, new_key, read_keys, revoke_key
from legato.caller import NEEDS, SCOPES
from legato.credentials import KEYS, key_holder
from legato.dialect.common import rfc3339
from legato.errors import Forbidden, InvalidInput, NotFound, Overloaded, StoreCorrupt, StoreLost, TooMany, Unauthorized
from legato.event import Draft, SessionCreated, SessionDeleted
from legato.log import RESERVED
from legato.server import sign_in
from legato.server.app import Legato as App
from legato.server.sign_in import RedactTickets, redacted
from legato.server.stream import EXPIRED, REVOKED
from legato.spending import holder
from legato.store.memory import MemoryStore
from legato.testing import ASGIResponse, Driver
from signing import AUDIENCE, ISSUER, OTHER_RSA, RSA, jwk
from signing import token as signed

SECRET = "the tea is in the attic"


async def agent(turn: Any) -> AsyncIterator[str]:
    """Tells a secret; asks first if it is told to."""
    if turn.message.text == "ask":
        await turn.ask_permission("Bash", "Lists.")
    yield SECRET


def by_header(request: Any) -> str | None:
    """Who asks, in one line."""
    name: str | None = request.headers.get("x-user")
    return name


@asynccontextmanager
async def serving(auth: Any = by_header, store: Any = None, **options: Any) -> AsyncIterator[tuple[App, Driver]]:
    app = Legato(MemoryStore() if store is None else store, agents=[agent], auth=auth, **options)
    app.drain_on_signal = False
    app.grace = 0.0
    async with Driver(app) as driver:
        yield app, driver


async def as_(driver: Driver, who: str, method: str, target: str, json: Any = None, **headers: str) -> ASGIResponse:
    fields = {"x-user": who, **{name.replace("_", "-"): value for name, value in headers.items()}}
    body = {} if json is None else {"json": json}
    return await driver.request(method, target, headers=fields, **body)


async def begun(driver: Driver, who: str = "alice") -> str:
    id: str = (await as_(driver, who, "POST", "/api/sessions", {"title": SECRET})).json()["id"]
    return id


# Who is let in --------------------------------------------------------------------------------------------------------


class Later:
    """An object that can be called, and answers later."""

    async def __call__(self, request: Any) -> Caller | None:
        await asyncio.sleep(0)
        name = by_header(request)
        return Caller(name) if name else None


async def later(request: Any) -> str | None:
    await asyncio.sleep(0)
    return by_header(request)


@pytest.mark.parametrize(
    "auth",
    [by_header, later, Later(), lambda request: Caller(request.headers["x-user"]), [lambda request: None, later]],
)
async def test_a_function_of_the_request_says_who_asks(auth: Any) -> None:
    """Async or not, a subject or a ``Caller``, one or several."""
    async with serving(auth) as (_, driver):
        session = await begun(driver)
        assert (await as_(driver, "alice", "GET", f"/api/sessions/{session}")).status == 200
        assert (await as_(driver, "bob", "GET", f"/api/sessions/{session}")).status == 404
        assert (await as_(driver, "bob", "GET", "/api/sessions")).json() == []
        refused = await driver.request("GET", f"/api/sessions/{session}")
        assert reason(refused) == (401, "unauthorized", "unauthorized")
        assert refused.headers["www-authenticate"] == "Bearer"


def raising(exc: BaseException) -> Any:
    def auth(request: Any) -> Any:
        raise exc

    return auth


@pytest.mark.parametrize(
    "auth",
    [
        lambda request: None,
        lambda request: "",
        lambda request: Caller(""),
        lambda request: 7,
        lambda request: True,
        lambda request: {"subject": "alice"},
        lambda request: "a" * 501,
        lambda request: "a\0b",
        lambda request: "\ud800",
        lambda request: Caller("alice", expires_at=time.time() - 1),
        lambda request: Caller(3),  # type: ignore[arg-type]
        raising(KeyError("token-in-a-message")),
        raising(RuntimeError("token-in-a-message")),
        raising(HTTPException(403, "token-in-a-message")),
        raising(InvalidInput("token-in-a-message")),
        raising(Unauthorized("token-in-a-message")),
        raising(SystemExit("token-in-a-message")),
        [],
    ],
)
async def test_what_is_no_caller_is_401(auth: Any, caplog: pytest.LogCaptureFixture) -> None:
    """None, an exception, or what could not own a session; no log says what an exception said."""
    if auth == []:
        with pytest.raises(InvalidInput):
            Legato("memory:", agents=[agent], auth=auth)
        return
    async with serving(auth) as (app, driver):
        for target in ("/ready", "/health/live", "/health/ready"):
            assert (await driver.request("GET", target)).status == 200
        for target in ("/api/sessions", "/health", "/v1/models", "/stream?sessionId=s", "/api/inspect"):
            answer = await driver.request("GET", target)
            assert answer.status == 401
            assert "token-in-a-message" not in answer.text
        assert (await app.store.sessions()).infos == []
    assert "token-in-a-message" not in caplog.text


@pytest.mark.parametrize("way", ["auth", "identify"])
async def test_nobody_is_called_as_legato_calls_its_own(way: str) -> None:
    """Under which it finds accounts, keys and tickets of others, so that who had such a name had them, too."""
    by: Any = {"auth": by_header, "identify": lambda scope: Caller(by_header(HTTPConnection(scope)) or "x")}[way]
    options: dict[str, Any] = {way: by}
    app = Legato(MemoryStore(), agents=[agent], **options)
    app.drain_on_signal = False
    async with Driver(app) as driver:
        for name in (f"{holder('bob')}", f"{holder('')}x", key_holder("bob"), RESERVED):
            for method, target in (("GET", "/api/sessions"), ("POST", "/api/sessions"), ("POST", "/v1/responses")):
                answer = await as_(driver, name, method, target, {"input": "x"} if "v1" in target else {})
                assert answer.status == 401, (name, target)
        assert (await app.store.sessions()).infos == []
        for name in (".", "..", f"x{holder('bob')}", ".spent", ".keys bob", f"{RESERVED}2"):
            assert (await as_(driver, name, "POST", "/api/sessions", {})).status == 201, name
    for name in (holder("bob"), key_holder("bob"), RESERVED):
        with pytest.raises(InvalidInput):
            new_key(name)


async def test_who_is_called_so_is_shown_no_page(caplog: pytest.LogCaptureFixture) -> None:
    """Nor given a cookie, or let in by a ticket that a node of an earlier version gave: as by the API. The log says
    why, without the name."""
    names = {"t1": holder("bob"), "t2": key_holder("bob"), "t3": RESERVED}
    async with serving(lambda request: names.get(bearer(request) or "")) as (app, driver):
        for token, name in names.items():
            headers = {"authorization": f"Bearer {token}"}
            for target in ("/", "/inspect"):
                page = await driver.request("GET", target, headers=headers)
                assert (page.status, 'id="form"' in page.text) == (401, True), (name, target)
            assert (await driver.request("GET", "/api/auth/whoami", headers=headers)).status == 401
            body = {"texts": ["x"]}
            assert (await driver.request("POST", "/web/markdown", json=body, headers=headers)).status == 401
            answer = await signed_in(driver, token)
            assert (answer.status, "set-cookie" in answer.headers) == (401, False), name
            assert app._sign_in is not None
            ticket = await app._sign_in.tickets.issue(Caller(name), "s")
            assert await status_of(driver, f"/stream?sessionId=s&ticket={ticket}") == 401
    [told] = [record.getMessage() for record in caplog.records if "auth failed" in record.getMessage()]
    assert "NotACaller" in told
    assert "bob" not in told


@pytest.mark.parametrize(
    ("error", "status"), [(Forbidden("no"), 403), (TooMany("no"), 429), (Overloaded("no"), 503)], ids=str
)
async def test_what_is_meant_is_said(error: Exception, status: int) -> None:
    """An error that is no answer to who asks passes as it is."""
    async with serving(raising(error)) as (_, driver):
        assert (await driver.request("GET", "/api/sessions")).status == status


def test_two_who_say_who_asks_are_a_mistake() -> None:
    """Nobody knows which one is meant."""
    with pytest.raises(InvalidInput, match="give one of them"):
        Legato("memory:", agents=[agent], auth=by_header, identify=lambda scope: Caller("x"))


# Scopes ---------------------------------------------------------------------------------------------------------------


def scoped(request: Any) -> Caller | None:
    """Alice, with the scopes that she says that she has."""
    name = request.headers.get("x-user")
    scopes = request.headers.get("x-scopes")
    return name and Caller(name, scopes=None if scopes is None else frozenset(scopes.split()))


def test_every_verb_needs_a_scope() -> None:
    """One table has them all."""
    from typing import get_args

    from legato.caller import Verb

    assert set(NEEDS) == set(get_args(Verb))
    assert {need.scopes[-1] for need in NEEDS.values()} == set(SCOPES)


REQUESTS = [
    ("read", "GET", "/api/sessions", None),
    ("read", "GET", "/api/sessions/{s}", None),
    ("read", "GET", "/api/sessions/{s}/messages", None),
    ("read", "GET", "/stream?sessionId={s}", None),
    ("read send", "POST", "/api/sessions", {"title": "x"}),
    ("send", "DELETE", "/v1/conversations/{s}", None),
    ("read send", "POST", "/v1/responses", {"input": "x", "background": True}),
    ("cancel", "POST", "/api/sessions/{s}/cancel", None),
    ("answer", "POST", "/api/permissions/{p}/grant", None),
    ("admin", "GET", "/api/inspect", None),
    ("admin", "GET", "/api/inspect/sessions/{s}", None),
]


@pytest.mark.parametrize("scopes", [(), *[(scope,) for scope in SCOPES], ("read", "send"), SCOPES, None], ids=str)
async def test_a_scope_lets_do_what_it_says_and_no_more(scopes: tuple[str, ...] | None) -> None:
    """Without it, 403 whosever it is and whether it is there or not; the head says what is missing."""
    fields = {} if scopes is None else {"x_scopes": " ".join(scopes)}
    async with serving(scoped) as (_, driver):
        for scope, method, target, body in REQUESTS:
            session = await begun(driver)
            await as_(driver, "alice", "POST", f"/api/sessions/{session}/messages", {"text": "ask"})
            await quiet()
            asked = (await as_(driver, "alice", "GET", f"/api/sessions/{session}/events")).json()["events"]
            ask = next(event["data"]["id"] for event in asked if event["type"] == "permission.requested")
            has = scope != "admin" if scopes is None else set(scope.split()) <= set(scopes)
            statuses = []
            for s, p in ((session, ask), ("s_never", "s_never~1~p1")):
                url = target.replace("{s}", s).replace("{p}", p)
                raw = {} if body is None else {"json": body}
                headers = {"x-user": "alice", **{k.replace("_", "-"): v for k, v in fields.items()}}
                if url.startswith("/stream"):
                    async with driver.stream(url, headers=headers) as stream:
                        statuses.append(stream.status)
                    continue
                answer = await driver.request(method, url, headers=headers, **raw)
                statuses.append(answer.status)
                if not has and scope != "admin":
                    assert "scope_missing" in answer.text
                    missing = next(each for each in scope.split() if each not in (scopes or ()))
                    assert f'scope="{missing}"' in answer.headers["www-authenticate"]
            if has:
                assert statuses[0] < 300
            else:
                assert statuses == [403, 403]


# Rules of sessions ----------------------------------------------------------------------------------------------------


async def test_a_rule_of_sessions_shares_them() -> None:
    """Watchers read, approvers answer, and neither does more; who is not named sees nothing."""
    asked: set[tuple[str, str]] = set()

    def may(caller: Caller, session: Any, action: str) -> bool:
        asked.add((caller.subject, action))
        if session.owner == caller.subject:
            return True
        allowed = {"watcher": {"read"}, "approver": {"read", "answer"}}.get(caller.subject, set())
        return session.created.title == SECRET and action in allowed

    async with serving(may=may) as (_, driver):
        session = await begun(driver)
        await as_(driver, "alice", "POST", f"/api/sessions/{session}/messages", {"text": "ask"})
        await quiet()
        events = (await as_(driver, "alice", "GET", f"/api/sessions/{session}/events")).json()["events"]
        ask = next(event["data"]["id"] for event in events if event["type"] == "permission.requested")
        tries = [
            ("GET", f"/api/sessions/{session}/messages", None),
            ("POST", f"/api/sessions/{session}/messages", {"text": "x"}),
            ("POST", f"/api/sessions/{session}/cancel", {"runId": "none"}),
            ("DELETE", f"/api/sessions/{session}", None),
            ("POST", f"/api/sessions/{session}/rewind", {"messageId": "x"}),
            ("POST", f"/api/permissions/{ask}/grant", None),
        ]
        statuses = {
            who: [(await as_(driver, who, *each)).status for each in tries]
            for who in ("stranger", "watcher", "approver")
        }
        assert statuses["stranger"] == [404] * 6
        assert statuses["watcher"] == [200, 404, 404, 404, 404, 404]
        assert statuses["approver"] == [200, 404, 404, 404, 404, 200]
        # What is no session's is not asked about: one's own list, and the inspector.
        assert (await as_(driver, "watcher", "GET", "/api/sessions")).json() == []
        assert (await as_(driver, "watcher", "GET", "/api/inspect")).status == 403
        assert {action for _, action in asked} == {"read", "send", "cancel", "answer", "change"}


@pytest.mark.parametrize("names", ["caller, session, action", "who, session, what", "c, info, action", "a, b, c"])
async def test_the_form_of_a_rule_is_told_by_its_names(names: str) -> None:
    """``session`` or ``action``; a rule of three other names is asked for a verb and an owner, as before."""
    seen: list[Any] = []
    rule = eval(f"lambda {names}: seen.append(({names})) or True", {"seen": seen})
    async with serving(may=rule) as (_, driver):
        session = await begun(driver)
        seen.clear()
        assert (await as_(driver, "bob", "GET", f"/api/sessions/{session}")).status == 200
    _, second, third = seen[0]
    if names == "a, b, c":
        assert isinstance(second, str)
        assert third in ("alice", "bob")
    else:
        assert (second.session, third) == (session, "read")


async def test_the_inspector_is_for_admins() -> None:
    """Who has the scope, and nobody else; a rule of one's own may say otherwise."""
    async with serving(scoped) as (_, driver):
        session = await begun(driver)
        for target in ("/api/inspect", f"/api/inspect/sessions/{session}", f"/api/inspect/sessions/{session}/wire"):
            assert (await as_(driver, "alice", "GET", target)).status == 403
            assert (await as_(driver, "ops", "GET", target, x_scopes="admin")).status == 200
            assert (await as_(driver, "ops", "GET", target, x_scopes="read send")).status == 403


# Types of bodies ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("application/json", 201),
        ("application/json; charset=utf-8", 201),
        ("Application/JSON;charset=UTF-8", 201),
        ("", 201),
        ("text/plain", 415),
        ("text/plain; application/json", 415),
        ("application/x-www-form-urlencoded", 415),
        ("multipart/form-data; boundary=x", 415),
        ("application/jsonp", 415),
        ("json", 415),
    ],
)
async def test_what_changes_something_is_json(kind: str, status: int) -> None:
    """What a form can send is refused, whatever is in it; also where nothing is read of the body."""
    async with serving() as (app, driver):
        headers = {"x-user": "alice", **({"content-type": kind} if kind else {})}
        answer = await driver.request("POST", "/api/sessions", body=b'{"title": "x"}', headers=headers)
        assert answer.status == status
        assert len((await app.store.sessions()).infos) == (status == 201)
        granted = await driver.request("POST", "/api/permissions/s~1~p1/grant", headers=headers)
        assert granted.status == (404 if status == 201 else 415)
        assert (await driver.request("GET", "/api/sessions", headers=headers)).status == 200


# Cookies --------------------------------------------------------------------------------------------------------------

SAME = {"sec-fetch-site": "same-origin", "origin": "http://localhost"}


@asynccontextmanager
async def with_key(*scopes: str, store: Any = None) -> AsyncIterator[tuple[App, Driver, APIKeys, str]]:
    keys = APIKeys()
    async with serving(keys, store) as (app, driver):
        token, _ = await keys.add("alice", scopes=scopes or ("read", "send", "cancel", "answer"))
        yield app, driver, keys, token


async def signed_in(driver: Driver, token: str, **headers: str) -> ASGIResponse:
    fields = {**SAME, **{name.replace("_", "-"): value for name, value in headers.items()}}
    return await driver.request("POST", "/api/auth/sign-in", json={"token": token}, headers=fields)


async def test_a_cookie_signs_in_our_own_pages_and_no_others() -> None:
    """Not readable by scripts, not sent by other sites, and of no account from the pages that may call without."""
    async with with_key() as (_, driver, _, token):
        answer = await signed_in(driver, token)
        assert (answer.status, answer.json()["subject"]) == (200, "alice")
        assert token not in answer.text
        cookie = answer.headers["set-cookie"]
        assert cookie.startswith(f"legato={token}; ")
        assert {"HttpOnly", "SameSite=Lax", "Path=/"} <= set(cookie.split("; "))
        assert "Secure" not in cookie

        fields = {"cookie": f"a=b; legato={token}; c=d"}
        for added, status in (
            ({}, 200),
            ({"sec-fetch-site": "same-origin"}, 200),
            ({"sec-fetch-site": "none"}, 200),
            ({"origin": "http://localhost"}, 200),
            ({"origin": "http://localhost:3000"}, 401),  # may call, and is another server's
            ({"origin": "http://127.0.0.1:3000", "sec-fetch-site": "same-site"}, 401),
            ({"origin": "https://evil.test", "sec-fetch-site": "cross-site"}, 403),
            ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}, 403),
        ):
            assert (await driver.request("GET", "/api/sessions", headers={**fields, **added})).status == status
            changed = await driver.request("POST", "/api/sessions", json={}, headers={**fields, **added})
            ours = added.get("origin") == "http://localhost" or added.get("sec-fetch-site") == "same-origin"
            assert changed.status == (201 if ours else 403 if status == 403 else 401)


async def test_a_named_sites_page_may_use_the_cookie_and_no_other() -> None:
    """As it may send any cookie (``cors``)."""
    keys = APIKeys()
    async with serving(keys, cors="https://app.example") as (_, driver):
        token, _ = await keys.add("alice")
        for origin, status in (("https://app.example", 200), ("http://localhost:3000", 401)):
            headers = {"cookie": f"legato={token}", "origin": origin}
            assert (await driver.request("GET", "/api/sessions", headers=headers)).status == status


async def test_with_tls_a_cookie_is_this_hosts_alone() -> None:
    """``__Host-``: not set by plain HTTP, by a neighbour or for a folder; and it wins over one without."""
    async with with_key() as (app, _, _, token):

        async def tls(scope: Any, receive: Any, send: Any) -> None:
            await app({**scope, "scheme": "https"}, receive, send)

        driver = Driver(tls, lifespan=False)
        cookie = (await signed_in(driver, token, origin="https://localhost")).headers["set-cookie"]
        assert cookie.startswith(f"__Host-legato={token}; ")
        assert {"Secure", "HttpOnly", "Path=/"} <= set(cookie.split("; "))
        assert "Domain" not in cookie
        headers = {"cookie": f"legato=other; __Host-legato={token}", "sec-fetch-site": "same-origin"}
        assert (await driver.request("GET", "/api/auth/whoami", headers=headers)).json()["subject"] == "alice"


async def test_a_page_of_another_site_signs_nobody_in() -> None:
    """Nor out; and what is no token is none."""
    async with with_key() as (_, driver, _, token):
        for origin in ("https://evil.test", "http://localhost:3000", "null"):
            for path in ("sign-in", "sign-out"):
                answer = await driver.request(
                    "POST", f"/api/auth/{path}", json={"token": token}, headers={"origin": origin}
                )
                assert answer.status == 403
                assert "set-cookie" not in answer.headers
        for wrong in ("", "x", token[:-1], token + "x", f"{token}; Domain=evil", "a" * 5000, "\u00e9"):
            answer = await signed_in(driver, wrong)
            assert answer.status == 401
            assert "set-cookie" not in answer.headers
        out = await driver.request("POST", "/api/auth/sign-out", headers=SAME)
        assert (out.status, "Max-Age=0" in out.headers["set-cookie"]) == (204, True)


async def test_a_header_wins_over_a_cookie() -> None:
    """Also if it is wrong: who says who they are is not taken for another."""
    async with with_key() as (_, driver, _, token):
        headers = {"cookie": f"legato={token}", "authorization": "Bearer nothing", **SAME}
        assert (await driver.request("GET", "/api/sessions", headers=headers)).status == 401


async def test_mounted_the_cookie_is_for_its_folder() -> None:
    """Other applications of the host have their own."""
    keys = APIKeys()
    app = Legato(MemoryStore(), agents=[agent], auth=keys)
    async with app.lifespan(), Driver(Starlette(routes=[Mount("/chat", app)]), lifespan=False) as driver:
        token, _ = await keys.add("alice")
        answer = await driver.request("POST", "/chat/api/auth/sign-in", json={"token": token}, headers=SAME)
        assert "Path=/chat;" in answer.headers["set-cookie"]
        assert (await driver.request("GET", "/chat/", headers={})).status == 401
        page = await driver.request("GET", "/chat/", headers={"cookie": f"legato={token}"})
        assert page.status == 200
        assert "Signed in as" in page.text


async def test_pages_of_who_has_not_signed_in_are_the_one_that_signs_in() -> None:
    """And those of who has say so, whatever the subject is; what is not personal is for everybody."""
    subject = "<script>alert(1)</script>&\"'"
    keys = APIKeys()
    async with serving(keys) as (_, driver):
        token, _ = await keys.add(subject)
        for target in ("/", "/inspect"):
            refused = await driver.request("GET", target)
            assert refused.status == 401
            assert 'id="form"' in refused.text
            page = await driver.request("GET", target, headers={"authorization": f"Bearer {token}"})
            assert page.status == 200
            assert "Signed in as" in page.text
            assert subject not in page.text
            assert "&lt;script&gt;alert(1)" in page.text
            for each in (refused, page):
                assert each.headers["cache-control"] == "no-store"
                assert "script-src 'self'" in each.headers["content-security-policy"]
        for target in ("/docs", "/sign-in", "/openapi.json", "/web/sign-in.js"):
            assert (await driver.request("GET", target)).status == 200
        assert (await driver.request("POST", "/web/markdown", json={"texts": ["x"]})).status == 401


async def test_no_answer_is_a_page_without_a_policy() -> None:
    """What is no page may load nothing, and be shown in nothing."""
    async with serving() as (_, driver):
        for target in ("/", "/docs", "/inspect", "/sign-in"):
            policy = (await driver.request("GET", target)).headers["content-security-policy"]
            assert policy.startswith("default-src 'none'; script-src 'self';")
            assert "unsafe" not in policy
        for target in ("/api/sessions", "/nothing", "/openapi.json", "/web/nothing", "/v1/models", "/web/icon.svg"):
            policy = (await driver.request("GET", target)).headers["content-security-policy"]
            assert policy == "default-src 'none'; frame-ancestors 'none'"


# Tickets --------------------------------------------------------------------------------------------------------------


async def ticket_for(driver: Driver, session: str, who: str = "alice") -> str:
    answer = await as_(driver, who, "POST", "/tickets", {"sessionId": session})
    assert answer.status == 201
    ticket: str = answer.json()["ticket"]
    return ticket


async def status_of(driver: Driver, target: str, **headers: str) -> int:
    async with driver.stream(target, headers=headers) as stream:
        return stream.status


async def test_a_ticket_opens_one_stream_once() -> None:
    """Of its session; by whichever process serves from the store."""
    store = MemoryStore()
    async with serving(store=store) as (_, driver), serving(store=store) as (_, other):
        session, second = await begun(driver), await begun(driver)
        ticket = await ticket_for(driver, session)
        for target in (
            f"/stream?sessionId={second}&ticket={ticket}",
            f"/stream?sessionId={session}&sessionId={second}&ticket={ticket}",
            f"/api/sessions?sessionId={session}&ticket={ticket}",
            f"/api/sessions/{session}/events?ticket={ticket}",
        ):
            assert await status_of(driver, target) == 401
        assert await status_of(other, f"/stream?sessionId={session}&ticket={ticket}") == 200
        for each in (driver, other):
            assert await status_of(each, f"/stream?sessionId={session}&ticket={ticket}") == 401


async def test_every_stream_that_an_event_source_can_open_takes_a_ticket() -> None:
    """Of each dialect: GET, and answered as a stream."""
    async with serving() as (_, driver):
        body = {"input": "hi", "model": "agent"}
        made = (await as_(driver, "alice", "POST", "/v1/responses", body)).json()["id"]
        session, second = made.removeprefix("resp_").rpartition("~")[0], await begun(driver)
        paths = {
            "/stream": f"/stream?sessionId={session}",
            "/v1/responses/{response_id}": f"/v1/responses/{made}?stream=true",
        }
        streams = [
            path
            for path, each in (await driver.request("GET", "/openapi.json")).json()["paths"].items()
            if "text/event-stream" in each.get("get", {}).get("responses", {}).get("200", {}).get("content", {})
        ]
        assert sorted(streams) == sorted(paths)
        for target in paths.values():
            assert await status_of(driver, f"{target}&ticket={await ticket_for(driver, second)}") == 401
            ticket = await ticket_for(driver, session)
            for wrong in (target.replace("stream=true", "stream=false"), target.replace("=true", "=true&stream=true")):
                if wrong != target:
                    assert await status_of(driver, f"{wrong}&ticket={ticket}") == 401
            assert await status_of(driver, f"{target}&ticket={ticket}") == 200
            assert await status_of(driver, f"{target}&ticket={ticket}") == 401


async def test_of_many_who_use_one_ticket_at_once_one_is_let_in() -> None:
    """It is the store that counts."""
    async with serving() as (_, driver):
        session = await begun(driver)
        target = f"/stream?sessionId={session}&ticket={await ticket_for(driver, session)}"
        statuses = await asyncio.gather(*(status_of(driver, target) for _ in range(20)))
        assert sorted(statuses) == [200] + [401] * 19


async def test_a_ticket_that_is_none_stores_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guessed, cut, of another hour, late, or of a session that is another's."""
    async with serving() as (app, driver):
        session = await begun(driver)
        assert (await as_(driver, "bob", "POST", "/tickets", {"sessionId": session})).status == 404
        assert (await as_(driver, "bob", "POST", "/tickets", {"sessionId": "s_never"})).status == 404
        assert (await driver.request("POST", "/tickets", json={"sessionId": session})).status == 401
        ticket = await ticket_for(driver, session)
        hour, _, nonce = ticket.partition(".")
        before = {i.session: i.head for i in (await app.store.sessions()).infos}
        others = [f"{hour[:9]}-aaaaaaaa.{nonce}", f"{hour[:9]}.{nonce}", f"{hour}.{nonce[:-1]}", f"{hour}.{'a' * 43}"]
        for wrong in ("", "x", nonce, f"{hour}.", *others, ticket + "x", f"{hour}.{nonce}%0a", f"-{ticket}"):
            assert await status_of(driver, f"/stream?sessionId={session}&ticket={wrong}") == 401
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now + 31)
        assert await status_of(driver, f"/stream?sessionId={session}&ticket={ticket}") == 401
        assert {i.session: i.head for i in (await app.store.sessions()).infos} == before


async def test_tickets_of_old_are_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept of them is bounded; and no list shows it."""
    async with serving(may=lambda caller, verb, owner: True) as (app, driver):
        session = await begun(driver)
        now = time.time()
        for hour in range(4):
            monkeypatch.setattr(time, "time", lambda hour=hour: now + hour * 3600)
            await ticket_for(driver, session)
        kept = [info.session for info in (await app.store.sessions()).infos]
        assert sum(id.startswith(".legato-tickets-") for id in kept) == 2
        for number in range(101):  # of whoever an earlier version let in as that
            await app.store.append(f"s{number}", [Draft(SessionCreated(owner=RESERVED))])
        monkeypatch.setattr(time, "time", lambda: now + 9 * 3600)
        await ticket_for(driver, session)
        kept = [info.session for info in (await app.store.sessions(limit=200)).infos]
        assert sum(id.startswith(".legato-tickets-") for id in kept) == 1
        for number in range(101):
            await app.store.append(f"s{number}", [Draft(SessionDeleted())])
        assert [each["id"] for each in (await as_(driver, "bob", "GET", "/api/sessions")).json()] == [session]
        assert ".legato" not in (await as_(driver, "bob", "GET", "/api/inspect")).text


async def test_tickets_have_a_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each caller: what is kept of them is bounded."""
    monkeypatch.setattr(sign_in, "TICKETS_A_MINUTE", 3.0)
    async with serving() as (_, driver):
        session = await begun(driver)
        statuses = [(await as_(driver, "alice", "POST", "/tickets", {"sessionId": session})).status for _ in range(5)]
        assert statuses == [201, 201, 201, 429, 429]
        await ticket_for(driver, await begun(driver, "bob"), "bob")


async def test_a_fault_of_auth_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """However many bad tokens come."""
    async with serving(raising(KeyError("x"))) as (_, driver):
        for _ in range(5):
            assert (await driver.request("GET", "/api/sessions")).status == 401
    assert caplog.text.count("auth failed with KeyError at") == 1


async def test_a_tickets_stream_ends_with_who_asked_for_it() -> None:
    """It reads, and no longer than they may."""
    async with with_key() as (_, driver, keys, token):
        bearer = {"authorization": f"Bearer {token}"}
        session = (await driver.request("POST", "/api/sessions", json={}, headers=bearer)).json()["id"]
        made = await driver.request("POST", "/tickets", json={"sessionId": session}, headers=bearer)
        async with driver.stream(f"/stream?sessionId={session}&ticket={made.json()['ticket']}") as stream:
            await stream.read()
            await keys.revoke(keys.keys[0].id)
            while await stream.read():
                pass
            assert stream.body.endswith(REVOKED)


def test_no_access_log_has_a_ticket() -> None:
    """As uvicorn writes them."""
    record = logging.LogRecord(
        "uvicorn.access", logging.INFO, "", 0, '%s - "%s %s HTTP/%s" %d',
        ("127.0.0.1:5", "GET", "/stream?sessionId=s&ticket=1.secret&client=legato", "1.1", 200), None,
    )  # fmt: skip
    assert RedactTickets().filter(record)
    assert record.getMessage() == '127.0.0.1:5 - "GET /stream?sessionId=s&ticket=...&client=legato HTTP/1.1" 200'
    assert redacted("/stream?ticket=1.x") == "/stream?ticket=..."
    key, kept = new_key("alice")
    assert redacted(f"/api/auth/keys/{key}?k={key}") == f"/api/auth/keys/lg_{kept.id}_...?k=lg_{kept.id}_..."
    signed = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhIn0."
    assert redacted(f"/api/sessions/{signed}{'s' * 43}/x?k=1") == f"/api/sessions/{signed}.../x?k=1"


# Keys -----------------------------------------------------------------------------------------------------------------


async def test_a_key_is_kept_as_a_hash() -> None:
    """Nothing of the store is of use to sign in with."""
    store = MemoryStore()
    async with with_key(store=store) as (_, driver, keys, token):
        logs = [info.session for info in (await store.sessions()).infos]
        kept = b"".join([event.json for log in logs for event in await store.read(log, 0)])
        assert token.rpartition("_")[2].encode() not in kept
        assert keys.keys[0].hash.encode() in kept
        listed = await driver.request("GET", "/api/auth/keys", headers={"authorization": f"Bearer {token}"})
        assert reason(listed)[2] == "scope_missing"


@pytest.mark.parametrize(
    "header",
    ["", "Bearer", "Bearer ", "Basic {t}", "{t}", "Bearer {t}x", "Bearer x{t}", "Bearer {t} {t}", "Token {t}",
     "Bearer lg_aaaaaaaaaaaa_{s}", "Bearer {t[:-1]}", "Bearer {upper}"],
)  # fmt: skip
async def test_what_is_no_key_is_nobodys(header: str) -> None:
    """Cut, lengthened, of another form or name."""
    async with with_key() as (_, driver, _, token):
        text = header.replace("{t[:-1]}", token[:-1]).replace("{t}", token).replace("{upper}", token.upper())
        text = text.replace("{s}", token.split("_", 2)[2])
        assert (await driver.request("GET", "/api/sessions", headers={"authorization": text})).status == 401
        assert (
            await driver.request("GET", "/api/sessions", headers={"authorization": f"bearer {token}"})
        ).status == 200


async def test_keys_are_made_and_revoked_over_http_by_admins() -> None:
    """Told once; a key's scopes are what was asked for."""
    async with with_key(*SCOPES) as (_, driver, _, token):
        admin = {"authorization": f"Bearer {token}"}
        body = {"subject": "bob", "name": "laptop", "scopes": ["read"], "expiresIn": 60}
        made = await driver.request("POST", "/api/auth/keys", json=body, headers=admin)
        assert made.status == 201
        bob = {"authorization": f"Bearer {made.json()['key']}"}
        who = (await driver.request("GET", "/api/auth/whoami", headers=bob)).json()
        assert (who["subject"], who["scopes"]) == ("bob", ["read"])
        assert who["expiresAt"]
        assert (await driver.request("POST", "/api/sessions", json={}, headers=bob)).status == 403
        listed = await driver.request("GET", "/api/auth/keys", headers=admin)
        assert [each["subject"] for each in listed.json()] == ["alice", "bob"]
        assert made.json()["key"] not in listed.text
        for _ in range(2):
            gone = await driver.request("DELETE", f"/api/auth/keys/{made.json()['id']}", headers=admin)
            assert gone.status in (204, 404)
            assert (await driver.request("GET", "/api/auth/whoami", headers=bob)).status == 401
        whole = await driver.request("DELETE", f"/api/auth/keys/{token}", headers=admin)  # in the place of its id
        assert (whole.status, token[-43:] in whole.text) == (404, False)
        for wrong in ({"subject": ""}, {"subject": "x", "scopes": ["root"]}, {"subject": "x", "scopes": []},
                      {"subject": "x", "expiresIn": -1}, {"subject": "a\nb"}, {"subject": "a" * 501}):  # fmt: skip
            assert (await driver.request("POST", "/api/auth/keys", json=wrong, headers=admin)).status == 400


@pytest.mark.parametrize("lines", [False, True])
@pytest.mark.parametrize("where", ["here", "elsewhere"])
async def test_a_key_that_is_revoked_ends_its_streams(where: str, lines: bool) -> None:
    """Also on another node, which only follows the log; and the others' streams go on. The end is a clean one for who
    comes back after it, and no end for who would take it for an answer's."""
    store = MemoryStore()
    async with with_key(store=store) as (_, _, keys, token):
        node = APIKeys()
        async with serving(node, store) as (app, driver):
            driver.lines = lines
            other, _ = await keys.add("alice")
            while len(node.keys) < 2:  # noqa: ASYNC110  # it is told by the log alone
                await asyncio.sleep(0.01)
            headers = {"authorization": f"Bearer {token}"}
            session = (await driver.request("POST", "/api/sessions", json={}, headers=headers)).json()["id"]
            target = f"/stream?sessionId={session}"
            async with (
                driver.stream(target, headers=headers) as stream,
                driver.stream(target, headers={"authorization": f"Bearer {other}"}) as stays,
            ):
                await stream.read()
                await stays.read()
                if where == "here":
                    await node.revoke(node.keys[0].id)
                else:
                    await revoke_key(store, node.keys[0].id)
                async with asyncio.timeout(60):
                    while await stream.read():
                        pass
                assert stream.body.endswith(REVOKED)
                assert [pump.caller.credential for pump in app.streams.readers()] == [f"key {node.keys[0].id}"]
            assert (await driver.request("GET", "/api/sessions", headers=headers)).status == 401


async def _passed_on(auth: Any, request: Any) -> Any:
    found = auth(request)
    return await found if inspect.isawaitable(found) else found


async def _subject(auth: Any, request: Any) -> Any:
    return (await _passed_on(auth, request)).subject


async def _of_own(auth: Any, request: Any) -> Any:
    known = await _passed_on(auth, request)
    return known and Caller(f"user-{known.subject}", scopes=frozenset({"read", "send"}))


async def _of_a_session_of_own(auth: Any, request: Any) -> Any:
    known = await _passed_on(auth, request)
    return known and Caller(known.subject, expires_at=time.time() + 6_000, credential="session 7")


async def _in_a_task(auth: Any, request: Any) -> Any:
    return await asyncio.create_task(_of_own(auth, request))


async def _of_a_request_of_own(auth: Any, request: Any) -> Any:
    own = HTTPConnection({"type": "http", "headers": request.scope["headers"]})
    return await _passed_on(auth, own)


OWN = [_passed_on, _subject, _of_own, _of_a_session_of_own, _in_a_task, _of_a_request_of_own]
"""What functions of an application's own make of whom another knows."""


@pytest.mark.parametrize("own", OWN)
@pytest.mark.parametrize("kind", ["key", "token"])
async def test_who_a_function_of_ones_own_has_asked_about_ends_as_they_do(
    kind: str, own: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever becomes of the caller in it: at the same time, and when the key is good no more."""
    monkeypatch.setattr(jwt, "FILE_SECONDS", 0.02)
    store, path = MemoryStore(), tmp_path / "keys.json"
    path.write_text(json.dumps({"keys": [jwk(RSA, "a")]}))
    until = time.time() + 600
    token, key = new_key("alice", scopes=["read", "send"], expires_at=until)
    await store.open()
    await add_key(store, key)
    if kind == "token":
        token = signed(RSA, headers={"kid": "a"}, exp=until - 30)
    auth: Any = APIKeys() if kind == "key" else JWT(issuer=ISSUER, audience=AUDIENCE, jwks=path)
    headers = {"authorization": f"Bearer {token}"}
    async with serving(lambda request: own(auth, request), store) as (app, driver):
        many = [driver.request("GET", "/api/auth/whoami", headers=headers) for _ in range(3)]
        said = [answer.json() for answer in await asyncio.gather(*many)]
        assert [each["expiresAt"] for each in said] == [rfc3339(until)] * 3
        assert all("admin" not in (each["scopes"] or []) for each in said)
        session = (await driver.request("POST", "/api/sessions", json={}, headers=headers)).json()["id"]
        async with driver.stream(f"/stream?sessionId={session}", headers=headers) as stream:
            await stream.read()
            if kind == "key":
                await revoke_key(store, key.id)
            else:
                path.write_text(json.dumps({"keys": [jwk(OTHER_RSA, "b")]}))
            async with asyncio.timeout(60):
                while await stream.read():
                    pass
            assert stream.body.endswith(REVOKED)
        assert (await driver.request("GET", "/api/auth/whoami", headers=headers)).status == 401
        assert sum(task.get_name() in ("legato-keys", "legato-jwks-follow") for task in asyncio.all_tasks()) == 1
        await app.stop()
        assert not [task for task in asyncio.all_tasks() if task.get_name().startswith(("legato-keys", "legato-jwks"))]


@pytest.mark.parametrize(
    ("scopes", "given"), [(("read",), ["read"]), (("read", "admin"), ["read"]), (("send",), ["send"])]
)
async def test_a_subject_alone_may_no_more_than_they_were_known_with(scopes: tuple[str, ...], given: list[str]) -> None:
    """And ``admin`` is for whom the function passes on, or says it of."""
    store, auth = MemoryStore(), APIKeys()
    token, key = new_key("alice", scopes=scopes)
    await store.open()
    await add_key(store, key)
    headers = {"authorization": f"Bearer {token}"}
    async with serving(lambda request: _subject(auth, request), store) as (_, driver):
        assert (await driver.request("GET", "/api/auth/whoami", headers=headers)).json()["scopes"] == given
    async with serving(lambda request: _passed_on(auth, request), store) as (_, driver):
        assert (await driver.request("GET", "/api/auth/whoami", headers=headers)).json()["scopes"] == sorted(scopes)


async def test_who_a_function_ends_before_their_key_is_over_then() -> None:
    """What it says of the end counts where it is the earlier one."""
    store, auth = MemoryStore(), APIKeys()
    token, key = new_key("alice", expires_at=time.time() + 600)
    await store.open()
    await add_key(store, key)
    until = time.time() + 60

    async def user(request: Any) -> Any:
        return auth(request) and Caller("alice", expires_at=until)

    async with serving(user, store) as (_, driver):
        who = await driver.request("GET", "/api/auth/whoami", headers={"authorization": f"Bearer {token}"})
        assert who.json()["expiresAt"] == rfc3339(until)


@pytest.mark.parametrize("refusal", [None, Forbidden("no"), TooMany("no"), Overloaded("no")], ids=str)
async def test_who_was_asked_about_before_the_keys_were_begun_is_asked_about_again(refusal: Exception | None) -> None:
    """Also where another request began them while the function waited for something; and whatever it made of a key
    that nobody knew yet."""
    store, auth = MemoryStore(), APIKeys()
    token, key = new_key("alice")
    await store.open()
    await add_key(store, key)
    waits, goes_on = asyncio.Event(), asyncio.Event()

    async def user(request: Any) -> Any:
        known = auth(request)
        if known is None:
            if "x-waits" in request.headers:
                waits.set()
                await goes_on.wait()
            if refusal is not None:
                raise refusal
        return known

    async with serving(user, store) as (_, driver):
        headers = {"authorization": f"Bearer {token}"}
        first = asyncio.create_task(driver.request("GET", "/api/sessions", headers={**headers, "x-waits": "yes"}))
        async with asyncio.timeout(60):
            await waits.wait()
        second = await driver.request("GET", "/api/sessions", headers=headers)
        goes_on.set()
        assert (second.status, (await first).status) == (200, 200)
        wrong = await driver.request("GET", "/api/sessions", headers={"authorization": f"Bearer {token[:-1]}-"})
        assert wrong.status == getattr(refusal, "status", 401)


async def test_who_makes_a_sign_in_for_each_request_has_some_begun() -> None:
    """As many as there may be, and all of them are ended."""
    store = MemoryStore()
    token, key = new_key("alice")
    await store.open()
    await add_key(store, key)
    headers = {"authorization": f"Bearer {token}"}
    made: list[APIKeys] = []

    def user(request: Any) -> Any:
        made.append(APIKeys())
        return made[-1](request)

    async with serving(user, store) as (_, driver):
        for _ in range(sign_in.FOUND + 5):
            await driver.request("GET", "/api/sessions", headers=headers)
        assert sum(task.get_name() == "legato-keys" for task in asyncio.all_tasks()) == sign_in.FOUND
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "legato-keys"]


async def test_a_store_that_is_away_is_no_wrong_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the keys that a function of one's own asks for cannot be read: 503, and as ever when they can."""
    store = MemoryStore()
    token, key = new_key("alice")
    await store.open()
    await add_key(store, key)
    auth = APIKeys()
    headers = {"authorization": f"Bearer {token}"}

    async def failing(*args: Any, **options: Any) -> Any:
        raise StoreLost("away")

    async with serving(lambda request: _passed_on(auth, request), store) as (_, driver):
        with monkeypatch.context() as patched:
            patched.setattr(store, "read", failing)
            assert (await driver.request("GET", "/api/auth/whoami", headers=headers)).status == 503
        assert (await driver.request("GET", "/api/auth/whoami", headers=headers)).status == 200


async def test_a_stream_that_is_opened_while_its_key_is_revoked_ends() -> None:
    """The one was asked for before, and is begun after."""
    async with with_key() as (app, driver, keys, token):
        headers = {"authorization": f"Bearer {token}"}
        session = (await driver.request("POST", "/api/sessions", json={}, headers=headers)).json()["id"]
        app.streams.dismiss(keys.keys[0].credential)
        async with asyncio.timeout(60), driver.stream(f"/stream?sessionId={session}", headers=headers) as stream:
            while await stream.read():
                pass
            assert stream.body.endswith(REVOKED)


async def test_the_keys_of_a_store_outlive_its_server() -> None:
    """They are read at the start, those that were revoked are not."""
    store = MemoryStore()
    tokens = []
    for _ in range(2):
        token, key = new_key("alice")
        await add_key(store, key)
        tokens.append(token)
    await revoke_key(store, key.id)
    with pytest.raises(NotFound):
        await revoke_key(store, key.id)
    assert len(await read_keys(store)) == 1
    async with serving(APIKeys(), store) as (_, driver):
        statuses = [
            (await driver.request("GET", "/api/sessions", headers={"authorization": f"Bearer {token}"})).status
            for token in tokens
        ]
    assert statuses == [200, 401]


async def test_a_store_whose_log_of_keys_has_been_deleted_says_so() -> None:
    """Instead of trying for ever; and it keeps nothing of the key."""
    store = MemoryStore()
    _, first = new_key("alice")
    await add_key(store, first)
    await store.append(KEYS, [Draft(SessionDeleted())])
    _, second = new_key("alice")
    async with asyncio.timeout(60):
        with pytest.raises(StoreCorrupt, match="has been deleted"):
            await add_key(store, second)
    assert f".legato-key-{second.id}" not in {info.session for info in (await store.sessions()).infos}


async def test_keys_are_read_anew_when_the_store_has_lost_some() -> None:
    """As by a failover: what is not in the log any more is good for nothing."""
    store = MemoryStore()
    async with with_key(store=store) as (_, driver, keys, token):
        headers = {"authorization": f"Bearer {token}"}
        kept = store._logs.pop(".legato-keys")
        store.doorbell.forget()
        while keys.keys:  # noqa: ASYNC110  # nobody is told
            await asyncio.sleep(0)
        assert (await driver.request("GET", "/api/sessions", headers=headers)).status == 401
        store._logs[".legato-keys"] = kept
        store.doorbell.forget()
        while not keys.keys:  # noqa: ASYNC110
            await asyncio.sleep(0)
        assert (await driver.request("GET", "/api/sessions", headers=headers)).status == 200


async def test_who_is_erased_is_signed_out() -> None:
    """Their key is good for nothing, and tickets go; who comes then is given new ones."""
    async with with_key() as (app, driver, keys, token):
        headers = {"authorization": f"Bearer {token}"}
        other, _ = await keys.add("bob")
        session = (await driver.request("POST", "/api/sessions", json={}, headers=headers)).json()["id"]
        ticket = (await driver.request("POST", "/tickets", json={"sessionId": session}, headers=headers)).json()[
            "ticket"
        ]
        subject = keys.keys[0].subject
        assert (await app.erase(subject)).keys == 1
        while len(keys.keys) > 1:  # noqa: ASYNC110  # nobody is told
            await asyncio.sleep(0)
        assert (await driver.request("GET", "/api/sessions", headers=headers)).status == 401
        assert await status_of(driver, f"/stream?sessionId={session}&ticket={ticket}") == 401
        headers = {"authorization": f"Bearer {other}"}
        session = (await driver.request("POST", "/api/sessions", json={}, headers=headers)).json()["id"]
        made = [driver.request("POST", "/tickets", json={"sessionId": session}, headers=headers) for _ in range(5)]
        tickets = [each.json()["ticket"] for each in await asyncio.gather(*made)]
        assert len({each.partition(".")[0] for each in tickets}) == 1
        assert await status_of(driver, f"/stream?sessionId={session}&ticket={tickets[0]}") == 200
        kept = b"".join(
            [
                event.json
                for info in (await app.store.sessions()).infos
                for event in await app.store.read(info.session, 0)
            ]
        )
        assert f'"{subject}"'.encode() not in kept


# Expiry ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lines", [False, True])
@pytest.mark.parametrize("dialect", ["mix", "responses"])
async def test_a_stream_ends_with_its_sign_in(dialect: str, lines: bool) -> None:
    """After a comment that says so; what comes back is asked to sign in, and goes on where it was."""
    life = [60.0]  # from when it is shown, so that no machine is too slow for it

    def auth(request: Any) -> Caller:
        return Caller("alice", expires_at=time.time() + life[0])

    gate = asyncio.Event()

    async def slow(turn: Any) -> AsyncIterator[str]:
        yield "a"
        await gate.wait()
        yield "b"

    app = Legato(MemoryStore(), agents=[slow], auth=auth)
    app.drain_on_signal = False
    app.grace = 0.0
    async with Driver(app) as driver:
        driver.lines = lines
        session = (await driver.request("POST", "/api/sessions", json={})).json()["id"]
        await driver.request("POST", f"/api/sessions/{session}/messages", json={"text": "x"})
        said = b""
        for seconds in (0.3, 3.0, 30.0):  # until there was time to say something
            if b'"a"' in said:
                break
            if dialect == "mix":
                opening = driver.stream(f"/stream?sessionId={session}&from=start")
            else:
                body = b'{"input": "x", "stream": true}'
                opening = driver.stream("/v1/responses", method="POST", body=body)
            life[0] = seconds
            async with opening as stream:
                while await stream.read():
                    pass
                said = stream.body
        assert said.endswith(EXPIRED)
        assert b'"a"' in said
        life[0] = -1.0
        answer = await driver.request("GET", "/api/sessions")
        assert reason(answer) == (401, "unauthorized", "unauthorized")
        life[0] = 60.0
        assert (await driver.request("GET", "/api/sessions")).status == 200
        gate.set()
        await quiet()


# A proxy's word -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trusted", "address", "headers", "status"),
    [
        ("10.0.0.5", "10.0.0.5", [("x-forwarded-user", "alice")], 200),
        (["192.168.0.0/16", "10.0.0.0/8"], "10.9.9.9", [("x-forwarded-user", "alice")], 200),
        ("10.0.0.0/8", "::ffff:10.9.9.9", [("x-forwarded-user", "alice")], 200),
        ("fd00::/8", "fd00::1", [("x-forwarded-user", "alice")], 200),
        ("10.0.0.5", "10.0.0.6", [("x-forwarded-user", "alice")], 401),
        ("10.0.0.5", "testclient", [("x-forwarded-user", "alice")], 401),
        ("10.0.0.5", "", [("x-forwarded-user", "alice")], 401),
        ("10.0.0.5", "10.0.0.5", [("x-forwarded-user", "alice"), ("x-forwarded-user", "bob")], 401),
        ("10.0.0.5", "10.0.0.5", [("x-forwarded-user", " ")], 401),
        ("10.0.0.5", "10.0.0.5", [], 401),
        ("10.0.0.5", "10.0.0.6", [("x-forwarded-user", "alice"), ("x-forwarded-for", "10.0.0.5")], 401),
    ],
)
async def test_a_proxy_is_believed_by_its_address(trusted: Any, address: str, headers: Any, status: int) -> None:
    """And nobody else, whatever they send."""
    app = Legato(MemoryStore(), agents=[agent], auth=ProxyHeader("X-Forwarded-User", trusted=trusted))

    async def moved(scope: Any, receive: Any, send: Any) -> None:
        fields = [*scope["headers"], *((name.encode(), value.encode()) for name, value in headers)]
        await app({**scope, "client": (address, 5) if address else None, "headers": fields}, receive, send)

    async with Driver(app), Driver(moved, lifespan=False) as driver:
        assert (await driver.request("GET", "/api/sessions")).status == status


@pytest.mark.parametrize(("raw", "subject"), [("jürgen 李".encode(), "jürgen 李"), (b"j\xfcrgen", "jürgen")])
async def test_a_proxy_may_name_anybody(raw: bytes, subject: str) -> None:
    """In UTF-8, or in what HTTP once had."""
    app = Legato(MemoryStore(), agents=[agent], auth=ProxyHeader("X-Forwarded-User", trusted="10.0.0.5"))

    async def moved(scope: Any, receive: Any, send: Any) -> None:
        fields = [*scope["headers"], (b"x-forwarded-user", raw)]
        await app({**scope, "client": ("10.0.0.5", 5), "headers": fields}, receive, send)

    async with Driver(app), Driver(moved, lifespan=False) as driver:
        assert (await driver.request("GET", "/api/auth/whoami")).json()["subject"] == subject


@pytest.mark.parametrize(
    ("header", "trusted"), [("X-User", []), ("X-User", "proxy.example"), ("X-User", "10.0.0.0/99"), ("a b", "10.0.0.1")]
)
def test_a_proxy_that_nobody_is_is_a_mistake(header: str, trusted: Any) -> None:
    """At once, and not with the first request."""
    with pytest.raises(InvalidInput):
        ProxyHeader(header, trusted=trusted)
