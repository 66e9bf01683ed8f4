# Made from aio.py by tools/faces.py. Change that one, and run: make faces
"""Requests with threads, for those who have an httpx2 client.

It moves bytes; the rest decides. ``aio`` is its twin, with the same functions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ..errors import LegatoError
from .call import RequestArguments, failure
from .packages import httpx2

__all__ = ["open_stream", "read_chunk", "send"]


def send(http: httpx2.Client, asked: RequestArguments, *, follow_redirects: bool) -> httpx2.Response:
    """The response to a plain request, whatever its status, its body read.

    Raises:
        ClientError: there is none.
    """
    try:
        return http.send(http.build_request(**asked), follow_redirects=follow_redirects)
    except httpx2.RequestError as exc:
        raise failure(exc) from exc


def open_stream(
    http: httpx2.Client,
    asked: RequestArguments,
    refusal: Callable[[httpx2.Response], LegatoError],
    *,
    follow_redirects: bool,
) -> httpx2.Response:
    """The response to a request for a stream, its body unread.

    Raises:
        ClientError: there is none.
        LegatoError: what ``refusal`` makes of one with another status than 200.
    """
    try:
        response = http.send(http.build_request(**asked), stream=True, follow_redirects=follow_redirects)
        if response.status_code != 200:
            try:
                response.read()
            finally:
                response.close()
            raise refusal(response)
    except httpx2.RequestError as exc:
        raise failure(exc) from exc
    return response


def read_chunk(body: Iterator[bytes]) -> bytes | None:
    """The next bytes of a body; None at its end.

    Raises:
        ClientError: the connection was lost.
    """
    try:
        return body.__next__()  # less than half of what the function with a default costs
    except StopIteration:
        return None
    except httpx2.RequestError as exc:
        raise failure(exc) from exc
