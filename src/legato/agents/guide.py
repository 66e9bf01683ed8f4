"""The guide: the agent that answers when nobody has given ``legato serve`` another one.

It needs no key and no model. It searches a folder of documents, Legato's own or the one it was given, and quotes what
it finds. It says so: an answer of the guide is never to be taken for that of a language model.

The one rule: the same question and the same documents give the same events. So a run whose process died goes on in
the middle of its sentence (``on_crash="resume"``): the answer is made again, and what the log already has is skipped.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path

from ..agent import Agent, Turn
from ..errors import AgentError, InvalidInput
from ..event import AnyFact, CallCompleted, CallDelta, CallStarted, Delta, Event, ToolBegun, ToolCompleted
from ..json import JsonObject
from ..recorder import Recorder
from ..transcript import fold
from ..yields import Thinking, ToolArguments, ToolCall, ToolResult, ToolStarted, Yielded
from .library import Hit, Library, Passage, load_apsw, terms

MAX_WORDS = 20_000
"""What ``/long`` can be asked for."""
QUOTED = 4
"""Passages in an answer at most."""
QUOTED_CHARACTERS = 2_000
"""With this much quoted, no further passage is added."""

_ALIVE_EVERY = 32
"""Without a pace, the loop gets a turn after this many deltas, so that a cancel can arrive."""


def guide(docs: Path | None = None, *, pace: float = 40.0, name: str = "guide") -> Agent:
    """An agent that answers from documents, by full-text search.

    Args:
        docs: a folder of Markdown, ``.txt`` and ``.rst`` files, read once, at the first question; None for Legato's
            own documentation.
        pace: deltas per second; 0 for as fast as possible.
        name: of the agent.

    Raises:
        InvalidInput: ``docs`` is no folder, Legato's documentation is not there, or ``pace`` is negative.
        ImportError: apsw is missing.
    """
    load_apsw()  # now rather than in the middle of the first answer
    if not pace >= 0:
        raise InvalidInput(f"pace is a number of deltas per second, or 0 for no limit; got {pace!r}.")
    library = Library(own_documents() if docs is None else Path(docs))

    async def answer(turn: Turn) -> AsyncGenerator[Yielded, None]:
        """Answers from documentation: a full-text search, not a language model."""
        wait = _pacer(pace)
        said = _Repetition(turn.run, turn.events) if turn.events else None
        async with contextlib.aclosing(_reply(turn, library)) as items:
            async for item in items:
                for rest in [item] if said is None else said.skip(item):
                    if isinstance(rest, str | Thinking | ToolArguments):
                        await wait()
                    yield rest

    return Agent(answer, name=name, on_crash="resume")


def own_documents() -> Path:
    """The folder of Legato's own documentation: in the installed package, or in the checkout it runs from.

    Raises:
        InvalidInput: it is in neither place.
    """
    for parent in (Path(__file__).parents[1], Path(__file__).parents[3]):
        folder = parent / "docs"
        if (folder / "getting-started.md").is_file():
            return folder
    raise InvalidInput("Legato's documentation is not installed with it; give the guide a folder of documents instead.")


# Answers --------------------------------------------------------------------------------------------------------------

_GREETINGS = re.compile(
    r"(hi|hello|hey|hallo|hola|salut|ciao|moin|servus|greetings|thanks|thank you|danke|merci|yo|ping|test"
    r"|good (morning|evening|afternoon|day)|guten (morgen|tag|abend)|你好|こんにちは|안녕하세요|привет)"
    r"( there| you| guide)?"
)
_HELP = frozenset({"help", "/help", "?", "/?", "/"})

_WHO = "This is Legato's built-in guide: a search over documentation, not a language model."
_PLUG_IN = "To put your own agent here, run `legato serve my_agent.py`."
_COMMANDS = """\
- `/permission` asks you for permission, and tells what you answered
- `/notify` shows a notification with choices, and tells what you chose
- `/tools` makes two tool calls at the same time
- `/long N` writes N numbered words (200 if you give no number), so that you can cut the line and see nothing is lost
- `/fail` fails on purpose, in the middle of its answer
"""


async def _reply(turn: Turn, library: Library) -> AsyncGenerator[Yielded, None]:
    question = turn.message.text.strip()
    command, _, argument = question.partition(" ")
    plain = " ".join(re.findall(r"\w+", question[:80].casefold()))
    if question.casefold() in _HELP:
        items = _help(library)
    elif command.lower() in _DEMONSTRATIONS:
        items = _DEMONSTRATIONS[command.lower()](turn, library, argument.strip())
    elif re.fullmatch(r"/[a-z]+", question):
        items = _say(f"There is no command `{question[:40]}`. There are:\n\n{_COMMANDS}")
    elif _GREETINGS.fullmatch(plain):
        items = _greeting(turn, library)
    else:
        items = _search(turn, library, question)
    async for item in items:
        yield item


async def _say(text: str) -> AsyncIterator[Yielded]:
    for piece in pieces(text):
        yield piece


async def _think(text: str) -> AsyncIterator[Yielded]:
    for piece in pieces(text):
        yield Thinking(piece)


_PIECE = re.compile(r"\s+\S{1,7}|\S{1,5}|\s+")


def pieces(text: str) -> list[str]:
    """``text`` in pieces of about a short word, as models stream theirs; joined they are ``text`` again."""
    return _PIECE.findall(text)


def _introduction(turn: Turn) -> str:
    return "*A search of the documentation, not a model:*\n\n" if turn.history else f"*{_WHO} {_PLUG_IN}*\n\n"


async def _topics(library: Library) -> str:
    titles = await asyncio.to_thread(library.titles)
    if not titles:
        return "There are no documents here to search (Markdown, .txt and .rst files are read)."
    listed = [f"- {title} (`{file}`)" for file, title in titles.items()]
    rest = [f"- and {len(listed) - 12} more"] if len(listed) > 12 else []
    return "The documents here are:\n\n" + "\n".join([*listed[:12], *rest])


async def _help(library: Library) -> AsyncIterator[Yielded]:
    text = f"{_WHO} {_PLUG_IN}\n\nAsk a question in a few words. To try what Legato carries:\n\n{_COMMANDS}\n"
    async for item in _say(text + await _topics(library)):
        yield item


async def _greeting(turn: Turn, library: Library) -> AsyncIterator[Yielded]:
    about = "Hello again." if turn.history else f"Hello. {_WHO} {_PLUG_IN}"
    async for item in _say(f"{about} Ask a question in a few words, or `help`.\n\n{await _topics(library)}"):
        yield item


async def _search(turn: Turn, library: Library, question: str) -> AsyncIterator[Yielded]:
    words = terms(question)
    if not words:
        text = "I found no word in this that could be searched for. " + await _topics(library)
        async for item in _say(_introduction(turn) + text):
            yield item
        return
    listed = ", ".join(words)
    async for item in _think(f"I will search the documentation for: {listed}."):
        yield item
    yield ToolCall("search_1", "SearchDocs", by="server")
    for piece in pieces(json.dumps({"query": " ".join(words), "limit": QUOTED}, ensure_ascii=False)):
        yield ToolArguments("search_1", piece)
    yield ToolStarted("search_1", progress=f"Searching {library.folder.name} for {listed}")
    found = await asyncio.to_thread(library.search, words)
    chosen, others = _choose(found.hits)
    yield ToolResult("search_1", output=[_described(hit) for hit in chosen], progress=_found(chosen))
    text = _quotations(chosen, others) if chosen else await _nothing(library, words)
    if found.near:
        text = f"No passage holds {_listed(words)}. These hold words that begin alike:\n\n{text}"
    async for item in _say(_introduction(turn) + text):
        yield item


def _choose(hits: list[Hit]) -> tuple[list[Hit], list[Hit]]:
    """The hits to quote, and the rest. Far below the best one, a hit has matched by a common word only."""
    chosen: list[Hit] = []
    for hit in hits:
        length = sum(len(other.passage.text) for other in chosen)
        if len(chosen) == QUOTED or length > QUOTED_CHARACTERS or hit.score < 0.4 * hits[0].score:
            break
        chosen.append(hit)
    return chosen, hits[len(chosen) :]


def _described(hit: Hit) -> JsonObject:
    found = hit.passage
    return {"file": found.file, "heading": found.heading, "passage": found.text, "score": hit.score}


def _listed(words: list[str]) -> str:
    return ", ".join(f"`{word}`" for word in words)


def _found(chosen: list[Hit]) -> str:
    if not chosen:
        return "Found nothing"
    files = len({hit.passage.file for hit in chosen})
    return f"Found {len(chosen)} passage{'s' * (len(chosen) > 1)} in {files} file{'s' * (files > 1)}"


def _quotations(chosen: list[Hit], others: list[Hit]) -> str:
    sections: dict[tuple[str, str], list[Passage]] = {}  # in the order of the best passage of each
    for hit in chosen:
        sections.setdefault((hit.passage.heading, hit.passage.file), []).append(hit.passage)
    quoted = []
    for (heading, file), passages in sections.items():
        quoted.append(f"**{heading}** (`{file}`)\n\n")
        quoted += [f"{_block_quote(passage.text)}\n\n" for passage in sorted(passages)]
    further = dict.fromkeys(hit.passage.heading for hit in others)
    near = [f"*{heading.rstrip('.')}*" for heading in further if all(heading != shown for shown, _ in sections)][:3]
    if near:
        return "".join(quoted) + "Near to it: " + "; ".join(near) + "."
    return "".join(quoted) + "That is all I found. Ask again with other words, or `help`."


def _block_quote(text: str) -> str:
    return "\n".join(f"> {line}" if line else ">" for line in text.split("\n"))


async def _nothing(library: Library, words: list[str]) -> str:
    return f"Nothing found for {_listed(words)}. {await _topics(library)}"


# Demonstrations -------------------------------------------------------------------------------------------------------


async def _permission(turn: Turn, library: Library, argument: str) -> AsyncIterator[Yielded]:
    yield ToolCall("write_1", "PretendToWrite", json.dumps({"path": "notes.txt"}), by="server")
    question = "May the guide pretend to write notes.txt? Nothing is written either way."
    granted = await turn.ask_permission("PretendToWrite", question, action="write", path="notes.txt")
    if granted:
        yield ToolStarted("write_1", progress="Pretending to write notes.txt")
        yield ToolResult("write_1", output="Pretended to write notes.txt.", progress="Done")
    else:
        yield ToolResult("write_1", output="Not permitted.", success=False, progress="Not permitted")
    said = "Permission was granted" if granted else "Permission was denied, or nobody answered in time"
    async for item in _say(f"{said}. The answer stands in the session's log, and the first one counts."):
        yield item


async def _notify(turn: Turn, library: Library, argument: str) -> AsyncIterator[Yielded]:
    async for item in _say("I will wait for your choice.\n\n"):
        yield item
    answer = await turn.notify(
        "A question from the guide",
        "Which note comes next?",
        kind="question",
        response="choice",
        choices=["do", "re", "mi"],
        wait=True,
    )
    chosen = answer.value if answer is not None and answer.by == "user" else None
    async for item in _say(f"You chose *{chosen}*." if chosen else "Nobody chose in time."):
        yield item


async def _long(turn: Turn, library: Library, argument: str) -> AsyncIterator[Yielded]:
    if argument and not re.fullmatch(r"[0-9]{1,9}", argument):
        raise AgentError("/long takes a number of words, for example /long 500.", code="bad_command")
    for number in range(1, min(int(argument or 200), MAX_WORDS) + 1):
        yield f"note-{number}" + ("\n" if number % 10 == 0 else " ")


async def _fail(turn: Turn, library: Library, argument: str) -> AsyncIterator[Yielded]:
    async for item in _say(
        "The next thing that happens is the failure you asked for. What was said before it is kept."
    ):
        yield item
    raise AgentError("This failure was asked for with /fail.", code="asked_to_fail")


async def _tools(turn: Turn, library: Library, argument: str) -> AsyncIterator[Yielded]:
    async for item in _think("Two things to find out. They do not depend on each other, so I call both tools at once."):
        yield item
    yield ToolCall("list_1", "ListDocs", by="server")
    yield ToolCall("count_2", "CountWords", by="server")
    for number, piece in enumerate(pieces('{"folder": "documents"}')):
        yield ToolArguments("list_1", piece)
        yield ToolArguments("count_2", '{"unit": "word"}' if number == 0 else "")
    yield ToolStarted("list_1", progress="Listing the documents")
    yield ToolStarted("count_2", progress="Counting their words")
    passages = await asyncio.to_thread(library.passages)
    words = sum(len(passage.text.split()) for passage in passages)
    files = list(dict.fromkeys(passage.file for passage in passages))
    yield ToolResult("count_2", output={"words": words}, progress=f"{words} words")
    yield ToolResult("list_1", output=files[:100], progress=f"{len(files)} documents")
    async for item in _say(f"There are {len(files)} documents here, with {words} words in them."):
        yield item


_DEMONSTRATIONS: dict[str, Callable[[Turn, Library, str], AsyncIterator[Yielded]]] = {
    "/permission": _permission,
    "/notify": _notify,
    "/long": _long,
    "/fail": _fail,
    "/tools": _tools,
}


# Pace and resumption --------------------------------------------------------------------------------------------------


def _pacer(pace: float) -> Callable[[], Awaitable[None]]:
    """What to await before each delta."""
    count = 0

    async def breathe() -> None:
        nonlocal count
        count += 1
        if count % _ALIVE_EVERY == 0:
            await asyncio.sleep(0)

    loop = asyncio.get_running_loop()
    due = loop.time()

    async def keep_time() -> None:
        nonlocal due
        # Against a schedule, so that the time spent elsewhere does not add up. After a long wait (for an answer, for
        # a slow store) the schedule begins anew: the backlog is not to come in one burst.
        due = max(due + 1 / pace, loop.time() - 0.25)
        await asyncio.sleep(max(due - loop.time(), 0))

    return keep_time if pace > 0 else breathe


class _Repetition:
    """What earlier attempts have stored of an answer that is now made again.

    A call's events are stored together with the item that made them, so an item of a call is there whole or not at
    all; text is there up to some character.
    """

    def __init__(self, run: str, events: Iterable[Event]) -> None:
        events = list(events)
        self._texts = [part.text for part in fold(events).parts]
        self._done = {_of_call(event.fact) for event in events} - {None}
        self._recorder = Recorder(run)  # tells where each item would stand

    def skip(self, item: Yielded) -> list[Yielded]:
        """What of ``item`` has not been stored: all, the rest of its text, or nothing."""
        drafts = self._recorder.record(item)
        if not isinstance(item, str | Thinking | ToolArguments):
            return [item] if not drafts or _of_call(drafts[-1].fact) not in self._done else []
        if not drafts:
            return []
        delta = drafts[0].fact
        assert isinstance(delta, Delta)
        have = self._texts[delta.part] if delta.part < len(self._texts) else ""
        text = delta.arguments if isinstance(delta, CallDelta) else delta.text
        known, rest = have[delta.start : delta.start + len(text)], text[max(len(have) - delta.start, 0) :]
        if not text.startswith(known):
            raise AgentError("The documents have changed while the answer was being given. Ask again.", code="changed")
        if not rest:
            return []
        if isinstance(item, ToolArguments):
            return [ToolArguments(item.id, rest)]
        return [Thinking(rest)] if isinstance(item, Thinking) else [rest]


def _of_call(fact: AnyFact) -> tuple[str, str] | None:
    """What identifies a fact that is about a call, and is no piece of its arguments."""
    match fact:
        case CallStarted() | CallCompleted() | ToolBegun() | ToolCompleted():
            return fact.type, fact.id
    return None
