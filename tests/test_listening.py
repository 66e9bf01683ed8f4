"""Whether the server around an application still listens, seen by the sockets of its process."""

# ruff: noqa: ASYNC110  # nobody rings

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from legato.server import listening
from legato.server.listening import ListenWatch, listeners

NET = 30.0


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "LOOK_SECONDS", 0.01)


def made(kind: str, folder: Path) -> tuple[socket.socket, Any]:
    """A socket that listens, and what ASGI calls where."""
    if kind == "unix":
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(folder / "socket"))
        listener.listen()
        return listener, (str(folder / "socket"), None)
    if kind == "unix, and not told":
        return made("unix", folder)[0], None
    family = socket.AF_INET6 if kind == "IPv6" else socket.AF_INET
    host = "::1" if kind == "IPv6" else "127.0.0.1"
    listener = socket.create_server((host, 0), family=family)
    return listener, (host if kind != "a name" else "chat.example.com", listener.getsockname()[1])


KINDS = ["IPv4", "IPv6", "a name", "unix", "unix, and not told"]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_socket_that_is_closed_is_noticed(kind: str, tmp_path: Path) -> None:
    """Also if its number is another file's at once. Told once, and nothing before."""
    try:
        listener, server = made(kind, tmp_path)
    except OSError:
        pytest.skip(f"There is no {kind} here; for IPv6: sysctl net.ipv6.conf.lo.disable_ipv6=0")
    told: list[None] = []
    watch = ListenWatch(lambda: told.append(None))
    watch.see({"server": server})
    await asyncio.sleep(0.05)
    assert not told
    number = listener.detach()
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, number)
    try:
        async with asyncio.timeout(NET):
            while not told:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        assert len(told) == 1
        watch.stop()
    finally:
        os.close(number)
        os.close(nothing)


async def test_others_sockets_are_none_of_ours(tmp_path: Path) -> None:
    """Nor is a connection, or a socket that is bound and does not listen: nothing is watched then."""
    other, _ = made("IPv4", tmp_path)
    with other, socket.create_connection(other.getsockname()) as connection, socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        for server in (connection.getsockname()[:2], bound.getsockname(), ("localhost", 80), ("/no/socket", None)):
            assert listeners(server) == []
        assert len(listeners(other.getsockname())) == 1
        watch = ListenWatch(lambda: pytest.fail("nothing was watched"))
        watch.see({"server": ("localhost", 80)})
        watch.see({"server": other.getsockname()})  # the first request decides
        other.close()
        await asyncio.sleep(0.05)
        watch.stop()
        watch.stop()


async def test_all_of_them_are_closed(tmp_path: Path) -> None:
    """A server may listen on two sockets of one port; and who stops looking is told nothing."""
    first, server = made("IPv4", tmp_path)
    second = first.dup()
    told: list[None] = []
    watches = [ListenWatch(lambda: told.append(None)) for _ in range(2)]
    for watch in watches:
        watch.see({"server": server})
    watches[1].stop()
    first.close()
    await asyncio.sleep(0.05)
    assert not told
    second.close()
    async with asyncio.timeout(NET):
        while not told:
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    assert len(told) == 1


def test_what_is_a_socket_no_more_is_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two looks its number may become another file's, as the end of a pipe whose reader waits for its close."""
    monkeypatch.setattr(listening.stat, "S_ISSOCK", lambda mode: True)
    reading, writing = os.pipe()
    try:
        assert listening._listens_at(writing) is None
    finally:
        os.close(writing)
    os.set_blocking(reading, False)
    assert os.read(reading, 1) == b""
    os.close(reading)
