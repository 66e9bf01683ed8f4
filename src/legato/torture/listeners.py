"""Readers of a run over each dialect that streams, who come back through the front door however often they are cut off.

Each request has a connection of its own, so that it may be answered by another node than the one before. What a reader
notices by itself (an id that goes back, a number that is left out, a cursor that is not continued, a text that is not
the same when it is read again) is a fault; whether it has all of the text is said by the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httptools

from ..sse import Decoder, SSEMessage

SILENCE = 4.0
"""Seconds after which a reader takes its connection for lost; nodes say each second that they are there."""
HEAD_SECONDS = 5.0
"""Within which an answer is to begin; then it is asked again."""
WAIT = (0.05, 0.4)
"""Seconds between two tries, drawn anew for each."""


class WireAnswer:
    """One answer, as its bytes come.

    Attributes:
        status: 0 until the head has come.
        headers: names in small letters.
        whole: it has come to its proper end.
    """

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.whole = False
        self._reader = reader
        self._body: list[bytes] = []
        self._headed = False
        self._parser = httptools.HttpResponseParser(self)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Of the parser, as the next ones."""
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """The head has come."""
        self.status = self._parser.get_status_code()
        self._headed = True

    def on_body(self, body: bytes) -> None:
        """Some of the body has come."""
        self._body.append(body)

    def on_message_complete(self) -> None:
        """All of it has."""
        self.whole = True

    async def head(self) -> None:
        """Wait for it.

        Raises:
            OSError: it does not come.
        """
        while not self._headed:
            await self._more(HEAD_SECONDS)

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body, as it comes; it ends where the connection does, too.

        Raises:
            OSError: the connection was lost, or nothing came for ``SILENCE``.
        """
        while True:
            body, self._body = self._body, []
            if body:
                yield b"".join(body)
            elif self.whole:
                return
            else:
                await self._more(SILENCE)

    async def json(self) -> Any:
        """The body as JSON; None if it is none."""
        body = b"".join([chunk async for chunk in self.chunks()])
        with contextlib.suppress(ValueError):
            return json.loads(body)
        return None

    async def _more(self, seconds: float) -> None:
        async with asyncio.timeout(seconds):
            data = await self._reader.read(65_536)
        if not data:
            raise ConnectionResetError("The connection ended before the answer.")
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as exc:
            raise ConnectionResetError(f"The answer is no HTTP: {exc}.") from exc


@asynccontextmanager
async def asked(
    port: int, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
) -> AsyncIterator[WireAnswer]:
    """The answer to a request of its own connection, its head read.

    Raises:
        OSError: there is none, or what reads it was cut off (``TimeoutError`` is one).
    """
    text = b"" if body is None else json.dumps(body).encode()
    fields = {"host": "localhost", "connection": "close", "content-length": str(len(text)), **(headers or {})}
    if body is not None:
        fields["content-type"] = "application/json"
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    async with asyncio.timeout(HEAD_SECONDS):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + text)
        answer = WireAnswer(reader)
        await answer.head()
        yield answer
    finally:
        writer.transport.abort()


async def pause(dice: random.Random) -> None:
    """Wait a little before the next try."""
    await asyncio.sleep(dice.uniform(*WAIT))


class RunListener:
    """Reads one run until its end.

    Args:
        port: of the front door.
        session, run, message: ids; "" where they are not known yet.
        cursor: just before the message.
        dice: for what is random.

    Attributes:
        text: what was said, as far as it was heard.
        ended: it has seen the end.
        asks: ids of permissions that the run has asked for.
        cuts: how often it has come back.
        faults: what must not be.
        waits: seconds from a piece's making until it was heard, of pieces that came live.
        heard_at: when it has last heard something of the run, by the steady clock.
        times: when it began, was cut off and came back, by the wall clock.
    """

    dialect = ""

    def __init__(self, port: int, session: str, run: str, message: str, cursor: str, dice: random.Random) -> None:
        self.port = port
        self.session, self.run, self.message, self.cursor = session, run, message, cursor
        self.text = ""
        self.ended = False
        self.asks: asyncio.Queue[str] = asyncio.Queue()
        self.cuts = 0
        self.faults: list[str] = []
        self.waits: list[float] = []
        self.heard_at = 0.0
        self.times: list[tuple[float, float]] = []
        self._dice = dice
        self._live = False

    def request(self) -> tuple[str, str, Any, dict[str, str]]:
        """Method, path, body and headers of the next request."""
        raise NotImplementedError

    def take(self, message: SSEMessage) -> None:
        """Take what comes."""
        raise NotImplementedError

    def begin(self) -> None:
        """A new answer begins."""

    async def listen(self, until: float) -> None:
        """Read until the end of the run, or until ``until`` (of the steady clock), which is a fault."""
        while not self.ended:
            if time.monotonic() > until:
                self.fault("has not heard the end")
                return
            try:
                await self._connection()
            except OSError:
                pass
            if not self.ended:
                self.cuts += 1
                await pause(self._dice)

    async def _connection(self) -> None:
        began = time.time()
        async with asked(self.port, *self.request()) as answer:
            if answer.status != 200:
                if answer.status not in (429, 500, 502, 503, 504):
                    self.fault(f"was answered {answer.status}: {await answer.json()}")
                    self.ended = True
                return
            if answer.headers.get("legato-cursor") == "reset":
                self.fault("its cursor was not continued")
            self.begin()
            decoder = Decoder()
            self._live = not self.cuts
            try:
                async for chunk in answer.chunks():
                    for message in decoder.feed(chunk):
                        if not self.ended:
                            self.take(message)
                    self._live = True
                    if self.ended:
                        return
            finally:
                self.times.append((began, time.time()))

    def say(self, text: str) -> None:
        """Note what the run says."""
        self.text += text
        self.heard_at = time.monotonic()
        if self._live:
            now = time.monotonic_ns()
            made = [piece.partition("@")[2] for piece in text.split()]
            self.waits += [(now - int(each)) / 1e9 for each in made if each.isdigit()]

    def end(self) -> None:
        """The run has ended."""
        self.ended = True
        self.heard_at = time.monotonic()

    def fault(self, what: str) -> None:
        """Note what must not be."""
        self.faults.append(f"{self.dialect} reader of {self.run}: {what}"[:500])


class MixListener(RunListener):
    """On ``/stream``, where ids are offsets."""

    dialect = "mix"
    _last = 0

    def request(self) -> tuple[str, str, Any, dict[str, str]]:
        """See ``RunListener``."""
        headers = {"last-event-id": str(self._last) if self._last else self.cursor}
        return "GET", f"/stream?sessionId={self.session}&client=legato", None, headers

    def take(self, message: SSEMessage) -> None:
        """See ``RunListener``."""
        if message.event in ("connected", "heartbeat"):
            return
        if int(message.id) <= self._last:
            self.fault(f"got id {message.id} after {self._last}")
        self._last = int(message.id)
        data = json.loads(message.data)
        if message.event == "content" and data["assistantMessageId"].rpartition("~a")[0] == self.run:
            self.say(data["content"])
        elif message.event == "permission" and data.get("runId") == self.run:
            self.asks.put_nowait(data["id"])
        elif message.event in ("complete", "error") and data.get("runId") == self.run:
            self.end()


class ResponsesListener(RunListener):
    """Of a response, whose events are numbered."""

    dialect = "responses"
    _last = -1

    def request(self) -> tuple[str, str, Any, dict[str, str]]:
        """See ``RunListener``."""
        after = f"&starting_after={self._last}" if self._last >= 0 else ""
        return "GET", f"/v1/responses/resp_{self.run}?stream=true{after}", None, {}

    def take(self, message: SSEMessage) -> None:
        """See ``RunListener``."""
        if message.data == "[DONE]":
            return
        data = json.loads(message.data)
        if data["sequence_number"] != self._last + 1:
            self.fault(f"got number {data['sequence_number']} after {self._last}")
        self._last = data["sequence_number"]
        if data["type"] == "response.output_text.delta":
            self.say(data["delta"])
        elif data["type"] in ("response.completed", "response.failed", "response.incomplete"):
            self.end()


class DevaListener(RunListener):
    """Of a message of Deva's, whose frames have ids with two numbers."""

    dialect = "deva"
    _last = ""

    def request(self) -> tuple[str, str, Any, dict[str, str]]:
        """See ``RunListener``."""
        path = f"/api/sdk/chat/{self.session}/messages/{self.message}/query/stream"
        return "POST", path, {}, {"last-event-id": self._last} if self._last else {}

    def take(self, message: SSEMessage) -> None:
        """See ``RunListener``."""
        if message.event == "content":
            self.say(json.loads(message.data))
        self._last = message.id or self._last
        if message.event in ("response_message", "error"):
            self.end()


class ChatListener(RunListener):
    """Of a chat completion: there is no cursor, so it asks again, under the same key, and reads from the start."""

    dialect = "chat"

    def __init__(self, port: int, agent: str, text: str, key: str, dice: random.Random) -> None:
        super().__init__(port, "", "", "", "", dice)
        self._body = {"model": agent, "stream": True, "messages": [{"role": "user", "content": text}]}
        self._key = key
        self._before = ""

    def request(self) -> tuple[str, str, Any, dict[str, str]]:
        """See ``RunListener``."""
        return "POST", "/v1/chat/completions", self._body, {"idempotency-key": self._key}

    def begin(self) -> None:
        """See ``RunListener``."""
        self._before, self.text = max(self._before, self.text, key=len), ""

    def take(self, message: SSEMessage) -> None:
        """See ``RunListener``."""
        if message.data == "[DONE]":
            self.end()
        else:
            data = json.loads(message.data)
            if "error" in data:
                self.end()
            else:
                run = data["id"].removeprefix("chatcmpl-")
                if self.run not in ("", run):
                    self.fault(f"the key gave another run: {run}")
                self.run, self.session = run, run.partition("~")[0]
                for choice in data["choices"]:
                    self.say(choice["delta"].get("content") or "")
        if self.ended and not self.text.startswith(self._before):
            self.fault("the text is not what it was when it was read before")


LISTENERS: list[type[RunListener]] = [MixListener, ResponsesListener, DevaListener]
"""Those that read a run of a session that is there."""
