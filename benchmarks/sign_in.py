"""What sign-in costs: CPU for a request, by each way to sign in, and for a delivered event.

All in one process, by ASGI without sockets, so that nothing else is in the figures; the ways take turns in many short
rounds, see ``support/pairs.py`` for how they are compared. A request is ``GET /api/sessions/ID`` of a store in memory.
Of the second table each row is an answer of many pieces that many readers have, on lines as under ``legato serve``.

    python benchmarks/sign_in.py [--rounds 60] [--requests 100] [--readers 100] [--pieces 100]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import statistics
import time
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from support.pairs import AGAIN, Rounds
from support.sides import in_turn

from legato import Caller, Legato
from legato.auth import JWT, APIKeys
from legato.store.memory import MemoryStore
from legato.testing import Driver

SECRET = "s" * 32
OPEN = "open"


class Way(NamedTuple):
    """A way to sign in: an application, and the headers of who has."""

    app: Legato
    headers: dict[str, str]


async def agent(turn: Any) -> AsyncIterator[str]:
    """As many pieces as it is asked for."""
    for _ in range(int(turn.message.text)):
        yield "word "
        await asyncio.sleep(0)


def made(auth: Any) -> Legato:
    app = Legato(MemoryStore(), agents=[agent], auth=auth)
    app.drain_on_signal = False
    return app


def signed(key: Any, algorithm: str) -> dict[str, str]:
    claims = {"iss": "i", "aud": "a", "sub": "alice", "exp": time.time() + 3600}
    return {"authorization": f"Bearer {jwt.encode(claims, key, algorithm=algorithm)}"}


def by_public_key(key: Any, algorithm: str) -> Way:
    pem = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return Way(made(JWT(issuer="i", audience="a", key=pem)), signed(key, algorithm))


async def ways() -> dict[str, Way]:
    keys = APIKeys()
    by_key = made(keys)
    await by_key.start()
    token, _ = await keys.add("alice", expires_at=time.time() + 3600)
    return {
        OPEN: Way(made(None), {}),
        f"{OPEN}, {AGAIN}": Way(made(None), {}),
        "a function": Way(made(lambda request: Caller("alice", expires_at=time.time() + 3600)), {}),
        "API key": Way(by_key, {"authorization": f"Bearer {token}"}),
        "API key in a cookie": Way(by_key, {"cookie": f"legato={token}", "sec-fetch-site": "same-origin"}),
        "JWT, HS256": Way(made(JWT(issuer="i", audience="a", secret=SECRET)), signed(SECRET, "HS256")),
        "JWT, RS256": by_public_key(rsa.generate_private_key(65537, 2048), "RS256"),
        "JWT, ES256": by_public_key(ec.generate_private_key(ec.SECP256R1()), "ES256"),
    }


async def requests(way: Way, session: str, count: int) -> float:
    """Microseconds of CPU for one."""
    driver = Driver(way.app, headers=way.headers, lifespan=False)
    begun = time.process_time()
    for _ in range(count):
        answer = await driver.request("GET", f"/api/sessions/{session}")
        assert answer.status == 200
    return (time.process_time() - begun) / count * 1e6


async def first_time(way: Way) -> float:
    """Microseconds of CPU to check a token that was never seen, at best."""
    [auth] = way.app._sign_in.auths  # type: ignore[union-attr]
    least = float("inf")
    for _ in range(200):
        begun = time.process_time()
        assert await auth._checked(way.headers["authorization"].partition(" ")[2])
        least = min(least, time.process_time() - begun)
    return least * 1e6


async def delivered(way: Way, readers: int, pieces: int) -> float:
    """Microseconds of CPU for one event to one reader."""
    driver = Driver(way.app, headers=way.headers, lifespan=False)
    driver.lines = True
    headers = {"sec-fetch-site": "same-origin"}
    session = (await driver.request("POST", "/api/sessions", json={}, headers=headers)).json()["id"]
    gone = asyncio.Event()

    async def read() -> int:
        async with driver.stream(f"/stream?sessionId={session}&client=legato") as stream:
            async for message in stream.messages():
                if message.event == "connected":
                    opened.append(1)
                    if len(opened) == readers:
                        gone.set()
                if message.event == "complete":
                    return 1
        return 0

    opened: list[int] = []
    tasks = [asyncio.create_task(read()) for _ in range(readers)]
    await gone.wait()
    begun = time.process_time()
    target = f"/api/sessions/{session}/messages"
    await driver.request("POST", target, json={"text": str(pieces)}, headers=headers)
    assert sum(await asyncio.gather(*tasks)) == readers
    return (time.process_time() - begun) / readers / pieces * 1e6


async def tickets(way: Way, session: str, count: int) -> float:
    """Microseconds of CPU for a ticket, made and used."""
    driver = Driver(way.app, headers=way.headers, lifespan=False)
    nobody = Driver(way.app, lifespan=False)
    begun = time.process_time()
    for _ in range(count):
        ticket = (await driver.request("POST", "/tickets", json={"sessionId": session})).json()["ticket"]
        async with nobody.stream(f"/stream?sessionId={session}&ticket={ticket}") as stream:
            assert stream.status == 200
    return (time.process_time() - begun) / count * 1e6


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("--readers", type=int, default=100)
    parser.add_argument("--pieces", type=int, default=100)
    options = parser.parse_args()
    all_ways = await ways()
    sessions: dict[str, str] = {}
    for name, way in all_ways.items():
        await way.app.start()
        headers = {**way.headers, "sec-fetch-site": "same-origin"}
        made = await Driver(way.app, headers=headers, lifespan=False).request("POST", "/api/sessions", json={})
        sessions[name] = made.json()["id"]
        await requests(way, sessions[name], 50)
    streaming = [OPEN, f"{OPEN}, {AGAIN}", "a function", "API key", "JWT, HS256"]
    asked, streamed = Rounds("CPU µs a request", OPEN), Rounds("CPU µs an event and reader", OPEN)
    by_ticket: list[float] = []
    for number in range(options.rounds):
        took: dict[str, float] = {}
        for name in in_turn(list(all_ways), number):
            gc.collect()  # what one has left is not another one's
            took[name] = await requests(all_ways[name], sessions[name], options.requests)
        asked.add({name: took[name] for name in all_ways})
        for name in in_turn(streaming, number):
            gc.collect()
            took[name] = await delivered(all_ways[name], options.readers, options.pieces)
        streamed.add({name: took[name] for name in streaming})
        by_ticket.append(await tickets(all_ways["API key"], sessions["API key"], options.requests // 4))
    for rounds in (asked, streamed):
        print("\n".join(rounds.table()), end="\n\n")
    for name, way in all_ways.items():
        if name.startswith("JWT"):
            print(f"{name}: {await first_time(way):.0f} µs of CPU for a token that is new.")
    print(f"A ticket, made and used for a stream: {statistics.median(by_ticket):.0f} µs of CPU.")
    for way in all_ways.values():
        await way.app.stop()


asyncio.run(main())
