"""How long a plain request waits, and for how long it is tried."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import stamina

from client_faces import use
from fake_server import Reply, Request, error_reply, json_reply
from legato.client import APIError, BackoffStrategy, RetryConfig
from legato.client.call import refusal
from legato.client.resume import MAX_RETRY_AFTER

HEALTH = {"status": "ok"}


class Clock:
    """Time that passes only by sleeping."""

    def __init__(self) -> None:
        self.now = 0.0
        self.waits: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    """stamina on that clock, and with the middle roll of its dice."""
    clock = Clock()
    monkeypatch.setattr("time.sleep", clock.sleep)
    monkeypatch.setattr("time.monotonic", lambda: clock.now)
    monkeypatch.setattr("random.uniform", lambda low, high: (low + high) / 2)
    stamina.instrumentation.set_on_retry_hooks([])
    yield clock
    stamina.instrumentation.set_on_retry_hooks(None)


def config(initial: int = 500, most: int = 60_000, exponent: float = 1.5, elapsed: int = 600_000) -> RetryConfig:
    return RetryConfig("backoff", BackoffStrategy(initial, most, exponent, elapsed), True)


def health(replies: list[Reply], **options: Any) -> Any:
    left = iter(replies)

    def server(_: Request) -> Reply:
        return next(left, replies[-1])

    return use("sync", server, lambda c: c.system.get_health(**options))


def test_waits_are_as_documented(clock: Clock) -> None:
    """The initial interval times the exponent to the n-th, and up to a second at random."""
    health([Reply(500), Reply(502), Reply(408), Reply(425), json_reply(HEALTH)], retries=config())

    assert [0.5 + 0.5, 0.75 + 0.5, 1.125 + 0.5, 1.6875 + 0.5] == clock.waits


def test_waits_have_a_maximum(clock: Clock) -> None:
    """No wait is longer than the maximum interval."""
    health([*[Reply(500)] * 5, json_reply(HEALTH)], retries=config(most=2000))

    assert 2.0 == max(clock.waits)


def test_retry_after_is_honoured(clock: Clock) -> None:
    """The server knows better when it will be back."""
    health([error_reply(503, "draining", **{"retry-after": "7"}), json_reply(HEALTH)])

    assert [7.0] == clock.waits


@pytest.mark.parametrize("asked", ["86400", "Fri, 31 Dec 2199 23:59:59 GMT"])
def test_retry_after_is_bounded(clock: Clock, asked: str) -> None:
    """A number or a date, but nobody waits for a day."""
    health([Reply(429, b"", {"retry-after": asked}), json_reply(HEALTH)], retries=config())

    assert [MAX_RETRY_AFTER] == clock.waits


@pytest.mark.parametrize("asked", ["0", "-5", "soon", "nan", "inf", "Fri, 31 Dec 1999 23:59:59 GMT", "1999-12-31"])
def test_a_senseless_retry_after_is_none(clock: Clock, asked: str) -> None:
    """Then the backoff counts."""
    health([Reply(503, b"", {"retry-after": asked}), json_reply(HEALTH)], retries=config())

    assert [1.0] == clock.waits


def test_it_ends_after_the_maximum_elapsed_time(clock: Clock) -> None:
    """The last answer is raised; no attempt begins after the time is over."""
    with pytest.raises(APIError):
        health([Reply(500)], retries=config(initial=1000, exponent=1.0, elapsed=4000))

    assert [1.5, 1.5, 1.5] == clock.waits


@pytest.mark.parametrize(
    "retries",
    [None, RetryConfig("none", BackoffStrategy(1, 1, 1, 1000), True), config(elapsed=0)],
)
def test_retries_can_be_turned_off(clock: Clock, retries: RetryConfig | None) -> None:
    """None, another strategy, or no time for it."""
    with pytest.raises(APIError):
        health([Reply(500), json_reply(HEALTH)], retries=retries)

    assert [] == clock.waits


def test_refusal_reads_the_documented_body() -> None:
    """Every part of it is at hand."""
    import httpx2

    response = httpx2.Response(
        409,
        json={"error": {"code": 409, "message": "m", "type": "bad_request", "reason": "queue_full"}},
        request=httpx2.Request("GET", "http://test/x"),
    )
    error = refusal(response)

    assert ("queue_full", 409, "m") == (error.code, error.status_code, error.message)
