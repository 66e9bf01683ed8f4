"""What was said before, as a client tells it again: items of a conversation as messages of Legato."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import groupby

import msgspec

from ..event import MessageCreated
from ..items import Item, arguments_of, id_of, is_call, is_output, is_said, is_system, output_of, spelled_out, text_of
from ..part import CallPart, Part, RefusalPart, TextPart, ThinkingPart


def earlier(items: Iterable[Item]) -> list[MessageCreated]:
    """What was said before, as messages without ids."""
    return _Earlier(spelled_out(items)).messages()


class _Earlier:
    """What was said before, as messages, in the order in which it stands there.

    What came of a call stands with the call, also where something else came in between.
    """

    def __init__(self, items: Iterable[Item]) -> None:
        self._messages: list[MessageCreated | _Turn] = []
        self._open: dict[str, list[_Calls]] = {}  # by id, those of each step
        self._answered: dict[str, _Calls] = {}  # by id: of which something came last
        self._held: list[Item] = []  # instructions that stand before what comes next
        for item in items:
            if is_output(item):
                self._answer(item)
            elif is_said(item):
                self._say(item)
            elif is_system(item):
                self._held.append(item)
            elif item.get("role") == "user":
                self._ask(item)

    def messages(self) -> list[MessageCreated]:
        """All of them, without ids."""
        return [each.message() if isinstance(each, _Turn) else each for each in self._messages]

    def _ask(self, *items: Item) -> None:
        given, self._held = [*self._held, *items], []
        text = "\n\n".join(text for item in items if (text := text_of(item.get("content", item.get("output")))))
        plain = len(given) == 1 and given[0].get("role") == "user" and isinstance(given[0].get("content"), str)
        self._messages.append(MessageCreated("", "user", text, metadata=None if plain else {"input": given}))

    def _say(self, item: Item) -> None:
        if self._held:
            self._ask()
        last = self._messages[-1] if self._messages else None
        if not isinstance(last, _Turn) or not last.goes_on(item):
            last = _Turn()
            self._messages.append(last)
        if (call := last.say(item)) is not None:
            steps = self._open.setdefault(call.id, [])
            if not steps or (steps[-1].turn, steps[-1].step) != (last, call.step):
                steps.append(_Calls(last, call.step))
            steps[-1].open.append(len(last.parts) - 1)

    def _answer(self, item: Item) -> None:
        # Some count their calls anew in each step: it is of the newest, and there of the first that is open.
        id = id_of(item)
        if steps := self._open.get(id):
            calls = self._answered[id] = steps[-1]
            calls.last = calls.open.popleft()
            if not calls.open:
                steps.pop()
        elif id not in self._answered:
            self._ask(item)  # of a call that nobody knows: its words are said all the same
            return
        calls = self._answered[id]  # one that is repeated counts
        calls.turn.answer(calls.last, output_of(item), success=item.get("success") is not False)


class _Turn:
    """A message of the assistant: what it said between two messages of the user, in one step or in several."""

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self.step = 1
        self._answered = False  # something has come of the calls of this step
        self._thoughts: list[str] = []  # which belong to what is said next

    def goes_on(self, item: Item) -> bool:
        """Whether ``item`` belongs to this message: two messages without a call between them are two."""
        return not (item.get("role") == "assistant" and self.parts and self._is_plain())

    def _is_plain(self) -> bool:
        return not any(isinstance(part, CallPart) and part.step == self.step for part in self.parts)

    def say(self, item: Item) -> CallPart | None:
        """Add an item of the assistant's; the call, if it is one."""
        call = is_call(item)
        if item.get("type") == "reasoning":
            self._thoughts += [text for _, text in _said(item.get("summary") or item.get("content"))]
            return None
        if not call and item.get("role") != "assistant":
            return None
        if self.parts and (self._answered or not (call or self._is_plain())):
            self.step, self._answered = self.step + 1, False
        self._think()
        if not call:
            self.parts += [kind(self.step, text) for kind, text in _said(item.get("content"))]
            return None
        by = item.get("by")
        made = CallPart(
            self.step,
            id_of(item),
            str(item.get("name") or ""),
            arguments_of(item),
            by=by if isinstance(by, str) else None,
        )
        self.parts.append(made)
        return made

    def _think(self) -> None:
        self.parts += [ThinkingPart(self.step, text) for text in self._thoughts]
        self._thoughts.clear()

    def answer(self, place: int, output: object, *, success: bool) -> None:
        """Add what came of the call at ``place``."""
        call = self.parts[place]
        assert isinstance(call, CallPart)
        self.parts[place] = msgspec.structs.replace(call, output=output, success=success)
        self._answered = self._answered or call.step == self.step

    def message(self) -> MessageCreated:
        """All of it as one message."""
        self._think()
        last = [part for part in self.parts if isinstance(part, TextPart | RefusalPart)]
        text = "".join(part.text for part in last if part.step == last[-1].step)
        return MessageCreated("", "assistant", text, self.parts or None)


class _Calls:
    """The calls of one id in one step: those of which nothing has come, and that of which something came last."""

    def __init__(self, turn: _Turn, step: int) -> None:
        self.turn, self.step, self.last = turn, step, 0
        self.open: deque[int] = deque()


_SAID_IN: dict[str, type[TextPart | RefusalPart]] = {"text": TextPart, "refusal": RefusalPart}


def _said(content: object) -> Iterator[tuple[type[TextPart | RefusalPart], str]]:
    """What the assistant said, as kinds of parts with their texts; neighbours of one kind are one."""
    parts = [{"text": content}] if isinstance(content, str) else content if isinstance(content, list) else []
    said = [
        (kind, part[field])
        for part in parts
        if isinstance(part, dict)
        for field, kind in _SAID_IN.items()
        if isinstance(part.get(field), str)
    ]
    for kind, group in groupby(said, key=lambda each: each[0]):
        if text := "".join(text for _, text in group):
            yield kind, text
