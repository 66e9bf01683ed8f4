"""Publishes tokens to the channels of nchan over HTTP: the agents of a peer that has none.

    python benchmarks/support/publish.py PORT CHANNELS RATE

Each channel gets ``RATE`` tokens a second. A few connections are kept, the requests of one moment go out in one write,
and the answers are thrown away, so that this costs little of the machine beside what is measured.
"""

from __future__ import annotations

import asyncio
import json
import sys

import uvloop
from tokens import token, tokens

CONNECTIONS = 4
SLOTS = 16
"""Moments between two tokens of a channel, over which the channels are spread."""


class Sender(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.WriteTransport = transport  # type: ignore[assignment]


def publication(channel: int, number: int) -> bytes:
    body = json.dumps({"type": "content", "content": token(number)}, separators=(",", ":"))
    return f"POST /pub/{channel} HTTP/1.1\r\nHost: bench\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


async def publish(port: int, channels: int, rate: float) -> None:
    loop = asyncio.get_running_loop()
    made = [await loop.create_connection(Sender, "127.0.0.1", port) for _ in range(min(CONNECTIONS, channels))]
    senders = [sender for _, sender in made]
    slots = min(SLOTS, channels)
    async for moment, _ in tokens(rate * slots):
        number, slot = divmod(moment - 1, slots)
        for index, sender in enumerate(senders):
            # A channel keeps to its connection: two would race.
            due = [each for each in range(slot, channels, slots) if each // slots % len(senders) == index]
            sender.transport.write(b"".join(publication(each, number + 1) for each in due))


if __name__ == "__main__":
    uvloop.run(publish(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))
