"""A Legato server on a socket, in a thread, and a proxy that cuts its connections."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn


@contextlib.contextmanager
def serving(app: Any) -> Iterator[str]:
    """The address of the application while it runs."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        started = threading.Event()

        class Server(uvicorn.Server):
            async def startup(self, sockets: list[socket.socket] | None = None) -> None:
                await super().startup(sockets)
                started.set()

        # On a busy machine a test may be away for longer than the five seconds after which an idle connection would be
        # closed, and notice it only when it has sent something.
        server = Server(uvicorn.Config(app, log_level="warning", timeout_keep_alive=600))
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])), daemon=True)
        thread.start()
        assert started.wait(60)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join(30)


@contextlib.contextmanager
def cutting(url: str, allowance: Callable[[bytes], int | None], *, announced: bool = True) -> Iterator[str]:
    """The address of a proxy before ``url``: of each answer it lets as many bytes through as ``allowance(request)``.

    Each connection ends after one answer. If that is ``announced`` (``Connection: close``), Node.js takes an answer
    that is cut for a whole one.
    """
    host, port = url.removeprefix("http://").split(":")

    def relay(client: socket.socket) -> None:
        with contextlib.suppress(OSError), client, socket.create_connection((host, int(port))) as server:
            try:
                pass_on(client, server)
            finally:
                # close() alone would wait for the thread that reads from the same socket.
                for end in (client, server):
                    with contextlib.suppress(OSError):
                        end.shutdown(socket.SHUT_RDWR)

    def pass_on(client: socket.socket, server: socket.socket) -> None:
        request = b""
        while b"\r\n\r\n" not in request:
            piece = client.recv(65536)
            if not piece:
                return  # a browser opens connections that it may never use
            request += piece
        left = allowance(request)
        # One request for each connection, so that the allowance is that of one answer.
        server.sendall(request.replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
        threading.Thread(target=forward, args=(client, server), daemon=True).start()
        while left is None or left > 0:
            data = server.recv(65536)
            if not data:
                return
            piece = data if left is None else data[:left]
            client.sendall(piece if announced else piece.replace(b"connection: close\r\n", b"", 1))
            left = None if left is None else left - len(data)

    def forward(client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                server.sendall(data)
            server.shutdown(socket.SHUT_RDWR)  # the client has left, and the server is to know

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=relay, args=(listener.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
