"""A row that only grows, and whose copies cost nothing: what a fold remembers is shared by its snapshots."""

from __future__ import annotations

from collections.abc import Iterator, MutableSequence
from itertools import islice
from typing import Generic, TypeVar

T = TypeVar("T")


class Trail(Generic[T]):
    """Things in order. Of all copies the one that goes on first keeps the common list; the others leave it.

    Args:
        items: what there is; the trail's own from now on.
    """

    __slots__ = ("_count", "_items")

    def __init__(self, items: MutableSequence[T], count: int | None = None) -> None:
        self._items = items
        self._count = len(items) if count is None else count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[T]:
        return islice(self._items, self._count)

    def __getitem__(self, place: int) -> T:
        if not 0 <= place < self._count:
            raise IndexError(place)
        return self._items[place]

    def append(self, item: T) -> None:
        """Go on with ``item``."""
        if self._count < len(self._items):
            self._items = self._items[: self._count]
        self._items.append(item)
        self._count += 1

    def copy(self) -> Trail[T]:
        """The same so far; from now on each goes its own way."""
        return Trail(self._items, self._count)
