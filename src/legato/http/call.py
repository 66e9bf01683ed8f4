"""One request as data, and what its answer means. No I/O: a face sends it and hands the answer back.

``HttpCall`` is what an operation makes. ``request()`` turns it into what httpx2 builds a request from, ``answer()`` and
``refusal()`` turn a response into a value or an error, and ``failure()`` turns httpx2's exceptions into ours.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import NoneType
from typing import Generic, TypedDict, TypeVar, cast
from urllib.parse import parse_qsl

import msgspec

import legato

from ..check import digits
from ..errors import InvalidInput
from ..json import known
from .errors import APIError, ClientError, ConnectionFailed, ConnectionLost, ResponseInvalid
from .packages import httpx2
from .retry import UNSET, RetryConfig, Unset

__all__ = [
    "HttpCall",
    "Options",
    "RequestArguments",
    "answer",
    "failure",
    "header_lists",
    "refusal",
    "request",
    "user_agent",
]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Options(TypedDict, total=False):
    """What every operation takes besides its own arguments.

    ``retries``: instead of the client's; None turns them off. ``timeout_ms``: for each wait on the network (of a
    stream: the silence after which it reconnects). ``http_headers``: added to the request, or in place of its own.
    """

    retries: RetryConfig | Unset | None
    timeout_ms: int | None
    http_headers: Mapping[str, str] | None


@dataclass(frozen=True, slots=True)
class HttpCall(Generic[T_co]):
    """One request.

    Attributes:
        method: the HTTP verb.
        path: from the server's address on, escaped.
        returns: what a good answer's JSON is decoded to; ``NoneType`` when it has no body, ``bytes`` for the body.
        digest: SHA-256 of that body, in hexadecimal; only such an answer is one.
        query: without the None values.
        body: JSON fields; None values are left out. None sends no body.
        spare: fields of the body that nobody asked for: a server that refuses one of them is asked without it.
        headers: of this request.
        repeatable: whether being carried out twice does no harm.
        already: the error code that, on a repetition, means that an earlier attempt had done it.
        instead: the request that then gets the answer; None when there is nothing to get.
        options: the caller's.
    """

    method: str
    path: str
    returns: type[T_co]
    digest: str = ""
    query: Mapping[str, object] = field(default_factory=dict)
    body: Mapping[str, object] | None = None
    spare: tuple[str, ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    repeatable: bool = True
    already: str | None = None
    instead: HttpCall[T_co] | None = None
    options: Options = field(default_factory=lambda: Options())

    @property
    def retries(self) -> RetryConfig | Unset | None:
        """The caller's wish for this call."""
        return self.options.get("retries", UNSET)

    def nothing(self) -> T_co:
        """The value of an answer without a body."""
        return cast(T_co, None)


def user_agent() -> str:
    """How the SDK calls itself; servers send it the events that only it knows."""
    return f"legato-python/{legato.__version__}"


class RequestArguments(TypedDict):
    """The arguments of httpx2's ``build_request``."""

    method: str
    url: str
    params: dict[str, str]
    headers: dict[str, str] | httpx2.Headers
    content: bytes | None
    timeout: httpx2.Timeout


def request(
    call: HttpCall[object], base_url: str, headers: Mapping[str, str], timeout: httpx2.Timeout
) -> RequestArguments:
    """The arguments for httpx2's ``build_request``; of headers with one name the caller's wins, then the call's."""
    merged = {"user-agent": user_agent(), "accept": "application/json"}
    for source in (headers, call.headers, call.options.get("http_headers") or {}):
        merged.update((name.lower(), value) for name, value in source.items())
    content = None
    if call.body is not None:
        content = msgspec.json.encode({name: value for name, value in call.body.items() if value is not None})
        merged.setdefault("content-type", "application/json")
    timeout_ms = call.options.get("timeout_ms")
    address, _, query = base_url.partition("?")
    own = {name: _query_text(value) for name, value in call.query.items() if value is not None}
    return RequestArguments(
        method=call.method,
        url=address + call.path,
        params={**dict(parse_qsl(query, keep_blank_values=True)), **own} if query else own,
        # What a server has told, such as an id, may be any text; browsers send that back as UTF-8.
        headers=merged if "".join(merged.values()).isascii() else httpx2.Headers(merged, encoding="utf-8"),
        content=content,
        timeout=timeout if timeout_ms is None else httpx2.Timeout(timeout_ms / 1000),
    )


def _query_text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def answer(call: HttpCall[T], response: httpx2.Response) -> T:
    """The value of a response (its body read) with a success status.

    Raises:
        ResponseInvalid: it is of another form.
    """
    if call.returns is NoneType and response.status_code == 204:
        return call.nothing()
    try:
        if call.returns is NoneType:
            raise msgspec.DecodeError("expected 204, without a body")
        if call.returns is bytes:
            if hashlib.sha256(response.content).hexdigest() != call.digest:
                raise msgspec.DecodeError(f"expected bytes whose SHA-256 is {call.digest[:64]}")
            return cast(T, response.content)
        return msgspec.json.decode(response.content, type=known(call.returns), strict=False)
    except (msgspec.MsgspecError, UnicodeError) as exc:
        raise ResponseInvalid(
            f"{call.method} {call.path} was answered with {response.status_code}, but not as documented: {exc}.",
            status_code=response.status_code,
            body=response.text[:1000],
        ) from exc


def refusal(response: httpx2.Response) -> APIError:
    """The error that a response with an error status (its body read) stands for."""
    asked = f"{response.request.method} {response.request.url.path}"
    return APIError(
        f"{asked} was answered with {response.status_code}: {response.text[:200]!r}.",
        status_code=response.status_code,
        body=response.text,
        headers={name.lower(): value for name, value in response.headers.items()},
        retry_after=_seconds(response.headers.get("retry-after")),
    )


def _seconds(retry_after: str | None) -> float | None:
    """The seconds of a Retry-After header, which is a number or a date; None when it is neither."""
    if retry_after is None or not retry_after.isascii():
        return None
    head, _, tail = retry_after.partition(".")  # some write parts of a second, which are none by the standard
    seconds = digits(head)
    if seconds is not None and (not tail or digits(tail) is not None):
        return float(retry_after)
    from email.utils import parsedate_to_datetime

    try:
        return max((parsedate_to_datetime(retry_after) - datetime.now(UTC)).total_seconds(), 0.0)
    except (ValueError, TypeError, OverflowError):  # TypeError: a date without a zone
        return None


def failure(error: httpx2.RequestError) -> ClientError:
    """Our error for httpx2's.

    Raises:
        InvalidInput: the request itself was at fault, for example a line end in a header.
    """
    try:
        # Of the address the server alone: a key may stand in all else, and logs have these words.
        url = error.request.url
        what = f"{error.request.method} {url.scheme}://{url.netloc.decode('ascii')}"
    except RuntimeError:  # httpx2 does not always know the request
        what = "A request"
    why = str(error) or type(error).__name__
    # Raised before a byte of the request is on its way.
    unsent = httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.PoolTimeout | httpx2.ProxyError
    if isinstance(error, unsent | httpx2.UnsupportedProtocol):
        return ConnectionFailed(f"{what}: the server could not be reached ({why}).")
    if isinstance(error, httpx2.LocalProtocolError):
        raise InvalidInput(f"{what} cannot be sent: {why}.") from error
    if isinstance(error, httpx2.TimeoutException):
        return ConnectionLost(f"{what}: nothing was heard from the server in time.", silent=True)
    if isinstance(error, httpx2.TransportError):
        return ConnectionLost(f"{what}: the connection was lost ({why}).", silent=False)
    return ResponseInvalid(f"{what}: the answer cannot be used ({why}).")


def header_lists(headers: httpx2.Headers) -> dict[str, list[str]]:
    """Response headers as lists, by lower-case name."""
    lists: dict[str, list[str]] = {}
    for name, value in headers.multi_items():
        lists.setdefault(name.lower(), []).append(value)
    return lists
