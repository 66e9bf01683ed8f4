"""What a message costs after 100, 1,000 and 10,000 messages in its session, over each dialect, with SQLite.

The messages before are given along with the session's first one, in one request. Then some are sent, one at a time, to
an agent that says one word, each once the answer before is over:

- Mix: ``POST /api/sessions/{id}/messages``, whose stream is open.
- Responses: ``POST /v1/responses``, each with ``previous_response_id``.
- Deva: ``POST .../messages``, and ``POST .../query/stream`` once that is answered.

Times are from the first byte of the message to the end of its answer at the client; CPU is the server's. Both sides run
all the time and take turns, by the message.

    python benchmarks/long_session.py [--base CHECKOUT] [--messages 20] [--lengths 100 1000 10000] [--save]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import time
from typing import Any, NamedTuple

import uvloop
from first_word import PATIENCE, REST, WORD, Follower, share
from support.load import Post, Reader, Server, request, serving
from support.sides import Report, in_turn, parser, sides

WARM = 3
"""Messages that are not counted: the first finds nothing in memory."""


class LongTalk:
    """One dialect's way to send a message in one session and wait until its answer is over."""

    name = ""

    def __init__(self, server: Server, session: str, last: str) -> None:
        self._server = server
        self._session = session
        self._last = last

    async def open(self) -> None:
        """What is there before the first message."""
        self._post: Post = await self._server.post()

    async def say(self, number: int) -> None:
        """Send a message, and wait for the end of its answer."""
        raise NotImplementedError


class Mix(LongTalk):
    name = "mix"

    async def open(self) -> None:
        await super().open()
        self._follower = Follower()
        await self._server.connect(self._follower)
        self._follower.send(request("GET", f"/stream?sessionId={self._session}"))
        await asyncio.sleep(0.2)

    async def say(self, number: int) -> None:
        _, end = self._follower.expect()
        path = f"/api/sessions/{self._session}/messages"
        await self._post.send(request("POST", path, {"text": f"word {number}"}))
        await asyncio.wait_for(end, PATIENCE)


class Responses(LongTalk):
    name = "responses"

    async def say(self, number: int) -> None:
        body = {"model": "speaker", "input": f"word {number}", "previous_response_id": self._last}
        self._last = (await self._post.send(request("POST", "/v1/responses", body)))["id"]


class Deva(LongTalk):
    name = "deva"

    async def say(self, number: int) -> None:
        path = f"/api/sdk/chat/{self._session}/messages"
        message = await self._post.send(request("POST", path, {"text": f"word {number}"}))
        reader = await self._server.connect(Reader(WORD))
        reader.send(request("POST", f"{path}/{message['id']}/query/stream"))
        await asyncio.wait_for(reader.over, PATIENCE)


class Cost(NamedTuple):
    """Milliseconds of each message, and CPU milliseconds of the server for one."""

    took: list[float]
    cpu: float


async def grown(server: Server, length: int) -> tuple[str, str]:
    """A session with so many messages, and its last response."""
    before: list[dict[str, Any]] = [
        {"role": ("user", "assistant")[n % 2], "content": f"This is what was said before, as number {n}."}
        for n in range(length // 2 * 2 - 2)
    ]
    asked = {"model": "speaker", "input": [*before, {"role": "user", "content": "word 0"}]}
    made = await server.ask("POST", "/v1/responses", asked)
    return made["conversation"]["id"], made["id"]


async def measure(servers: dict[str, Server], kind: type[LongTalk], length: int, messages: int) -> dict[str, Cost]:
    """Both sides, a message of each in turn."""
    talks = {name: kind(server, *await grown(server, length)) for name, server in servers.items()}
    took: dict[str, list[float]] = {name: [] for name in servers}
    spent = dict.fromkeys(servers, 0.0)
    for talk in talks.values():
        await talk.open()
    for number in range(WARM + messages):
        for name in in_turn(list(talks), number):
            await asyncio.sleep(REST)
            cpu, begun = await servers[name].bench("cpu"), time.perf_counter()
            await talks[name].say(number)
            if number >= WARM:
                took[name].append((time.perf_counter() - begun) * 1e3)
                spent[name] += (await servers[name].bench("cpu") - cpu) * 1e3
    return {name: Cost(took[name], spent[name] / messages) for name in servers}


def main() -> None:
    options_of = parser(__doc__)
    options_of.add_argument("--messages", type=int, default=20)
    options_of.add_argument("--lengths", type=int, nargs="+", default=[100, 1_000, 10_000])
    options: argparse.Namespace = options_of.parse_args()
    both = sides(options)
    report = Report("long_session", both)
    with contextlib.ExitStack() as stack:
        servers = {side.name: stack.enter_context(serving(side)) for side in both}
        for kind in (Mix, Responses, Deva):
            report.head(f"{kind.name}, {options.messages} messages")
            for length in options.lengths:
                found = uvloop.run(measure(servers, kind, length, options.messages))
                costs = [found[side.name] for side in both]
                report.row(f"after {length:,}: p50 ms", [share(cost.took, 0.5) for cost in costs])
                report.row(f"after {length:,}: CPU ms", [cost.cpu for cost in costs])
    if options.save:
        report.save(options.save)


if __name__ == "__main__":
    main()
