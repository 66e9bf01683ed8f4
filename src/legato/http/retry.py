"""When a plain request is repeated. The rules are here; stamina does the waiting, in both worlds.

The opening of a stream follows the same rules; how long one waits that was open is ``backoff``.

The one rule: what the server may have carried out is repeated only if carrying it out twice does no harm.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Final, Protocol

from .backoff import MAX_RETRY_AFTER
from .errors import APIError, ClientError, ConnectionFailed
from .packages import stamina

__all__ = ["DEFAULT_RETRIES", "UNSET", "Attempts", "BackoffStrategy", "RetryConfig", "Unset", "retrying"]


# stamina logs each retry as a warning, which a program without a logging setup would show on its terminal as the bare
# words "stamina.retry_scheduled". Programs with one still get it.
logging.getLogger("stamina").addHandler(logging.NullHandler())


class Unset(Enum):
    """The type of ``UNSET``."""

    UNSET = "UNSET"


UNSET: Final = Unset.UNSET
"""The default is to be used, where None means something else."""


@dataclass(frozen=True, slots=True)
class BackoffStrategy:
    """How long to wait: ``initial * exponent ** n`` plus up to a second at random, at most ``max_interval``.

    Attributes:
        initial_interval: milliseconds.
        max_interval: milliseconds.
        exponent: growth from one attempt to the next.
        max_elapsed_time: milliseconds since the first attempt after which no further one is begun.
    """

    initial_interval: int
    max_interval: int
    exponent: float
    max_elapsed_time: int


@dataclass(frozen=True, slots=True)
class RetryConfig:
    """Whether and how failed requests are repeated.

    Repeated are the statuses 408, 425, 429 and 5XX, whatever somebody between here and the server answers in its place
    and, if wanted, connection errors. A ``Retry-After`` is honoured, up to a minute.

    Attributes:
        strategy: ``"backoff"``; ``"none"`` turns it off, as ``retries=None`` does.
        backoff: the waiting times.
        retry_connection_errors: whether a server that cannot be reached, or is lost, is tried again.
    """

    strategy: str
    backoff: BackoffStrategy
    retry_connection_errors: bool


# Long enough for a restart of the server; the ten minutes that others take look like a hang.
DEFAULT_RETRIES: Final = RetryConfig("backoff", BackoffStrategy(500, 10_000, 1.5, 60_000), True)
"""What a client does when nothing else is said: it tries for a minute."""


class Attempts(Protocol):
    """The attempts of one request: iterate over them (``for`` or ``async for``) and try within each."""

    def __iter__(self) -> Iterator[stamina.Attempt]: ...

    def __aiter__(self) -> AsyncIterator[stamina.Attempt]: ...


def retrying(config: RetryConfig | None, *, repeatable: bool, patient: bool = True) -> Attempts:
    """The attempts that a request gets.

    Args:
        config: None tries once.
        repeatable: whether being carried out twice does no harm. If not, only what was certainly not carried out is
            tried again.
        patient: whether a server that asks for more time than there is, is asked again after ``MAX_RETRY_AFTER``; else
            such an answer is final, and any other wait is as long as the server wants.
    """
    if config is None or config.strategy != "backoff":
        return stamina.retry_context(on=_never, attempts=1, timeout=None)
    backoff = config.backoff
    until = math.inf if patient else time.monotonic() + backoff.max_elapsed_time / 1000
    return stamina.retry_context(
        on=lambda error: _again(error, config, repeatable, until),
        attempts=None if backoff.max_elapsed_time > 0 else 1,
        timeout=backoff.max_elapsed_time / 1000 or None,
        wait_initial=backoff.initial_interval / 1000,
        wait_max=backoff.max_interval / 1000,
        wait_exp_base=backoff.exponent,
        wait_jitter=1.0,
    )


def _never(error: Exception) -> bool:
    return False


def _again(error: Exception, config: RetryConfig, repeatable: bool, until: float) -> bool | float:
    """Whether to try again; a float says after how many seconds. ``until`` is when there is no more time."""
    if not isinstance(error, ClientError) or not error.passing:
        return False
    if isinstance(error, ConnectionFailed):
        return config.retry_connection_errors
    if not isinstance(error, APIError):
        return config.retry_connection_errors and repeatable
    refused = error.status_code == 429 or error.code == "draining"
    if not (repeatable or refused):
        return False
    # "Retry-After: 0" and none at all are the same here: a pause never harms.
    if not error.retry_after:
        return True
    if until == math.inf:
        return min(error.retry_after, MAX_RETRY_AFTER)
    return error.retry_after if time.monotonic() + error.retry_after <= until else False
