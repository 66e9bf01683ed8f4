"""An agent's fault is its own: what it does to the process that it runs in, seen from outside.

Each row is an agent that does not let itself be stopped, or wants to end the process; the server goes on, and ends when
it is told to.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest

from driving import chatting
from legato import Caller
from legato.errors import StoreLocked
from legato.event import TERMINAL
from legato.store.lock import FileLock
from legato.torture.ports import free_port
from processes import Server, running

HEAD = """
import asyncio, multiprocessing, os, sys, threading, time
from legato import Agent, Legato, Limits

class Odd(BaseException):
    pass

app = Legato({store!r}, grace=1.0)

@app.agent
async def well(turn):
    yield "Well."
"""

STUBBORN = {
    "swallows": """
@app.agent
async def agent(turn):
    yield "Begun."
    while True:
        try:
            await asyncio.sleep(3600)
        except BaseException:
            pass
""",
    "swallows in a finally": """
@app.agent
async def agent(turn):
    try:
        yield "Begun."
        await asyncio.sleep(3600)
    finally:
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                pass
""",
    "is busy": """
@app.agent
async def agent(turn):
    yield "Begun."
    while True:
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            pass
""",
    "leaves tasks behind": """
async def stay():
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            pass

@app.agent
async def agent(turn):
    agent.tasks = [asyncio.ensure_future(stay()) for _ in range(5)]
    yield "Begun."
""",
    "holds the loop": """
@app.agent
async def agent(turn):
    yield "Begun."
    await turn.stored()
    await asyncio.sleep(0.2)
    while True:
        time.sleep(0.05)
""",
    "computes for ever": """
@app.agent
async def agent(turn):
    yield "Begun."
    await turn.stored()
    await asyncio.sleep(0.2)
    while True:
        pass
""",
    "waits for a thread": """
@app.agent
async def agent(turn):
    yield "Begun."
    await asyncio.gather(*(asyncio.to_thread(time.sleep, 3600) for _ in range(40)))
""",
    "has a thread of its own": """
@app.agent
async def agent(turn):
    threading.Thread(target=time.sleep, args=(3600,)).start()
    yield "Begun."
""",
    "is a thread": """
@app.agent
def agent(turn):
    yield "Begun."
    while True:
        time.sleep(0.05)
""",
    "does not stop on_stop": """
async def stay():
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            pass

async def agent(turn):
    yield "Begun."

app._add(Agent(agent, on_stop=stay))
""",
}
"""Agents that do not end when they are told to."""

EXITS = {
    "in its body": """
@app.agent
async def NAME(turn):
    yield "Begun."
    raise ERROR
""",
    "at once": """
@app.agent
async def NAME(turn):
    raise ERROR
""",
    "where it is called": """
async def like(turn): ...

def call(turn):
    raise ERROR

call.__wrapped__ = like  # so it is called on the loop
app._add(Agent(call, name="NAME"))
""",
    "in a finally": """
@app.agent
async def NAME(turn):
    try:
        yield "Begun."
        await asyncio.sleep(3600)
    finally:
        raise ERROR
""",
    "when it is cancelled": """
@app.agent
async def NAME(turn):
    yield "Begun."
    try:
        await asyncio.sleep(3600)
    except asyncio.CancelledError:
        raise ERROR
""",
    "when it is closed": """
class Stream:
    def __init__(self): self.said = iter(["Begun."])
    def __aiter__(self): return self
    async def __anext__(self):
        for word in self.said:
            return word
        raise StopAsyncIteration
    async def aclose(self):
        raise ERROR

@app.agent
async def NAME(turn):
    return Stream()
""",
    "in a thread": """
@app.agent
def NAME(turn):
    yield "Begun."
    raise ERROR
""",
    "in a task": """
async def fall():
    raise ERROR

@app.agent
async def NAME(turn):
    yield "Begun."
    task = asyncio.ensure_future(fall())
    await asyncio.sleep(0.05)
    yield "Not ended."
""",
    "in a callback": """
def fall():
    raise ERROR

@app.agent
async def NAME(turn):
    yield "Begun."
    asyncio.get_running_loop().call_soon(fall)
    await asyncio.sleep(0.05)
    yield "Not ended."
""",
    "in a timer": """
def fall():
    raise ERROR

@app.agent
async def NAME(turn):
    yield "Begun."
    asyncio.get_running_loop().call_later(0.01, fall)
    await asyncio.sleep(0.05)
    yield "Not ended."
""",
    "by stopping the loop": """
@app.agent
async def NAME(turn):
    yield "Begun."
    asyncio.get_running_loop().stop()
    await asyncio.sleep(0.05)
    yield "Not ended."
""",
    "in on_stop": """
async def fall():
    raise ERROR

async def NAME(turn):
    yield "Begun."

app._add(Agent(NAME, on_stop=fall))
""",
}
"""Agents that want to end the process."""
ERRORS = ["SystemExit(3)", "KeyboardInterrupt", "Odd", "GeneratorExit"]


def store_of(folder: Path) -> str:
    return f"sqlite:///{folder / 'log.db'}"


def written(folder: Path, code: str) -> Path:
    file = folder / "agents.py"
    file.write_text(HEAD.replace("{store!r}", repr(store_of(folder))) + code)
    return file


@contextlib.contextmanager
def serving_file(file: Path, *options: str) -> Any:
    with running("legato", "serve", f"{file}:app", "--port", "0", *options) as server:
        yield server


async def told(client: httpx2.AsyncClient, agent: str, *, begun: bool = True) -> tuple[str, str]:
    """A session in which a message was sent to ``agent``, once it has begun to answer; its run."""
    session = (await client.post("/api/sessions", json={})).json()["id"]
    run = (await client.post(f"/api/sessions/{session}/messages", json={"text": "go", "agent": agent})).json()["runId"]
    while begun and "text.delta" not in await types(client, session):  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    return session, run


async def types(client: httpx2.AsyncClient, session: str) -> list[str]:
    events = (await client.get(f"/api/sessions/{session}/events")).json()["events"]
    return [event["type"] for event in events]


async def over(client: httpx2.AsyncClient, session: str) -> str:
    while (last := (await types(client, session))[-1]) not in TERMINAL:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    return last


def client_of(server: Server) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(base_url=server.url, timeout=30, trust_env=False)


@pytest.mark.parametrize("name", STUBBORN)
async def test_a_server_ends_in_time_whatever_its_agents_do(name: str, tmp_path: Path) -> None:
    """The agents have a second, and the rest a few."""
    with serving_file(written(tmp_path, STUBBORN[name])) as server:
        async with asyncio.timeout(60), client_of(server) as client:
            await told(client, "agent")
            await asyncio.sleep(0.5)  # those that hold the loop have begun to
        server.process.send_signal(signal.SIGTERM)
        status = await asyncio.to_thread(server.stopped)  # by themselves they would not end
        assert status in (0, 1)
        assert status == 0 or "most recent call first" in server.output
    with serving_file(written(tmp_path, "")) as server:  # nobody holds the file
        async with asyncio.timeout(60), client_of(server) as client:
            await over(client, (await told(client, "well"))[0])


async def test_an_agent_that_does_not_stop_is_told_of(tmp_path: Path) -> None:
    """Its run ends, and the log names it."""
    with serving_file(written(tmp_path, STUBBORN["swallows"])) as server:
        async with asyncio.timeout(60), client_of(server) as client:
            session, run = await told(client, "agent")
            await client.post(f"/api/sessions/{session}/cancel")
            assert await over(client, session) == "run.cancelled"
        assert server.said(f"run {run}: the agent goes on although it was told to stop")
        server.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(server.stopped) == 0


@pytest.mark.parametrize("error", ERRORS)
async def test_nobody_ends_the_server_but_who_may(error: str, tmp_path: Path) -> None:
    """However an agent tries: its run ends, others are answered, and a signal ends the process as always."""
    code = "".join(each.replace("ERROR", error).replace("NAME", f"a{n}") for n, each in enumerate(EXITS.values()))
    with serving_file(written(tmp_path, code)) as server:
        async with asyncio.timeout(60), client_of(server) as client:
            for number, name in enumerate(EXITS):
                session, _ = await told(client, f"a{number}", begun=False)
                if name in ("in a finally", "when it is cancelled"):
                    while "text.delta" not in await types(client, session):  # noqa: ASYNC110
                        await asyncio.sleep(0.01)
                    await client.post(f"/api/sessions/{session}/cancel")
                ending = await over(client, session)
                if name in ("in a task", "in a callback", "in a timer", "by stopping the loop", "in on_stop"):
                    assert (name, ending) == (name, "run.completed")
                session, _ = await told(client, "well", begun=False)
                assert await over(client, session) == "run.completed"
        assert server.process.poll() is None
        server.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(server.stopped) == 0, server.output[-3000:]
    assert "Stopped." in server.output


# Forks ----------------------------------------------------------------------------------------------------------------

FORKS = {
    "os.fork": """
def child():
    pid = os.fork()
    if pid == 0:
        try:
            rest()
        finally:
            os._exit(0)
    return pid
""",
    "multiprocessing": """
def child():
    process = multiprocessing.get_context("fork").Process(target=rest)
    process.start()
    return process.pid
""",
    "a pool": """
def child():
    import concurrent.futures
    pool = concurrent.futures.ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork"))
    child.pool = pool
    pid = pool.submit(os.getpid).result()
    pool.submit(rest)
    return pid
""",
}
REST = """
def rest():
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (1, 2):  # what the server prints ends with the server
        os.dup2(nothing, number)
    time.sleep(60)
"""
WAYS = {
    "on the loop": """
@app.agent
async def agent(turn):
    yield str(child())
""",
    "in a thread": """
@app.agent
def agent(turn):
    yield str(child())
""",
}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Needs os.fork, which Windows does not have.")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("fork", FORKS)
async def test_a_child_keeps_nothing_of_a_killed_server(fork: str, way: str, tmp_path: Path) -> None:
    """Not its port, not its file, not its readers: they hear of its end, and the next one starts."""
    file = written(tmp_path, REST + FORKS[fork] + WAYS[way])
    child = 0
    try:
        with serving_file(file, "--port", str(free_port())) as server:
            url = urlsplit(server.url)
            async with asyncio.timeout(60), client_of(server) as client:
                reader = socket.create_connection((url.hostname or "", url.port or 0), timeout=30)
                session, _ = await told(client, "agent")
                await over(client, session)
                reader.sendall(
                    f"GET /stream?sessionId={session}&from=start HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
                )
                assert reader.recv(4096)
                events = (await client.get(f"/api/sessions/{session}/events")).json()["events"]
                child = int(events[-1]["data"]["message"]["text"])
            server.process.kill()
            server.process.wait()
            os.kill(child, 0)  # it lives
            with reader, contextlib.suppress(ConnectionError):
                while reader.recv(65536):
                    pass
            with running("legato", "serve", f"{file}:app", "--port", str(url.port)) as again:
                os.kill(child, 0)
                async with asyncio.timeout(60), client_of(again) as client:
                    assert (await client.get(f"/api/sessions/{session}/messages")).status_code == 200
                    assert await over(client, (await told(client, "well"))[0]) == "run.completed"
    finally:
        if child:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)


STRAYS = """
@app.agent
async def agent(turn):
    pid = os.fork()
    yield f"{pid} "
    if pid:
        _, status = await asyncio.to_thread(os.waitpid, pid, 0)
        yield f"ended {os.waitstatus_to_exitcode(status)}"
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Needs os.fork, which Windows does not have.")
async def test_a_child_that_comes_back_to_the_event_loop_ends(tmp_path: Path) -> None:
    """It would answer the same requests as its parent, and write to the same connections."""
    with serving_file(written(tmp_path, STRAYS)) as server:
        async with asyncio.timeout(60), client_of(server) as client:
            session, _ = await told(client, "agent")
            assert await over(client, session) == "run.completed"
            events = (await client.get(f"/api/sessions/{session}/events")).json()["events"]
            assert events[-1]["data"]["message"]["text"].endswith("ended 1")
            assert await over(client, (await told(client, "well"))[0]) == "run.completed"


EXITING = """
@app.agent
async def agent(turn):
    pid = os.fork()
    if not pid:
        import gc
        gc.collect()
        sys.exit(7)
    await asyncio.to_thread(os.waitpid, pid, 0)
    yield str(pid)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Needs os.fork, which Windows does not have.")
async def test_a_child_that_exits_takes_nothing_of_the_log_with_it(tmp_path: Path) -> None:
    """What was stored before and after it is there, also after a kill."""
    file = written(tmp_path, EXITING)
    with serving_file(file) as server:
        async with asyncio.timeout(60), client_of(server) as client:
            sessions = []
            for _ in range(3):
                for agent in ("well", "agent", "well"):
                    sessions.append((await told(client, agent, begun=False))[0])
                    assert await over(client, sessions[-1]) == "run.completed"
        server.process.kill()
    with serving_file(file) as server:
        async with asyncio.timeout(60), client_of(server) as client:
            for session in sessions:
                assert (await types(client, session))[-1] == "run.completed"


def test_a_lock_is_not_a_child_s(tmp_path: Path) -> None:
    """Let go of in a child, it is still held; given back, it is free though the child lives."""
    lock = FileLock(str(tmp_path / "file"))
    lock.acquire()
    ours, theirs = socket.socketpair()
    child = os.fork()
    if not child:
        theirs.send(b"it runs")
        theirs.recv(1)
        os._exit(0)
    try:
        ours.recv(7)
        with pytest.raises(StoreLocked):
            FileLock(str(tmp_path / "file")).acquire()
        lock.release()
        other = FileLock(str(tmp_path / "file"))
        other.acquire()
        other.release()
    finally:
        ours.send(b"x")
        os.waitpid(child, 0)
        ours.close()
        theirs.close()


# Hooks ----------------------------------------------------------------------------------------------------------------


async def async_may(caller: Caller, verb: str, owner: str | None) -> bool:
    return False


def exits(*_: Any) -> Any:
    sys.exit(3)


async def exits_later(*_: Any) -> Any:
    sys.exit(3)


def interrupts(*_: Any) -> Any:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    "hook",
    [exits, exits_later, interrupts, lambda _: None, lambda _: "somebody", lambda _: Caller(None), lambda _: Caller(5)],  # type: ignore[arg-type]
)
async def test_a_mistake_of_identify_fails_its_request_alone(hook: Any) -> None:
    """Nobody is let in by it, and the next request is answered."""
    wrong = False

    def identify(scope: Any) -> Any:
        return hook(scope) if wrong else Caller("ann")

    async with chatting(None, identify=identify) as chat:
        await chat.said()
        wrong = True
        for target in ("/api/sessions", f"/api/sessions/{chat.session}", f"/stream?sessionId={chat.session}"):
            assert (await chat.driver.request("GET", target)).status == 500
        wrong = False
        assert len((await chat.driver.request("GET", "/api/sessions")).json()) == 1


@pytest.mark.parametrize("hook", [exits, interrupts, async_may])
async def test_a_mistake_of_may_fails_its_request_alone(hook: Any) -> None:
    """A coroutine is no yes."""
    wrong = False

    def may(caller: Caller, verb: str, owner: str | None) -> Any:
        return hook(caller, verb, owner) if wrong else True

    async with chatting(None, may=may) as chat:
        await chat.said()
        wrong = True
        for target in ("/api/sessions", f"/api/sessions/{chat.session}", "/api/inspect"):
            assert (await chat.driver.request("GET", target)).status == 500
        wrong = False
        assert len((await chat.driver.request("GET", "/api/sessions")).json()) == 1
