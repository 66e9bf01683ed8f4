"""A node of the cluster that is tortured, in a process of its own.

    python -m legato.torture.node STORE PORT LEASE_TTL

It prints ``ready`` once it serves, and goes on until it is told to stop or its standard input ends. Its agents count,
so that what is lost, doubled or out of order is seen in what they say.
"""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator

from ..agent import Agent, OnCrash, Turn
from ..bounds import Limits
from ..event import TextDelta
from ..run import TAKEN
from ..server.app import Legato
from ..server.serve import listen, serve

HEARTBEAT = 1.0
"""Seconds; so that a reader of a node that is stopped knows soon."""
ATTEMPTS = 1_000
"""Of a run: a node is killed more often here than a message is meant to survive."""
AGENTS: dict[str, OnCrash] = {"fails": "fail", "retries": "retry", "resumes": "resume"}


async def counts(turn: Turn) -> AsyncIterator[str]:
    """Give ``count`` pieces, ``rate`` of them a second, each with its number, its attempt, its node's port and
    its time, such as ``"17.2.8088@123456789 "``; with ``asks`` in the message, ask in the middle whether to go on."""
    rate, count, *more = turn.message.text.split()
    # A resumed run has said something, whose pieces are whole: each was yielded, and stored, as one.
    said = "".join(event.fact.text for event in turn.events if isinstance(event.fact, TextDelta))
    first = len(said.split()) if turn.agent == "resumes" else 0
    began = time.monotonic()
    for number in range(first, int(count)):
        await asyncio.sleep(max(0.0, began + (number - first) / float(rate) - time.monotonic()))
        if "asks" in more and number == int(count) // 2:
            granted = await turn.ask_permission("count", "Shall I go on?", timeout=None)
            if not granted:
                return
        yield f"{number}.{turn.attempt}.{sys.argv[2]}@{time.monotonic_ns()} "


def main() -> None:
    """Serve until told to stop, or until whoever started this has gone."""
    faulthandler.enable()
    lines = logging.StreamHandler()
    lines.setFormatter(logging.Formatter("%(created).3f %(message)s"))
    lines.addFilter(lambda line: line.levelno >= logging.WARNING or line.msg == TAKEN)
    logging.basicConfig(handlers=[lines])
    logging.getLogger("legato").setLevel(logging.DEBUG)
    store, port, lease_ttl = sys.argv[1:4]
    app = Legato(
        store,
        agents=[Agent(counts, name=name, on_crash=on_crash) for name, on_crash in AGENTS.items()],
        limits=Limits(attempts=ATTEMPTS),
        heartbeat=HEARTBEAT,
        lease_ttl=float(lease_ttl),
        grace=0.0,
        page=False,
    )
    listener = listen("127.0.0.1", int(port), wait=10.0)

    def leave() -> None:
        sys.stdin.read()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=leave, daemon=True).start()
    serve(app, listener, on_ready=lambda: print("ready", flush=True))  # noqa: T201  # to who started it


if __name__ == "__main__":
    main()
