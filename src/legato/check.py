"""Values that others give, checked where they give them.

A type annotation is a promise that nobody has to keep: a provider's ``null`` comes as a count of tokens. Each function
gives what a log can hold, or says what was expected, where, and what came. So what is stored is what the facts say it
is.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Sequence
from typing import Any, Final

from .errors import InvalidInput, TooLarge

ID_CHARACTERS = 512
"""Bound of an id that an agent gives; providers' have some 60."""
NAME_CHARACTERS = 256
"""Bound of a name: a tool's (64 at most providers), a model's, a finish reason."""
MOST_COUNT = 2**53 - 1
"""The greatest whole number that a browser tells from its neighbours."""
MOST_AMOUNT = 1e15
"""The greatest cost; sums of such are numbers, too."""
MOST_SECONDS = 1e9
"""What is to last for longer, 31 years, has no end."""

PORTS = {"http": 80, "https": 443}
"""Of an address that names none, by its scheme."""

DIGITS = 15
"""Of a number that others write as text: a float has all whole numbers of so many."""


def digits(text: str | None, *, most: int = DIGITS) -> int | None:
    """The whole number from 0 that ``text`` is, in a header, a query or an option; None if it is none.

    ASCII digits, at most ``most`` of them, and nothing else: ``int`` takes other scripts' digits, signs, blanks and
    ``_`` as well, and raises for thousands of digits, so that two who read one field would read two numbers.
    """
    if text is None or not (text.isascii() and text.isdigit() and len(text) <= most):
        return None
    return int(text)


def as_text(name: str, value: object, most: int | None = None) -> str:
    """``value`` as plain text, each lone surrogate replaced by U+FFFD, since UTF-8 has no place for it.

    Args:
        name: of what it is, for the error.
        value: a ``str``.
        most: characters that it may have.

    Raises:
        InvalidInput: no text.
        TooLarge: longer.
    """
    if not isinstance(value, str):
        raise refused(name, "text", value)
    text: str = value if type(value) is str else str.__str__(value)  # JSON is not made of subclasses
    if most is not None and len(text) > most:
        raise TooLarge(f"{name} of {len(text)} characters is beyond the limit of {most}.", limit=most)
    return whole(text)


def whole(text: str) -> str:
    """The text with its pairs of surrogates joined, and U+FFFD for each that is alone."""
    if text.isascii() or _HALF.search(text) is None:
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def is_text(text: str) -> bool:
    """Whether a database keeps it as it is: no NUL, at which some of their functions end a text, and no half of a
    surrogate pair."""
    if "\0" in text:
        return False
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False


def check_text(*texts: str | None) -> None:
    """Refuse what could only fail later, in a store's writer, and with it the requests of others.

    Raises:
        InvalidInput: one of them is not ``is_text``.
    """
    for text in texts:
        if text is not None and not is_text(text):
            raise InvalidInput(f"{text[:128]!r} holds a NUL or half of a surrogate pair, so it cannot be stored.")


_HALF: Final = re.compile("[\ud800-\udfff]")


class Halves:
    """Pieces of a text that may have been cut inside of a letter, as UTF-16 can be: its halves are joined again."""

    __slots__ = ("waiting",)

    def __init__(self) -> None:
        self.waiting = ""  # the first half of a letter

    def join(self, piece: str) -> str:
        """The piece behind what waited; a first half at its end waits for the next piece."""
        if not piece or (not self.waiting and piece.isascii()):
            return piece
        piece, self.waiting = self.waiting + piece, ""
        if "\ud800" <= piece[-1] <= "\udbff":
            piece, self.waiting = piece[:-1], piece[-1]
        return whole(piece)

    def end(self) -> str:
        """What still waits: U+FFFD for a half whose other never came."""
        piece, self.waiting = self.waiting, ""
        return whole(piece)


def as_id(name: str, value: object) -> str:
    """``value`` as an id, see ``as_text``."""
    return as_text(name, value, ID_CHARACTERS)


def as_name(name: str, value: object) -> str:
    """``value`` as a name, see ``as_text``."""
    return as_text(name, value, NAME_CHARACTERS)


def as_word(name: str, value: object, words: Sequence[str]) -> str:
    """``value``, which is one of ``words``.

    Raises:
        InvalidInput: it is none of them.
    """
    word = as_text(name, value)
    if word not in words:
        raise InvalidInput(f"{name} must be one of {', '.join(words)}, got {word[:60]!r}.", field=name)
    return word


def as_flag(name: str, value: object) -> bool:
    """``value``, which is True or False.

    Raises:
        InvalidInput: it is something else, also if that would count as one of them.
    """
    if not isinstance(value, bool):
        raise refused(name, "True or False", value)
    return value


def as_count(name: str, value: object) -> int:
    """``value`` as a whole number from 0; None, with which providers say that they do not know, is 0.

    Raises:
        InvalidInput: it is none, or beyond ``MOST_COUNT``. Text is no number.
    """
    number = 0.0 if value is None else _number(value)
    if number is None or not 0 <= number <= MOST_COUNT or not number.is_integer():
        raise refused(name, f"a whole number from 0 to {MOST_COUNT}", value)
    return int(number)


def as_amount(name: str, value: object) -> float:
    """``value`` as a number from 0; None is 0.

    Raises:
        InvalidInput: it is none, or beyond ``MOST_AMOUNT``. Text is no number.
    """
    number = 0.0 if value is None else _number(value)
    if number is None or not 0 <= number <= MOST_AMOUNT:
        raise refused(name, f"a number from 0 to {MOST_AMOUNT:g}", value)
    return number


def as_seconds(name: str, value: object) -> float | None:
    """``value`` as a time to wait; None for no end. What is negative is 0.

    Raises:
        InvalidInput: no number.
    """
    if value is None:
        return None
    number = _number(value)
    if number is None or math.isnan(number):
        raise refused(name, "a number of seconds, or None", value)
    return max(number, 0.0) if number <= MOST_SECONDS else None


def refused(name: str, expected: str, value: object) -> InvalidInput:
    """The error for a ``value`` of ``name`` that is not what was expected."""
    came = repr(value) if isinstance(value, bool | float) else type(value).__name__
    return InvalidInput(f"{name} must be {expected}, got {came}.", field=name)


def _number(value: Any) -> float | None:
    """``value`` as a number; None if it is none."""
    if isinstance(value, bool) or not (hasattr(type(value), "__float__") or hasattr(type(value), "__index__")):
        return None
    try:
        return float(value)
    except OverflowError:  # an integer beyond all floats
        return math.inf if operator.gt(value, 0) else -math.inf
    except Exception:  # somebody's own kind of number
        return None
