"""The hostile load: callers, texts, connections and agents that mean no good, each kind over and over.

    python -m legato.torture.hostile PORT SEED

It goes on until its standard input ends, and prints then, as JSON, how often each kind was tried and how often it was
answered with which status. Each kind does at most some connections and some megabytes at once: a server is to be hurt
by what it is told, not by how much of it there is.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import sys
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from typing import Any

SOURCE = "127.0.0.9"
"""Where it comes from, so that it is somebody else than the honest; where a machine has no such address, the same."""
HOLD = 12.0
"""Seconds for which a connection that does nothing is held."""

TEXTS = [
    "[" * 9_000, "]x" * 9_000, "[a](" * 4_000, "![" * 4_000, "*a_" * 4_000, "**a" * 5_000, "<" * 9_000, "&" * 9_000,
    "\n".join("`" * n + "x" for n in range(1, 141)), "> " * 5_000, "- " * 5_000, "1. " * 4_000, "a@" * 5_000,
    "```make\n" + "a" * 5_000, "```js\n" + "/" * 5_000, "```html\n" + "<a " * 3_000, "```python\n" + "'" * 5_000,
    "|a|b|\n|-|-|\n" + "|1|2|\n" * 5_000, "http://" * 3_000, "www." * 4_000, "\\" * 9_000, "_" * 9_000, "~" * 9_000,
    "<!--" * 4_000, "[x]: <" * 3_000, "\u202e" * 3_000, "\x00" * 3_000, "#" * 9_000, "\t" * 9_000, "$(" * 4_000,
]  # fmt: skip

MALFORMED = [
    b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
    b"POST /stream/x/message HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    b"POST /v1/responses HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\nzz\r\n",
    b"POST /v1/responses HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"
    + b"X-T: y\r\n" * 9_000,
    b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + b"".join(b"X-%d: y\r\n" % n for n in range(5_000)) + b"\r\n",
    b"GET /health HTTP/9.9\r\n\r\n",
    b"GET /health HTTP/1.1\r\nHost: a\x00b\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
    b"GET /stream?sessionId=" + b"%FF" * 50 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" * 500,
]

Attack = Callable[["Attacker"], Awaitable[None]]


class Attacker:
    """What the kinds of attack share: a server, dice, and a count of what it answered."""

    def __init__(self, port: int, seed: int) -> None:
        self.port = port
        self.dice = random.Random(seed)  # noqa: S311  # no secret
        self.answers: dict[str, Counter[str]] = defaultdict(Counter)
        self.kind = ""

    async def connect(self, *, buffer: int | None = None) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to the server, from elsewhere."""
        sock = socket.socket()
        sock.setblocking(False)
        with contextlib.suppress(OSError):
            sock.bind((SOURCE, 0))
        if buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        try:
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.port))
            return await asyncio.open_connection(sock=sock)
        except BaseException:
            sock.close()
            raise

    async def throw(self, data: bytes, *, wait: float = HOLD, listen: bool = True) -> bytes:
        """Send bytes, as many as are taken, and give what is answered within ``wait`` seconds; then leave.

        Args:
            data: whatever it is.
            wait: seconds until the connection is closed from here.
            listen: False: read nothing.
        """
        reader, writer = await self.connect(buffer=None if listen else 4096)
        answer = b""
        try:
            async with asyncio.timeout(wait):
                writer.write(data)
                await writer.drain()
                if not listen:
                    await asyncio.sleep(wait)
                while chunk := await reader.read(65_536):
                    answer += chunk[: 1_000_000 - len(answer)]
        except (TimeoutError, OSError):
            pass
        finally:
            writer.transport.abort()
        self.answers[self.kind][answer[9:12].decode("ascii", "replace") or "nothing"] += 1
        return answer

    async def ask(self, method: str, path: str, body: Any = None, *, wait: float = HOLD, **headers: str) -> Any:
        """The JSON of an answer; None if there is none, or it is a refusal."""
        raw = await self.throw(request(method, path, body, **headers), wait=wait)
        head, _, rest = raw.partition(b"\r\n\r\n")
        if head[9:10] != b"2":
            return None
        with contextlib.suppress(ValueError):
            return json.loads(rest)
        return None

    async def session(self) -> str:
        """A new session; where none is given, a name that no session has."""
        made = await self.ask("POST", "/api/sessions", {"title": "t" * 200, "agent": "hostile"})
        return str(made["id"]) if isinstance(made, dict) and "id" in made else "s_none"

    async def say(self, session: str, text: str, **headers: str) -> None:
        """Put a message to the agent that does what it says."""
        await self.ask("POST", f"/stream/{session}/message", {"content": text}, wait=HOLD, **headers)


def request(method: str, path: str, body: Any = None, **headers: str) -> bytes:
    """One request's bytes, after which the connection is to end."""
    text = b"" if body is None else json.dumps(body).encode()
    fields = {"host": "localhost", "connection": "close", "content-length": str(len(text)), **headers}
    if body is not None:
        fields["content-type"] = "application/json"
    head = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items())
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + text


# Connections ----------------------------------------------------------------------------------------------------------


async def silent(on: Attacker) -> None:
    """Say nothing."""
    await asyncio.gather(*(on.throw(b"") for _ in range(10)))


async def half_heads(on: Attacker) -> None:
    """Begin a head."""
    await asyncio.gather(*(on.throw(b"GET /health HTTP/1.1\r\nHost: loc") for _ in range(10)))


async def half_bodies(on: Attacker) -> None:
    """Promise a body, and send some of it."""
    whole = request("POST", "/v1/responses", {"input": "x" * 900_000, "model": "hostile"})
    await asyncio.gather(*(on.throw(whole[: on.dice.randrange(200, len(whole))], wait=5) for _ in range(5)))


async def drops(on: Attacker) -> None:
    """Send heads and bodies byte by byte, of which one would fill the budget of all."""
    head, body = request("GET", "/health"), request("POST", "/v1/responses", {"input": "x" * 900_000})
    await asyncio.gather(*(_drop(on, data, begun) for data, begun in ((head, 0), (body, 2_000)) for _ in range(20)))


async def _drop(on: Attacker, data: bytes, begun: int) -> None:
    _, writer = await on.connect()
    try:
        writer.write(data[:begun])
        for at in range(begun, begun + 40):
            writer.write(data[at : at + 1])
            await writer.drain()
            await asyncio.sleep(0.2)
    finally:
        writer.transport.abort()


async def churn(on: Attacker) -> None:
    """Open connections and drop them: at once, in a head, before an answer, and in a stream."""
    session = await on.session()
    stages = [b"", b"GET /heal", request("GET", "/health"), request("GET", f"/stream?sessionId={session}")]

    async def dropped(number: int) -> None:
        reader, writer = await on.connect()
        try:
            writer.write(stages[number % 4])
            if number % 8 == 3:
                await reader.read(100)
        finally:
            writer.transport.abort()

    await asyncio.gather(*(dropped(number) for number in range(64)), return_exceptions=True)
    await on.ask("DELETE", f"/api/sessions/{session}")


async def malformed(on: Attacker) -> None:
    """Send what is no HTTP, or no good one."""
    for data in on.dice.sample(MALFORMED, 3):
        await on.throw(data, wait=2)
    await on.throw(on.dice.randbytes(5_000), wait=2)


async def deaf(on: Attacker) -> None:
    """Ask for much, and read nothing."""
    session = await on.session()
    await on.say(session, "huge")
    paths = [f"/stream?sessionId={session}", f"/api/sessions/{session}/messages", "/api/sessions", "/openapi.json"]
    await asyncio.gather(*(on.throw(request("GET", path), listen=False) for path in paths * 5))
    await on.ask("DELETE", f"/api/sessions/{session}")


async def leaves(on: Attacker) -> None:
    """Ask for long lists, and leave."""
    paths = ["/api/sessions", "/api/messages/history?limit=500", "/api/sessions?limit=200"]
    await asyncio.gather(*(on.throw(request("GET", path), wait=0.02) for path in paths * 3))


# Callers --------------------------------------------------------------------------------------------------------------


async def flood(on: Attacker) -> None:
    """Begin many runs at once that take long."""
    sessions = await asyncio.gather(*(on.session() for _ in range(30)))
    await asyncio.gather(*(on.say(each, "thinks") for each in sessions))
    await asyncio.gather(*(on.ask("POST", f"/api/sessions/{each}/cancel") for each in sessions))
    await asyncio.gather(*(on.ask("DELETE", f"/api/sessions/{each}") for each in sessions))


async def same_key(on: Attacker) -> None:
    """Send one message many times at once."""
    session = await on.session()
    await asyncio.gather(*(on.say(session, "once", idempotency_key="k") for _ in range(20)))
    await on.ask("DELETE", f"/api/sessions/{session}")


async def tool_calls(on: Attacker) -> None:
    """Send thousands of tool calls with their results as what was said before."""
    items: list[Any] = []
    for number in range(3_000):
        items += [
            {"type": "function_call", "call_id": f"c{number}", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": f"c{number}", "output": "done"},
        ]
    items.append({"role": "user", "content": "well?"})
    await on.ask("POST", "/v1/responses", {"model": "hostile", "input": items, "store": False})


async def forks(on: Attacker) -> None:
    """Copy a long conversation, again and again."""
    session = await on.session()
    await on.say(session, "long " + "x" * 400_000)
    copies = await asyncio.gather(
        *(on.ask("POST", f"/api/sessions/{session}/fork", {"messageIndex": 1}) for _ in range(4))
    )
    for made in [{"id": session}, *copies]:
        if isinstance(made, dict) and "id" in made:
            await on.ask("DELETE", f"/api/sessions/{made['id']}")


async def cursors(on: Attacker) -> None:
    """Come back with cursors that were never given."""
    session = await on.session()
    for cursor in ("-1", "9" * 40, "x", "1:2:3", "\u0663", "0" * 5_000, "18446744073709551616"):
        await on.throw(request("GET", f"/stream?sessionId={session}", last_event_id=cursor), wait=0.2)
    await on.ask("DELETE", f"/api/sessions/{session}")


# Texts and agents -----------------------------------------------------------------------------------------------------


async def markdown(on: Attacker) -> None:
    """Have texts rendered that take a parser long."""
    text = on.dice.choice(TEXTS)
    growing = on.dice.random() < 0.5
    cut = text[: on.dice.randrange(len(text) // 2, len(text))]
    await on.ask("POST", "/web/markdown", {"texts": [cut], "growing": growing})


async def agents(on: Attacker) -> None:
    """Let agents do what they should not."""
    session = await on.session()
    for word in ("usage", "tools", "notes", "exits", "stays", "object", "surrogate", "raises"):
        await on.say(session, word)
    await asyncio.sleep(on.dice.random())
    for _ in range(3):
        await on.ask("POST", f"/api/sessions/{session}/cancel")
        await on.ask("GET", "/api/sessions")
        await on.ask("GET", f"/api/sessions/{session}/messages")
    await on.ask("DELETE", f"/api/sessions/{session}")


KINDS: list[Attack] = [
    silent, half_heads, half_bodies, drops, churn, malformed, deaf, leaves,
    flood, same_key, tool_calls, forks, cursors, markdown, agents,
]  # fmt: skip


async def attack(port: int, seed: int, over: asyncio.Event) -> dict[str, Any]:
    """Do all of it, each kind in turn with itself and beside the others, until ``over``.

    Returns:
        By kind, how often it was done and what was answered.
    """
    done: Counter[str] = Counter()
    attackers: dict[str, Attacker] = {}

    async def again_and_again(kind: Attack) -> None:
        attackers[kind.__name__] = on = Attacker(port, seed)
        on.kind = kind.__name__
        while True:
            await asyncio.sleep(on.dice.random())
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await kind(on)
            done[on.kind] += 1

    tasks = [asyncio.create_task(again_and_again(kind)) for kind in KINDS]
    ended = asyncio.create_task(over.wait())
    await asyncio.wait([ended, *tasks], return_when=asyncio.FIRST_COMPLETED)
    failed = [task.exception() for task in tasks if task.done() and not task.cancelled()]
    for task in (ended, *tasks):
        task.cancel()
    await asyncio.gather(ended, *tasks, return_exceptions=True)
    for error in failed:
        if error is not None:
            raise error
    return {kind: {"done": done[kind], "answers": dict(on.answers[kind])} for kind, on in attackers.items()}


async def _main(port: int, seed: int) -> None:
    over = asyncio.Event()
    asyncio.get_running_loop().run_in_executor(None, sys.stdin.read).add_done_callback(lambda _: over.set())
    print(json.dumps(await attack(port, seed, over)), flush=True)  # noqa: T201  # to who started it


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1]), int(sys.argv[2])))
