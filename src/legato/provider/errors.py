"""What a provider raises.

    LegatoError
    `-- ProviderError               anything that went wrong between this program and the model: ``partial``
        |-- ProviderUnreachable     the provider could not be reached: nothing was sent
        |-- ProviderRefused         it answered with an error status: ``status_code``, ``retry_after``
        |-- StreamInterrupted       the answer stopped in the middle: cut off, silent, or ended without an end
        |-- StreamMalformed         the answer is not of the documented form
        |-- ResponseFailed          the provider says that it failed: ``code``, ``type``, ``param``
        |   `-- ResponseCancelled   ... because somebody cancelled it
        `-- ResponseIncomplete      the model was stopped before its end: ``reason``

Each carries in ``partial`` what had arrived: text, thinking, tool calls, usage. What is wrong before anything is sent
is ``legato.errors.InvalidInput``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, TypedDict

from ..check import digits, whole
from ..errors import LegatoError
from ..http.backoff import is_final
from ..http.call import HttpCall, answer, refusal
from ..http.errors import APIError, ConnectionFailed, ConnectionLost
from ..http.packages import httpx2
from ..json import JsonObject
from .loose import loose
from .result import ChatResult

__all__ = [
    "ProviderError",
    "ProviderRefused",
    "ProviderUnreachable",
    "ResponseCancelled",
    "ResponseFailed",
    "ResponseIncomplete",
    "StreamInterrupted",
    "StreamMalformed",
    "answered",
    "confessed",
    "failed",
    "provider_error",
    "refused",
]


class ProviderError(LegatoError):
    """The root of all errors that a provider raises about an answer.

    Attributes:
        partial: what had arrived before; empty when nothing had.
    """

    code = "provider_error"
    status = 502

    def __init__(self, message: str = "", *, partial: ChatResult | None = None, **detail: object) -> None:
        super().__init__(message, **detail)
        self.partial = partial or ChatResult()


class ProviderUnreachable(ProviderError):
    """The provider could not be reached; nothing was sent."""

    code = "provider_unreachable"
    loggable = True


class ProviderRefused(ProviderError):
    """The provider answered with an error status.

    Attributes:
        status_code: the HTTP status.
        code: the provider's machine-readable reason, else ``"http_<status>"``.
        type: the provider's class of the error; None when it gives none.
        param: the field that was at fault; None when it names none.
        retry_after: seconds that it asked to wait; None when it did not.
        body: the answer's text.
        headers: the answer's headers, by lower-case name.
    """

    def __init__(
        self,
        message: str,
        *,
        status_code: int,
        code: str | None = None,
        type: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
        body: str = "",
        headers: Mapping[str, str] | None = None,
        partial: ChatResult | None = None,
        **detail: object,
    ) -> None:
        super().__init__(message, partial=partial, **detail)
        self.status_code = status_code
        self.code = code or f"http_{status_code}"
        self.type = type
        self.param = param
        self.retry_after = retry_after
        self.body = body
        self.headers = headers or {}


class StreamInterrupted(ProviderError):
    """The answer stopped in the middle, and could not be continued; ``partial`` is its beginning.

    Attributes:
        silent: nothing was heard for longer than the timeout; else the connection was cut, or the provider ended it.
    """

    code = "stream_interrupted"

    def __init__(
        self, message: str, *, silent: bool = False, partial: ChatResult | None = None, **detail: object
    ) -> None:
        super().__init__(message, partial=partial, **detail)
        self.silent = silent


class StreamMalformed(ProviderError):
    """What the provider sent is not of the documented form."""

    code = "stream_malformed"


class ResponseFailed(ProviderError):
    """The provider says, in the middle of an answer, that it failed.

    Attributes:
        code: the provider's machine-readable reason.
        type: the provider's class of the error; None when it gives none.
        param: the field that was at fault; None when it names none.
    """

    code = "response_failed"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        type: str | None = None,
        param: str | None = None,
        partial: ChatResult | None = None,
        **detail: object,
    ) -> None:
        super().__init__(message, partial=partial, **detail)
        self.code = code or type or self.code
        self.type = type
        self.param = param

    @property
    def passing(self) -> bool:
        """Whether the provider was merely too busy, or broke: asked again, it may answer."""
        words = {word.lower() for word in (self.code, self.type) if word}
        statuses = (status for word in words if len(word) == 3 and (status := digits(word)) is not None)
        return not words & _FINAL and (bool(words & _PASSING) or any(not is_final(status) for status in statuses))


_PASSING: Final = frozenset(
    ["overloaded", "overloaded_error", "server_overloaded", "engine_overloaded", "model_overloaded",
     "rate_limit", "rate_limit_error", "rate_limited", "rate_limit_exceeded", "too_many_requests", "slow_down",
     "resource_exhausted", "throttlingexception", "api_error", "server_error", "internal", "internal_error",
     "internal_server_error", "internalservererror", "engine_error", "upstream_error", "bad_gateway", "unavailable",
     "service_unavailable", "service_unavailable_error", "gateway_timeout", "timeout", "timeout_error"]
)  # fmt: skip
_FINAL: Final = frozenset(["insufficient_quota", "quota_exceeded", "billing_error", "billing_hard_limit_reached"])


class ResponseCancelled(ResponseFailed):
    """Somebody cancelled the answer."""

    code = "response_cancelled"


class ResponseIncomplete(ProviderError):
    """The model was stopped before its end; ``partial`` is what it had said.

    Attributes:
        reason: ``"length"`` (a limit of tokens), ``"content_filter"``, or the provider's own word.
    """

    code = "response_incomplete"

    def __init__(self, message: str, *, reason: str, partial: ChatResult | None = None, **detail: object) -> None:
        super().__init__(message, partial=partial, **detail)
        self.reason = reason


def failed(error: object) -> ResponseFailed:
    """The failure that a provider's error value, of whatever form, stands for."""
    message, facts = _facts(error)
    return ResponseFailed(message or "The provider gave no reason for its failure.", **facts)


def confessed(value: object) -> ResponseFailed | None:
    """The failure that a JSON value tells of, wherever providers put their words; None when it tells of none."""
    if isinstance(value, list):
        return next((failure for each in value if (failure := confessed(each))), None)
    if not isinstance(value, dict):
        return None
    if value.get("error") or (isinstance(value.get("errors"), list) and value["errors"]):
        return failed(value)
    if value.get("type") == "error" or value.get("object") == "error":
        return failed({**value, "type": None} if value.get("type") == "error" else value)
    words = (value.get(name) for name in _WORDS)
    if "choices" not in value and "type" not in value and any(isinstance(each, str) and each for each in words):
        return failed(value)
    return None


def refused(response: httpx2.Response) -> LegatoError:
    """The error for an answer (body read) with an error status, in a form that ``retrying`` can judge.

    That is an ``APIError``, or at once a ``ProviderRefused`` when the provider says that trying again is of
    no use, as OpenAI does of a quota that is used up, although its status is 429.
    """
    error = _refusal(response)
    return provider_error(error) if response.headers.get("x-should-retry") == "false" else error


def answered(call: HttpCall[JsonObject], response: httpx2.Response) -> JsonObject:
    """The JSON object of an answer (body read) with a good status; a failure may be confessed in it all the same.

    Raises:
        ResponseFailed: it tells of one, in a list.
        ResponseInvalid: it is no JSON object.
    """
    try:
        raw = loose(response.content)
    except ValueError:
        return answer(call, response)  # which says what is wrong
    if isinstance(raw, list) and (failure := confessed(raw)):
        raise failure
    return raw if isinstance(raw, dict) else answer(call, response)


def too_busy(raw: JsonObject) -> ResponseFailed | None:
    """The failure that may pass, if that is all that an answer with a good status tells of."""
    failure = None if raw.keys() & _ANSWERS else confessed(raw)
    return failure if failure is not None and failure.passing else None


_ANSWERS: Final = frozenset(["choices", "content", "output", "status"])
"""Fields of an answer, or of a response that failed and is kept so."""
_DELAY: Final = re.compile(rb'"retryDelay"\s*:\s*"(\d{1,9}(?:\.\d{1,9})?)s"')
"""How Google says when to ask again (``google.rpc.RetryInfo``)."""


def _refusal(response: httpx2.Response) -> APIError:
    error = refusal(response)
    if error.retry_after is None and (delay := _DELAY.search(response.content)):
        error.retry_after = float(delay[1])
    try:
        error.retry_after = float(response.headers["retry-after-ms"]) / 1000
    except (KeyError, ValueError):
        pass
    try:
        message, facts = _facts(loose(response.content))
    except ValueError:
        return error
    error.message = message or error.message
    error.code = facts["code"] or facts["type"] or f"http_{error.status_code}"
    error.detail = {"type": facts["type"], "param": facts["param"]}
    return error


def provider_error(error: LegatoError) -> ProviderError:
    """The provider's error for one of a request's."""
    if isinstance(error, ProviderError):
        return error
    if isinstance(error, ConnectionFailed):
        return ProviderUnreachable(error.message)
    if isinstance(error, ConnectionLost):
        return StreamInterrupted(error.message, silent=bool(error.detail.get("silent")))
    if isinstance(error, APIError):
        return ProviderRefused(
            error.message,
            status_code=error.status_code,
            code=error.code,
            retry_after=error.retry_after,
            body=error.body,
            headers=error.headers,
            **error.detail,
        )
    return StreamMalformed(error.message, **error.detail)


class _Reason(TypedDict):
    code: str | None
    type: str | None
    param: str | None


def _facts(error: object) -> tuple[str, _Reason]:
    """Message, code, type and param of an error value: providers nest it, flatten it, or give a mere text."""
    while isinstance(error, list) or (isinstance(error, dict) and isinstance(error.get("errors"), list)):
        several = error if isinstance(error, list) else error["errors"]
        error = several[0] if several else None
    if isinstance(error, dict) and error.get("error"):
        outer, error = error, error["error"]
        if isinstance(error, dict):
            error = {"message": outer.get("message"), **error}
    facts: dict[str, Any] = error if isinstance(error, dict) else {"message": error}
    message = next((facts[name] for name in _WORDS if facts.get(name)), "")
    code = _word(facts.get("code")) or _word(facts.get("error_code"))
    # Google's class of an error is its status: RESOURCE_EXHAUSTED.
    kind = _word(facts.get("type")) or (facts["status"] if isinstance(facts.get("status"), str) else None)
    return whole(str(message)), _Reason(code=code, type=kind, param=_word(facts.get("param")))


_WORDS: Final = ("message", "detail", "msg", "error_msg", "error_message")
"""Where providers put what went wrong."""


def _word(value: object) -> str | None:
    return None if value is None else whole(str(value))
