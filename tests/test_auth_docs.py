"""The snippets of docs/auth.md are run: each lets in who it is for, and nobody else; so does the FastAPI example."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("jwt", reason="PyJWT is missing: pip install 'legato[auth]'")

from legato import Client, Legato
from legato.auth import APIKeys
from legato.auth.keys import add_key, new_key
from legato.server.app import Legato as App
from legato.store.memory import MemoryStore
from legato.testing import Driver
from live_server import serving
from processes import EXAMPLES
from signing import RSA, issuing, jwk, token

PAGE = Path(__file__).parent.parent / "docs" / "auth.md"
SNIPPETS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)


def snippet(containing: str) -> str:
    [found] = [each for each in SNIPPETS if containing in each]
    return found


async def agent(turn: Any) -> str:
    """Who it is."""
    return f"Hello, {turn.caller.subject}."


def made(text: str, **names: Any) -> App:
    """The application of a snippet, in memory."""
    space: dict[str, Any] = names
    exec(compile(text, str(PAGE), "exec"), space)
    app = next(value for value in space.values() if isinstance(value, Legato))
    app.source = MemoryStore()
    app.agent(agent)
    app.drain_on_signal = False
    return app


async def status(driver: Driver, headers: dict[str, str], target: str = "/api/sessions") -> int:
    return (await driver.request("GET", target, headers=headers)).status


def test_all_snippets_are_run() -> None:
    """Those here, and the client's."""
    assert len(SNIPPETS) == 9


async def test_a_function_of_your_own() -> None:
    """By a cookie of the application's."""

    async def name_of(session: str | None) -> str | None:
        return {"s1": "alice"}.get(session or "")

    async with Driver(made(snippet("name_of"), name_of=name_of)) as driver:
        assert await status(driver, {"cookie": "session=s1"}) == 200
        assert await status(driver, {"cookie": "session=s2"}) == 401


async def test_keys_that_a_function_asks() -> None:
    """Who has one is whom the function says."""

    async def account_of(subject: str) -> str:
        return f"account of {subject}"

    app = made(snippet("account_of"), account_of=account_of)
    async with Driver(app) as driver:
        key, kept = new_key("alice")
        await add_key(app.store, kept)
        answer = await driver.request("GET", "/api/auth/whoami", headers={"authorization": f"Bearer {key}"})
        assert answer.json()["subject"] == "account of alice"
        assert await status(driver, {}) == 401


async def test_api_keys() -> None:
    """Of the store."""
    app = made(snippet("auth=APIKeys()"))
    async with Driver(app) as driver:
        keys = next(auth for auth in app._sign_in.auths if isinstance(auth, APIKeys))  # type: ignore[union-attr]
        key, _ = await keys.add("alice")
        assert await status(driver, {"authorization": f"Bearer {key}"}) == 200
        assert await status(driver, {}) == 401


async def test_tokens() -> None:
    """Of an issuer whose keys are fetched."""
    with issuing() as issuer:
        issuer.keys = [jwk(RSA, "a")]
        text = snippet("JWT(").replace("https://login.example.com/keys.json", issuer.url)
        async with Driver(made(text)) as driver:
            for name, expected in (("https://login.example.com/", 200), ("https://evil.example/", 401)):
                signed = token(iss=name, headers={"kid": "a"})
                assert await status(driver, {"authorization": f"Bearer {signed}"}) == expected


async def test_a_proxy() -> None:
    """By its address."""
    app = made(snippet("ProxyHeader"))
    async with Driver(app):
        for address, expected in (("10.0.0.5", 200), ("10.0.0.6", 401)):

            async def moved(scope: Any, receive: Any, send: Any, address: str = address) -> None:
                await app({**scope, "client": (address, 1)}, receive, send)

            headers = {"x-forwarded-user": "alice"}
            assert await status(Driver(moved, lifespan=False), headers) == expected


async def test_shared_sessions() -> None:
    """The team watches."""
    app = made(snippet("def may"), user=lambda request: request.headers.get("x-user"), TEAM={"bob"})
    async with Driver(app) as driver:
        session = (await driver.request("POST", "/api/sessions", json={}, headers={"x-user": "alice"})).json()["id"]
        target = f"/api/sessions/{session}"
        assert [await status(driver, {"x-user": who}, target) for who in ("alice", "bob", "carol")] == [200, 200, 404]
        assert (await driver.request("DELETE", target, headers={"x-user": "bob"})).status == 404


async def test_shared_sessions_in_lists() -> None:
    """Where colleagues say so, as far as the rule lets them."""

    async def colleagues_of(subject: str) -> list[str]:
        return ["alice"]

    space: dict[str, Any] = {"user": lambda request: request.headers.get("x-user"), "TEAM": {"bob"}}
    exec(compile(snippet("def may"), str(PAGE), "exec"), space)
    names = {"user": space["user"], "may": space["may"], "Legato": Legato}
    app = made(snippet("def shared"), colleagues_of=colleagues_of, **names)
    async with Driver(app) as driver:
        session = (await driver.request("POST", "/api/sessions", json={}, headers={"x-user": "alice"})).json()["id"]
        for who, ids in (("alice", [session]), ("bob", [session]), ("carol", [])):
            listed = (await driver.request("GET", "/api/sessions", headers={"x-user": who})).json()
            assert [each["id"] for each in listed] == ids


async def test_fastapis_own() -> None:
    """In short: whatever depends on the request."""
    from types import SimpleNamespace

    from fastapi import HTTPException

    async def current_user(given: str) -> Any:
        if given != "good":
            raise HTTPException(401)
        return SimpleNamespace(id="alice")

    async with Driver(made(snippet("OAuth2PasswordBearer"), current_user=current_user)) as driver:
        assert await status(driver, {"authorization": "Bearer good"}) == 200
        assert await status(driver, {"authorization": "Bearer bad"}) == 401
        assert await status(driver, {}) == 401


def test_the_fastapi_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sign-in for its own routes and for the chats; and the client's snippet comes with a token of it."""
    import asyncio
    from types import SimpleNamespace

    import httpx2

    monkeypatch.setenv("LEGATO_STORE", "memory:")
    api = runpy.run_path(str(EXAMPLES / "app_fastapi_auth.py"))["api"]
    with serving(api) as url:
        said = "username=alice&password=wonderland"
        assert httpx2.post(f"{url}/token", content="username=alice&password=x").status_code == 401
        given = httpx2.post(f"{url}/token", content=said).json()["access_token"]
        for path in ("/me", "/chat/api/sessions"):
            assert httpx2.get(url + path).status_code == 401
            assert httpx2.get(url + path, headers={"authorization": f"Bearer {given}"}).status_code == 200
        with Client(f"{url}/chat", api_key=given) as client:
            assert client.ask("Who am I?").read().startswith("alice: Who am I?")

        async def access_token() -> str:
            return str(given)

        text = snippet("AsyncClient").replace("https://chat.example.com", f"{url}/chat")
        space: dict[str, Any] = {"my_login": SimpleNamespace(access_token=access_token)}
        exec(compile(text, str(PAGE), "exec"), space)

        async def ask() -> int:
            async with space["client"] as client:
                return len(await client.sessions.list())

        assert asyncio.run(ask()) == 1
