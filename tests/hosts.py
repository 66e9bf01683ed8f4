"""Servers that are not ours, with an application of ours in them: where they are installed, how they are started."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from processes import Server, running
from venvs import host_python

SOURCE = Path(__file__).parent.parent / "src"

APP = """
import asyncio, os, threading
from legato import Legato

app = Legato(os.environ["STORE"], lock_wait=float(os.environ.get("LOCK_WAIT", "30")))

@app.agent(on_crash="resume")
async def agent(turn):
    last, words = int(turn.message.text), "".join(getattr(event.fact, "text", "") for event in turn.events)
    for number in range(len(words.split()), last):
        yield f"{number} "
        await asyncio.sleep(float(os.environ.get("PAUSE", "0.03")))
"""
"""An agent that counts, and goes on after a crash where it was."""


def count(last: int) -> str:
    """What it answers."""
    return "".join(f"{number} " for number in range(last))


HOSTS = {
    "uvicorn": ["uvicorn", "app:app", "--port", "0"],
    "gunicorn": ["gunicorn", "app:app", "-k", "uvicorn_worker.UvicornWorker", "-b", "127.0.0.1:0"],
    "gunicorn's own": ["gunicorn", "app:app", "-k", "asgi", "-b", "127.0.0.1:0"],
    "hypercorn": ["hypercorn", "app:app", "-b", "127.0.0.1:0"],
}
"""By name, how each is started with one worker."""


@contextmanager
def hosted(folder: Path, name: str, *options: str, **env: str) -> Iterator[Server]:
    """A server with the application of ``app.py`` in ``folder``, which is written if there is none."""
    if not (folder / "app.py").exists():
        (folder / "app.py").write_text(APP)
    settings = {"PYTHONPATH": f"{SOURCE}:{folder}", "STORE": f"sqlite:///{folder}/chat.db", **env}
    with running(*HOSTS[name], *options, cwd=folder, env=settings, python=host_python()) as server:
        try:
            yield server
        finally:  # in order, since what is killed leaves its workers
            if server.process.poll() is None:
                server.process.send_signal(signal.SIGTERM)
                server.stopped()


def number_of(folder: Path) -> int:
    """The process that has the store, by the store's lock."""
    return int((folder / "chat.db.lock").read_text().split()[0])


def is_there(process: int) -> bool:
    """Whether a process runs."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True
