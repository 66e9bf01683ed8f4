"""What dialects have in common: types of fields, times, keys, and the form of an error where one has no other."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from ..check import digits
from ..errors import CursorInvalid, InvalidInput, LegatoError
from ..event import Offset
from ..json import JsonObject

T = TypeVar("T")

_BLANKS = r"\t-\r\x1c- \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
SPOKEN: JsonObject = {"minLength": 1, "not": {"pattern": f"^[{_BLANKS}]*$"}}
r"""For schemas, of text that is to be answered: something in it is no blank, by ``str.isspace``; each language has a
``\s`` of its own."""

Text = Annotated[str, Meta(max_length=1_000_000)]
Spoken = Annotated[str, Meta(extra_json_schema=SPOKEN)]
"""A message's text; how long it may be is for ``Limits.message_characters`` to say."""
Title = Annotated[str, Meta(max_length=1_000)]
# Without a dot in front, since clients resolve "/api/sessions/.." before they send it.
SESSION_PATTERN = "^[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}$"
SessionId = Annotated[str, Meta(pattern=SESSION_PATTERN)]
KEY_PATTERN = "^[!-~]{1,255}$"
OFFSET_MOST = 10**15 - 1
"""What a cursor or an offset that somebody gives may be at most: 15 digits."""

# Errors ---------------------------------------------------------------------------------------------------------------

ErrorType = Literal["bad_request", "not_found", "internal_error", "unauthorized", "validation_error"]


class ErrorDetail(msgspec.Struct, omit_defaults=True):
    """What went wrong: ``code`` is the HTTP status, ``reason`` the machine's word for it."""

    code: int
    message: str
    type: ErrorType
    reason: str = ""
    detail: JsonObject = {}


class ErrorBody(msgspec.Struct):
    """The body of every answer that is not a success."""

    error: ErrorDetail


_TYPES: dict[int, ErrorType] = {400: "bad_request", 401: "unauthorized", 404: "not_found", 413: "validation_error"}


def error_body(status: int, message: str, reason: str, detail: JsonObject | None = None) -> ErrorBody:
    """The body for an answer with ``status``."""
    kind = _TYPES.get(status, "internal_error" if status >= 500 else "bad_request")
    return ErrorBody(ErrorDetail(code=status, message=message, type=kind, reason=reason, detail=detail or {}))


def describe(error: LegatoError) -> ErrorBody:
    """The body for ``error``."""
    return error_body(error.status, error.message, error.code, error.detail)


# Fields -------------------------------------------------------------------------------------------------------------


def decode_json(raw: bytes, type: type[T]) -> T:
    """JSON as ``type``. A whole number may be written with a fraction (``1.0``), as JSON Schema has it. Of what is
    ``LARGE`` it may not: that is not read twice.

    Raises:
        msgspec.DecodeError, RecursionError, UnicodeDecodeError: it is no JSON, or does not fit (``ValidationError``).
    """
    try:
        return msgspec.json.decode(raw, type=type)
    except msgspec.ValidationError as exc:
        if not str(exc).startswith("Expected `int") or "got `float`" not in str(exc):
            raise
        try:
            return msgspec.convert(_whole.decode(raw), type)
        except msgspec.ValidationError:
            raise exc from None


def _number(text: str) -> int | float:
    number = float(text)
    return int(number) if number.is_integer() and abs(number) < 2**53 else number


_whole: msgspec.json.Decoder[Any] = msgspec.json.Decoder(float_hook=_number)
_FIRST, _LAST = -62_135_596_800.0, 253_402_300_799.0


def rfc3339(at: float, *, exact: bool = False) -> str:
    """``at``, seconds since the epoch, as UTC with milliseconds and Z; with microseconds if ``exact``.

    What lies outside of the years 1 to 9999, as in a damaged log, is the nearest moment within."""
    at = min(max(at, _FIRST), _LAST)
    precision = "microseconds" if exact else "milliseconds"
    return datetime.fromtimestamp(at, UTC).isoformat(timespec=precision).replace("+00:00", "Z")


_KEY = re.compile(r"[\x21-\x7e]{1,255}", re.ASCII)


def idempotency_key(text: str | None, name: str = "Idempotency-Key") -> str | None:
    """The key in an ``Idempotency-Key`` header, or in what else is called ``name``.

    Raises:
        InvalidInput: not 1 to 255 visible ASCII characters.
    """
    if text is None:
        return None
    if _KEY.fullmatch(text) is None:
        raise InvalidInput(f"{name} is 1 to 255 visible ASCII characters.")
    return text


def offset_cursor(text: str | None, name: str = "Last-Event-ID") -> Offset | None:
    """The cursor in a header, or in what else is called ``name``, of a dialect whose ids are offsets; None for none.

    Raises:
        CursorInvalid: not of that form.
    """
    if not text:
        return None
    cursor = digits(text)
    if cursor is None:
        raise CursorInvalid(f"{name} is a number such as '42', as it stood in the stream's ids; got {text[:60]!r}.")
    return cursor
