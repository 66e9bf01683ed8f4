"""Every route of every dialect, and every page, against readers who stall, bodies that never end, and those who leave.

One server in a process of its own bears all of it. After each case it answers others, and holds what it held before.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from legato.server.dialects import DIALECTS
from legato.server.inspect import Inspector
from legato.torture.hostile import Attacker, request
from legato.torture.served import State
from legato.torture.soak import SLACK, ServedProcess, serving

TIMES = 4
OPERATIONS = [operation for dialect in DIALECTS for operation in dialect.operations]
OPERATIONS += Inspector(DIALECTS).operations()
ROUTES = [(operation.method, operation.path) for operation in OPERATIONS]
ROUTES += [("GET", path) for path in ("/", "/docs", "/inspect", "/openapi.json", "/web/chat.js", "/nothing")]
ROUTES += [("POST", "/web/markdown")]
BODY: dict[str, Any] = {
    "content": "text of a message",
    "title": "a title",
    "texts": ["# a"],
    "input": "a",
    "items": [{"role": "user", "content": "a"}],
    "metadata": {"a": "b"},
    "model": "hostile",
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[ServedProcess]:
    """With one conversation, of 12 MB."""
    async with serving("memory:") as found:
        yield found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def session(server: ServedProcess) -> str:
    on = Attacker(server.port, 0)
    made = await on.session()
    await on.say(made, "huge")
    while (await server.state()).runs:  # noqa: ASYNC110  # of another process
        await asyncio.sleep(0.05)
    return made


def told(method: str, path: str, session: str) -> bytes:
    """A request to a route, about the conversation that there is, unless it would be gone afterwards."""
    session = "s_none" if method == "DELETE" else session
    for name in ("{id}", "{threadId}", "{conversation_id}"):
        path = path.replace(name, session)
    path = path.replace("{item_id}", f"in_{session}~x_0").replace("{hash}", "0" * 64)
    path = path.replace("{messageId}", f"{session}~x~u").replace("{run}", f"{session}~x")
    if path == "/stream":
        path += f"?sessionId={session}"
    return request(method, path, BODY if method in ("POST", "PUT", "PATCH") else None)


async def settled(server: ServedProcess, before: State) -> State:
    """What the server holds once it has let go, or after the safety net of 60 s."""
    for _ in range(600):
        state = await server.state()
        if all(getattr(state, name) <= getattr(before, name) + slack for name, slack in SLACK.items()):
            break
        await asyncio.sleep(0.1)
    return state


async def ill_treated(server: ServedProcess, attack: Any) -> None:
    before = await server.state()
    working = asyncio.gather(*(attack() for _ in range(TIMES)))
    await asyncio.sleep(0)
    health = await Attacker(server.port, 0).ask("GET", "/health")
    await working
    after = await settled(server, before)

    assert health is not None
    assert {name: getattr(after, name) for name in SLACK} == {
        name: min(getattr(after, name), getattr(before, name) + slack) for name, slack in SLACK.items()
    }


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_a_reader_stalls(server: ServedProcess, session: str, method: str, path: str) -> None:
    """It asks, and reads nothing."""
    on = Attacker(server.port, 0)

    await ill_treated(server, lambda: on.throw(told(method, path, session), wait=0.2, listen=False))


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_whoever_asks_leaves(server: ServedProcess, session: str, method: str, path: str) -> None:
    """At once."""
    on = Attacker(server.port, 0)

    await ill_treated(server, lambda: on.throw(told(method, path, session), wait=0.0))


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(("method", "path"), [route for route in ROUTES if route[0] == "POST"])
async def test_a_body_does_not_end(server: ServedProcess, session: str, method: str, path: str, chunked: bool) -> None:
    """Half of it comes, and then nothing; nothing of it is done."""
    on = Attacker(server.port, 0)
    whole = told(method, path, session)
    if chunked:
        head, _, body = whole.partition(b"\r\n\r\n")
        length = b"content-length: %d" % len(body)
        whole = head.replace(length, b"transfer-encoding: chunked") + b"\r\n\r\n%x\r\n%b" % (len(body), body)
    log = f"/api/sessions/{session}/events?limit=1"
    before = await on.throw(request("GET", log))

    await ill_treated(server, lambda: on.throw(whole[:-9], wait=0.2))

    after = await on.throw(request("GET", log))
    assert after.partition(b"\r\n\r\n")[2] == before.partition(b"\r\n\r\n")[2]
