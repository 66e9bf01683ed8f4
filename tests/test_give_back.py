"""Memory that is free goes back to the system."""

from __future__ import annotations

from itertools import pairwise

import pytest

from legato.server import serve


async def given_back(monkeypatch: pytest.MonkeyPatch, *sizes: int) -> list[int]:
    """After how many looks at these sizes, in megabytes, memory was given back; the first look is that at the start."""
    monkeypatch.setattr(serve, "TRIM_EVERY", 0.0)
    left = list(sizes)
    given: list[int] = []

    def held() -> int:
        if not left:
            raise EOFError
        return left.pop(0) * 1_000_000

    with pytest.raises(EOFError):
        await serve.give_back(held, lambda pad: given.append(len(sizes) - len(left)))
    return given


async def test_it_is_given_back_when_there_may_be_much(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not for a little more than the least that there was, and again only once it has grown again."""
    assert await given_back(monkeypatch, 60, 80, 120, 110, 127) == []
    assert await given_back(monkeypatch, 60, 200, 90, 150, 100) == [2]  # 90: what is left of the 200
    assert await given_back(monkeypatch, 60, 200, 90, 300, 70, 140, 66) == [2, 4, 6]
    assert await given_back(monkeypatch, 200, 90, 150, 160, 80) == [4]


async def test_what_was_in_use_is_given_back_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is tried again, the more seldom the less it was of use; where there is as little as there was, it is not."""
    first = serve.TRIM_AGAIN[0]
    used = [990] * (7 * first + 2)
    given = await given_back(monkeypatch, 60, 1_000, *used)
    assert [later - before for before, later in pairwise(given)] == [first + 1, 2 * first + 1]
    assert await given_back(monkeypatch, 60, 1_000, *used[: first + 1], 80, *[100] * 9 * first) == [2, 2 + first + 1]


async def test_where_nothing_is_known_nothing_is_done() -> None:
    """Another system than Linux, or another C library than glibc."""
    await serve.give_back(lambda: 0, lambda pad: pytest.fail("there was nothing to give back"))
    assert serve.held() >= 0
