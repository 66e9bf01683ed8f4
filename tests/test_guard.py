"""What the guard refuses and lets pass: names, origins, what other sites' pages cause; and the marks on answers."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient

from driving import chatting, echo, reason
from legato.errors import InvalidInput
from legato.server.app import Legato
from legato.server.guard import origin_as_sent
from legato.testing import Driver

# Hosts ----------------------------------------------------------------------------------------------------------------


def elsewhere(app: Any, address: Any, hosts: Any, *, client: Any = ("192.168.1.9", 5), version: str = "1.1") -> Any:
    """``app`` as it is reached at another address of the machine, with these Host fields."""

    async def moved(scope: Any, receive: Any, send: Any) -> None:
        fields = [field for field in scope["headers"] if field[0] != b"host"]
        fields += [(b"host", host.encode()) for host in hosts]
        changed = {"headers": fields, "server": address, "client": client, "http_version": version}
        await app({**scope, **changed}, receive, send)

    return moved


async def status_at(host: str | None, address: Any = ("192.168.1.5", 8088), *, hosts: Any = None, **moved: Any) -> int:
    """Of a request for ``host`` that came in on ``address``."""
    app = Legato("memory:", agents=[echo], hosts=hosts)
    fields = [] if host is None else [host]
    async with Driver(app), Driver(elsewhere(app, address, fields, **moved), lifespan=False) as driver:
        return (await driver.request("GET", "/api/sessions")).status


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:8088", "localhost.", "127.0.0.1", "127.0.0.1:1", "127.8.8.8", "[::1]", "[::1]:8088",
     "[0:0:0:0:0:0:0:1]", "[::ffff:127.0.0.1]:80", "192.168.1.5", "192.168.1.5:8088", "[::ffff:192.168.1.5]"],
)  # fmt: skip
async def test_a_server_of_which_nothing_is_said_goes_by_what_cannot_be_rebound(host: str) -> None:
    """Names of loopback, which no DNS has a say in, and the address that the request came to."""
    assert await status_at(host) == 200


@pytest.mark.parametrize(
    "host",
    ["evil.test", "evil.test:8088", "localhost.evil.test", "127.0.0.1.nip.io", "192.168.1.5.nip.io", "192.168.1.6",
     "0.0.0.0", "chat.example", "testserver", "a@localhost", "localhost/", "localhost:99999", "localhost:8o", "[::1",
     "::1", "[localhost]", "localhost, evil.test", "localhost evil.test", "localhost..", ".", "", "*",
     "xn--lcalhost-s8a", "LOCALHO\N{LATIN SMALL LETTER LONG S}T", "127.0.0.1\N{NO-BREAK SPACE}", None],
)  # fmt: skip
async def test_a_server_of_which_nothing_is_said_goes_by_no_other_name(host: str | None) -> None:
    """Whoever has a name lead here reads nothing, also where the server is mounted or behind another one."""
    assert await status_at(host) == 421
    assert await status_at(host, ("127.0.0.1", 8088)) == 421


@pytest.mark.parametrize(
    ("given", "host", "status"),
    [
        ("chat.example", "Chat.Example:8443", 200),
        ("Chat.Example.", "chat.example", 200),
        ("chat.example", "chat.example.evil.test", 421),
        ("chat.example", "sub.chat.example", 421),
        ("chat.example", "localhost", 200),  # health checks on the machine itself
        ("bücher.example", "xn--bcher-kva.example", 200),
        ("10.0.0.7", "10.0.0.7:80", 200),
        ("::5", "[0::5]:80", 200),
        ("[::5]", "[::5]", 200),
        ("*", "anything.test", 200),
        (["a.example", "b.example"], "b.example", 200),
    ],
)
async def test_hosts_name_what_else_a_server_goes_by(given: Any, host: str, status: int) -> None:
    """Written as people write it."""
    assert await status_at(host, hosts=given) == status


@pytest.mark.parametrize(
    "name", ["https://chat.example", "chat.example:8088", "*.example", "", "a b", "chat.example/x"]
)
def test_what_could_never_be_a_host_is_no_setting(name: str) -> None:
    """It would refuse all, and nobody would know why."""
    with pytest.raises(InvalidInput, match="A host is a name alone"):
        Legato("memory:", agents=[echo], hosts=name)


async def test_an_address_is_told_by_who_cannot_be_asked_for_a_name() -> None:
    """A server may make up its own name from Host; a process that calls itself, as in tests, has no address at all."""
    assert await status_at("evil.test", ("evil.test", 80)) == 421
    assert await status_at("testserver", ("testserver", 80), client=("testclient", 1)) == 200
    assert await status_at("evil.test", None) == 421
    assert await status_at("evil.test", ("/run/legato.sock", None), client=None) == 421
    with TestClient(Legato("memory:", agents=[echo])) as client:
        assert client.get("/health").status_code == 200


async def test_a_request_of_old_needs_no_host() -> None:
    """A probe over HTTP/1.0; no browser asks like that."""
    assert await status_at(None, version="1.0") == 200


@pytest.mark.parametrize("hosts", [("localhost", "evil.test"), ("evil.test", "localhost"), ("localhost", "localhost")])
@pytest.mark.parametrize("allowed", [None, "*"])
async def test_two_hosts_are_refused(hosts: tuple[str, str], allowed: Any) -> None:
    """Whatever server stands below: what looked at the one may not have seen the other."""
    app = Legato("memory:", agents=[echo], hosts=allowed)
    async with Driver(app), Driver(elsewhere(app, ("127.0.0.1", 80), hosts), lifespan=False) as driver:
        for target in ("/api/sessions", "/", "/v1/models"):
            answer = await driver.request("GET", target)
            assert answer.status == 400
            assert "host_repeated" in answer.text


@pytest.mark.parametrize("site", ["", "same-site"])
async def test_two_origins_are_refused(site: str) -> None:
    """Whichever comes first: who passed the request on may have looked at the other one."""
    app = Legato("memory:", agents=[echo])

    async def twice(scope: Any, receive: Any, send: Any) -> None:
        own, evil = (b"origin", b"http://localhost:3000"), (b"origin", b"http://evil.test")
        for origins in ([own, evil], [evil, own], [own, own]):
            answered: list[int] = []

            async def noted(message: Any, answered: list[int] = answered) -> None:
                answered += [message["status"]] if "status" in message else []

            headers = [*scope["headers"], *origins, *([(b"sec-fetch-site", site.encode())] if site else [])]
            await app({**scope, "headers": headers}, receive, noted)
            assert answered == [403]
        await app(scope, receive, send)

    async with Driver(app), Driver(twice, lifespan=False) as driver:
        assert (await driver.request("GET", "/api/sessions")).status == 200


async def test_a_refusal_says_what_to_set() -> None:
    """For both ways to set it."""
    async with chatting() as chat:
        answer = await chat.driver.request("GET", "/api/sessions", headers={"host": "evil.test"})
        assert reason(answer) == (421, "bad_request", "host_not_allowed")
        assert "--allow-host" in answer.text
        assert "hosts=" in answer.text


# Origins --------------------------------------------------------------------------------------------------------------

OWN = [
    # Host, Origin, what proxies add
    ("chat.example", "https://chat.example", {}),
    ("chat.example", "http://chat.example", {}),
    ("chat.example:443", "https://chat.example", {}),
    ("chat.example:80", "http://chat.example", {}),
    ("chat.example", "https://chat.example:443", {}),
    ("chat.example:8443", "https://chat.example:8443", {}),
    ("CHAT.example", "https://chat.example", {}),
    ("chat.example.", "https://chat.example", {}),
    ("chat.example", "https://chat.example.", {}),
    ("[2001:db8::1]:8443", "https://[2001:db8::1]:8443", {}),
    ("[2001:DB8:0::1]", "https://[2001:db8::1]", {}),
    ("localhost", "https://chat.example", {"x-forwarded-host": "chat.example"}),
    ("localhost:8088", "https://chat.example", {"x-forwarded-host": "chat.example, inner.example"}),
    ("localhost:8088", "https://chat.example:8443", {"x-forwarded-host": "chat.example:8443,inner"}),
    ("localhost:8088", "https://chat.example", {"x-forwarded-host": "chat.example:443"}),
    ("chat.example", "https://chat.example:8443", {"x-forwarded-port": "8443"}),
    ("localhost", "https://chat.example:8443", {"x-forwarded-host": "chat.example", "x-forwarded-port": "8443, 80"}),
    ("chat.example", "https://chat.example", {"x-forwarded-port": "80"}),  # of the last proxy, not the first
    ("chat.example", "https://chat.example:8443", {"sec-fetch-site": "same-origin"}),  # a proxy dropped the port
    ("localhost", "https://chat.example", {"sec-fetch-site": "same-origin"}),  # or the whole name
    # Without TLS, browsers do not say that.
    ("chat.example", "http://chat.example:8080", {}),
    ("chat.example", "http://chat.example:8080", {"x-forwarded-port": "80"}),  # the proxy's own, inside its container
    ("chat.example.", "http://CHAT.example:8080", {}),
    ("[2001:db8::1]", "http://[2001:db8::1]:8080", {}),
    ("chat.example", "http://chat.example:443", {}),
]
FOREIGN = [
    ("chat.example", "https://evil.test", {}),
    ("chat.example", "https://chat.example.evil.test", {}),
    ("chat.example", "https://evil-chat.example", {}),
    ("chat.example", "https://sub.chat.example", {}),
    ("chat.example", "https://chat.example:8443", {}),
    ("chat.example:8443", "https://chat.example", {}),
    ("chat.example:443", "http://chat.example", {}),
    ("chat.example:8443", "https://chat.example:9443", {"x-forwarded-port": "9443"}),
    ("chat.example", "https://evil.test", {"x-forwarded-host": "chat.example, evil.test"}),
    ("chat.example", "https://evil.test:8443", {"x-forwarded-port": "8443"}),
    ("chat.example", "null", {}),
    ("chat.example", "", {}),
    ("chat.example", "https://", {}),
    ("chat.example", "chat.example", {}),
    ("chat.example", "https://chat.example@evil.test", {}),
    ("chat.example", "https://evil.test/chat.example", {}),
    ("chat.example", "https://evil.test https://chat.example", {}),
    ("chat.example", "https://evil.test", {"sec-fetch-site": "cross-site"}),
    ("chat.example", "https://evil.test", {"sec-fetch-site": "none"}),
    ("chat.example", "http://localhost.evil.test:80", {}),
    ("chat.example", "http://evil.test:8080", {}),
    ("chat.example", "http://sub.chat.example:8080", {}),
    ("chat.example", "http://chat.example.evil.test:8080", {}),
    ("chat.example:80", "http://chat.example:8080", {}),
    ("chat.example:9090", "http://chat.example:8080", {}),
    ("chat.example", "http://chat.example:8080", {"sec-fetch-site": "same-site"}),
    ("chat.example", "http://chat.example:8080", {"sec-fetch-site": "cross-site"}),
    ("localhost", "http://chat.example:8080", {}),
    ("localhost", "http://chat.example:8080", {"x-forwarded-host": "chat.example"}),
    ("chat.example", "ftp://chat.example:8080", {}),
    ("chat.example", "http://chat.example:99999", {}),
]

LOST = {"host": "chat.example", "origin": "http://chat.example:8080"}
"""Of a page that is our own if a proxy has dropped its port, and another server's if none has."""


@pytest.mark.parametrize(
    ("method", "target", "added", "status"),
    [
        ("GET", "/api/sessions", {}, 200),
        ("HEAD", "/api/sessions", {}, 200),
        ("POST", "/api/sessions", {"content-type": "application/json; charset=utf-8"}, 201),
        ("POST", "/api/sessions", {"content-type": "Application/JSON"}, 201),
        ("POST", "/api/sessions/{s}/cancel", {"content-type": "application/json"}, 200),
        ("DELETE", "/api/sessions/{s}", {}, 204),
        # What a browser sends without asking first.
        ("POST", "/api/sessions", {}, 403),
        ("POST", "/api/sessions", {"content-type": "text/plain"}, 403),
        ("POST", "/api/sessions", {"content-type": "text/plain; application/json"}, 403),
        ("POST", "/api/sessions", {"content-type": "application/x-www-form-urlencoded"}, 403),
        ("POST", "/api/sessions", {"content-type": "multipart/form-data; boundary=x"}, 403),
        ("POST", "/v1/responses", {"content-type": "text/plain"}, 403),
        ("POST", "/api/sessions/{s}/cancel", {}, 403),
        # What it asks first.
        ("OPTIONS", "/api/sessions", {"access-control-request-method": "POST"}, 403),
        ("OPTIONS", "/api/sessions/{s}", {"access-control-request-method": "DELETE"}, 403),
    ],
)
async def test_a_page_that_may_be_another_servers_does_nothing_unasked(
    method: str, target: str, added: dict[str, str], status: int
) -> None:
    """And reads nothing: it is told to no browser that it may."""
    async with chatting(hosts="chat.example") as chat:
        body = b"{}" if method == "POST" else b""
        target = target.replace("{s}", chat.session)
        answer = await chat.driver.request(method, target, headers={**LOST, **added}, body=body)
        assert answer.status == status
        assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    ("host", "origin", "added", "status"),
    [(*each, 201) for each in OWN] + [(*each, 403) for each in FOREIGN],
)
async def test_a_page_is_its_own_by_address_not_by_spelling(host: str, origin: str, added: Any, status: int) -> None:
    """What a message costs is begun for the server's own pages only, however proxies write its address."""
    async with chatting(hosts=["chat.example", "2001:db8::1"]) as chat:
        headers = {"host": host, "origin": origin, **added}
        answer = await chat.driver.request("POST", "/api/sessions", json={}, headers=headers)
        assert answer.status == status
        if status == 403:
            assert reason(answer) == (403, "bad_request", "origin_not_allowed")


@pytest.mark.parametrize("given", ["https://App.Example", "https://app.example/", "https://app.example:443"])
async def test_an_origin_is_given_as_people_write_it(given: str) -> None:
    """And compared as browsers do; they are told so, too."""
    async with chatting(cors=given) as chat:
        answer = await chat.driver.request("GET", "/api/sessions", headers={"origin": "https://app.example"})
        assert (answer.status, answer.headers["access-control-allow-origin"]) == (200, "https://app.example")


@pytest.mark.parametrize(
    ("cors", "origin", "allowed"),
    [
        ("https://app.example", "https://app.example", True),
        (["https://a.example", "https://app.example"], "https://app.example", True),
        ("https://app.example", "http://localhost:3000", False),  # may call, as any on this machine, but was not named
        ("http://localhost:3000", "http://localhost:3000", True),
        ("https://app.example", "https://chat.example", False),
        ("https://app.example", "https://evil.test", False),
        ("https://app.example", "null", False),
        ("*", "https://app.example", False),  # nobody was named
        ("*", "*", False),
        (["*", "https://app.example"], "https://app.example", False),
        (None, "http://localhost:3000", False),
        (None, "https://app.example", False),
    ],
)
@pytest.mark.parametrize("method", ["GET", "OPTIONS"])
async def test_a_site_that_is_named_may_send_cookies_along(cors: Any, origin: str, allowed: bool, method: str) -> None:
    """Else a browser lets no page of it read what it has asked for with ``credentials: "include"``."""
    async with chatting(cors=cors, hosts="chat.example") as chat:
        headers = {"host": "chat.example", "origin": origin, "cookie": "a=b", "access-control-request-method": "GET"}
        answer = await chat.driver.request(method, f"/api/sessions/{chat.session}", headers=headers)
        assert (answer.headers.get("access-control-allow-credentials") == "true") == allowed
        if allowed:
            assert (answer.status, answer.headers["access-control-allow-origin"]) == (200, origin)
        if method == "GET" and allowed:
            async with chat.stream(headers={"host": "chat.example", "origin": origin}) as stream:
                assert stream.headers["access-control-allow-credentials"] == "true"


@pytest.mark.parametrize(
    "origin", ["null", "*", "chrome-extension://abcdef", "http://a.example:8080", "https://[::1]:1"]
)
def test_an_origin_that_is_as_browsers_write_it_stays(origin: str) -> None:
    """Of whatever scheme."""
    assert origin_as_sent(origin) == origin


# Other sites ----------------------------------------------------------------------------------------------------------

DIALECT = [
    "/stream?sessionId={s}", "/api/sessions", "/api/messages/history", "/api/sessions/{s}", "/api/sessions/{s}/export",
    "/api/inspect", "/api/nothing", "/health", "/ready", "/v1/models", "/models", "/v1/responses/r", "/v1/nothing",
    "/api/sdk/persona/public", "/stream/",
]  # fmt: skip
BESIDE = ["/", "/docs", "/inspect", "/openapi.json", "/web/define.js", "/web/style.css", "/web/icon.svg"]


@pytest.mark.parametrize("target", DIALECT)
@pytest.mark.parametrize("site", ["cross-site", "same-site"])
@pytest.mark.parametrize("mode", ["no-cors", "navigate"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_an_image_or_link_of_another_site_begins_no_work(target: str, site: str, mode: str, method: str) -> None:
    """Such a request has no Origin. Nothing of a dialect is reached."""
    async with chatting(cors="https://app.example") as chat:
        headers = {"sec-fetch-site": site, "sec-fetch-mode": mode}
        answer = await chat.driver.request(method, target.replace("{s}", chat.session), headers=headers)
        assert answer.status == 403
        if method == "GET":
            assert "site_not_allowed" in answer.text


@pytest.mark.parametrize("target", BESIDE)
@pytest.mark.parametrize("mounted", [False, True])
async def test_a_link_of_another_site_leads_to_the_pages(target: str, mounted: bool) -> None:
    """And to what they load, also where the application is mounted."""
    app = Legato("memory:", agents=[echo])
    under = "/chat" if mounted else ""
    async with app.lifespan(), Driver(Starlette(routes=[Mount(under, app)]), lifespan=False) as driver:
        headers = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
        assert (await driver.request("GET", under + target, headers=headers)).status == 200
        assert (await driver.request("GET", f"{under}/api/sessions", headers=headers)).status == 403


@pytest.mark.parametrize("method", ["POST", "DELETE", "PUT", "OPTIONS"])
@pytest.mark.parametrize("target", ["/", "/web/markdown", "/api/sessions", "/v1/responses"])
async def test_nothing_is_changed_for_another_site_that_does_not_say_which(method: str, target: str) -> None:
    """Old browsers leave Origin out of some forms."""
    async with chatting() as chat:
        answer = await chat.driver.request(method, target, headers={"sec-fetch-site": "cross-site"})
        assert answer.status == 403


@pytest.mark.parametrize(
    "headers",
    [
        {},  # no browser, or an old one
        {"sec-fetch-site": "none", "sec-fetch-mode": "navigate"},  # typed by a user
        {"sec-fetch-site": "same-origin"},
        {"sec-fetch-site": "cross-site", "origin": "https://app.example"},
        {"sec-fetch-site": "same-site", "origin": "http://localhost:3000"},
        {"sec-fetch-site": "something-new"},
    ],
)
async def test_who_may_call_is_not_kept_away(headers: dict[str, str]) -> None:
    """By the same header."""
    async with chatting(cors="https://app.example") as chat:
        for target in ("/api/sessions", "/v1/models", "/health"):
            assert (await chat.driver.request("GET", target, headers=headers)).status == 200


async def test_where_all_may_call_so_may_images() -> None:
    """`cors="*"` is for servers that are open to every page."""
    async with chatting(cors="*") as chat:
        headers = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}
        assert (await chat.driver.request("GET", "/api/sessions", headers=headers)).status == 200


# Marks ----------------------------------------------------------------------------------------------------------------

ANSWERS = [
    ("GET", "/api/sessions", {}, 200),
    ("POST", "/api/sessions", {}, 201),
    ("DELETE", "/api/sessions/{s}", {}, 204),
    ("GET", "/api/sessions/none", {}, 404),
    ("PUT", "/api/sessions", {}, 405),
    ("GET", "/api/nothing", {}, 404),
    ("GET", "/nothing", {}, 404),
    ("GET", "/v1/models", {}, 200),
    ("GET", "/v1/nothing", {}, 404),
    ("GET", "/api/inspect", {}, 200),
    ("GET", "/openapi.json", {}, 200),
    ("GET", "/", {}, 200),
    ("GET", "/docs", {}, 200),
    ("GET", "/web/define.js", {}, 200),
    ("GET", "/web/icon.svg", {}, 200),
    ("GET", "/web/nothing.js", {}, 404),
    ("GET", "/web/../secret", {}, 404),
    ("POST", "/web/markdown", {}, 400),
    ("GET", "/web/markdown", {}, 404),
    ("HEAD", "/stream?sessionId={s}", {}, 200),
    ("GET", "/stream", {}, 400),
    ("GET", "/stream?sessionId={s}", {"last-event-id": "x"}, 400),
    ("OPTIONS", "/api/sessions", {"origin": "http://localhost:1", "access-control-request-method": "GET"}, 200),
    ("GET", "/api/sessions", {"origin": "http://localhost:1"}, 200),
    ("GET", "/api/sessions", {"origin": "https://evil.test"}, 403),
    ("GET", "/api/sessions", {"host": "evil.test"}, 421),
    ("GET", "/api/sessions", {"sec-fetch-site": "cross-site"}, 403),
]


@pytest.mark.parametrize(("method", "target", "headers", "status"), ANSWERS)
async def test_every_answer_says_what_browsers_may_make_of_it(
    method: str, target: str, headers: dict[str, str], status: int
) -> None:
    """Once each: that its type is what it says, and that no other site may load it but by CORS."""
    async with chatting() as chat:
        body = b"{}" if method == "POST" else b""
        answer = await chat.driver.request(method, target.replace("{s}", chat.session), headers=headers, body=body)
        assert answer.status == status
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"


async def test_streams_and_failures_say_it_too() -> None:
    """In their heads only: each piece goes past what looks at the head."""
    async with chatting() as chat:
        run = (await chat.said()).json()["runId"]
        heads = []
        for target, method in (
            (f"/stream?sessionId={chat.session}&from=start", "GET"),
            ("/v1/responses", "POST"),
        ):
            body = b'{"input": "a", "stream": true}' if method == "POST" else b""
            async with chat.driver.stream(target, method=method, body=body) as stream:
                assert stream.status == 200
                heads.append(stream.headers)
        assert run
        chat.app.life.store.sessions = None  # type: ignore[assignment,method-assign]
        failed = await chat.driver.request("GET", "/api/sessions")
        assert failed.status == 500
        for head in (*heads, failed.headers):
            assert head["x-content-type-options"] == "nosniff"
            assert head["cross-origin-resource-policy"] == "same-origin"


async def test_between_two_lives_the_guard_stands() -> None:
    """Refusals and marks are the same when the application has been stopped."""
    async with chatting() as chat:
        await chat.app.stop()
        answer = await chat.driver.request("GET", "/api/sessions")
        assert (answer.status, answer.headers["x-content-type-options"]) == (503, "nosniff")
        assert (await chat.driver.request("GET", "/api/sessions", headers={"host": "evil.test"})).status == 421
