"""The guide without a server: what it yields, checked through the recorder that a runner would use."""

from __future__ import annotations

import asyncio
import builtins
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facts import draft, stored
from legato.agent import Agent, Answer, Turn
from legato.agents import library as library_module
from legato.agents.guide import guide, own_documents, pieces
from legato.agents.library import MAX_PASSAGE_CHARACTERS, MAX_TERMS, Library, terms
from legato.caller import NOBODY
from legato.errors import AgentError, InvalidInput
from legato.event import Event, NotificationCreated, PermissionRequested, TextDelta
from legato.log import Subscription
from legato.part import CallPart, Message
from legato.questions import Question
from legato.recorder import Recorder
from legato.run import Runner
from legato.sessions import Sessions
from legato.store.memory import MemoryStore
from legato.transcript import Transcript, fold
from legato.yields import Thinking, ToolArguments, ToolCall, ToolResult, ToolStarted

RIVERS = """\
# Rivers

Rivers carry water to the sea.

## The Danube

The Danube flows through ten countries and ends in the Black Sea.

```
source -> Donaueschingen

# not a heading
delta  -> Romania
```

## The Rhine

The Rhine begins in the Alps.
"""


class Desk:
    """Answers at once, and remembers what it was asked."""

    def __init__(self, *, granted: bool = True, answer: Answer | None = None) -> None:
        self.granted = granted
        self.answer = answer
        self.asked: list[PermissionRequested | NotificationCreated] = []

    async def ask_permission(self, request: PermissionRequested, timeout: float | None) -> bool:
        self.asked.append(request)
        return self.granted

    async def notify(self, notification: NotificationCreated, timeout: float | None, wait: bool) -> Answer | None:
        self.asked.append(notification)
        return self.answer

    async def stored(self) -> None:
        pass


def make_turn(text: str, *, desk: Desk | None = None, later: bool = False, events: Sequence[Event] = ()) -> Turn:
    earlier = [Message(id="m0", role="user", text="before")] if later else []
    message = Message(id="m1", role="user", text=text)
    attempt = 2 if events else 1
    return Turn(
        desk=desk or Desk(), session="s", run="s~r", message=message, history=earlier, attempt=attempt, events=events
    )


async def ask(agent: Agent, text: str, **about: Any) -> list[Any]:
    async with asyncio.timeout(30):
        return [item async for item in agent.stream(make_turn(text, **about))]


def transcript(items: Sequence[object]) -> Transcript:
    recorder = Recorder("s~r")
    for item in items:
        recorder.record(item)
    return recorder.transcript


def said(items: Sequence[object]) -> str:
    return transcript(items).text()


def result(items: Sequence[object]) -> Any:
    return next(item.output for item in items if isinstance(item, ToolResult))


@pytest.fixture
def rivers(tmp_path: Path) -> Path:
    folder = tmp_path / "waters"
    (folder / "deep").mkdir(parents=True)
    (folder / "rivers.md").write_text(RIVERS)
    (folder / "deep" / "lakes.txt").write_text("Lake Constance lies between three countries.\n")
    (folder / "seas.rst").write_text("Seas\n====\n\nBlack Sea\n---------\n\nIt is almost closed.\n")
    return folder


# An answer ------------------------------------------------------------------------------------------------------------


async def test_a_question_is_answered_with_thinking_then_a_tool_call_then_text(rivers: Path) -> None:
    """The shape of an answer is that of a model which uses a tool."""
    items = await ask(guide(rivers, pace=0), "Where does the Danube end?")
    kinds = [type(item) for item in items]
    order = [kind for place, kind in enumerate(kinds) if place == 0 or kind != kinds[place - 1]]
    assert [Thinking, ToolCall, ToolArguments, ToolStarted, ToolResult, str] == order


async def test_the_tool_s_arguments_arrive_in_pieces_and_are_json(rivers: Path) -> None:
    """The call's arguments stream as deltas and join to what was searched for."""
    items = await ask(guide(rivers, pace=0), "Where does the Danube end?")
    parts = transcript(items).message("s~r").parts
    arguments = next(part.arguments for part in parts if isinstance(part, CallPart))
    assert sum(isinstance(item, ToolArguments) for item in items) > 1
    assert json.loads(arguments) == {"query": "danube end", "limit": 4}


async def test_the_tool_s_output_names_file_heading_passage_and_score(rivers: Path) -> None:
    """The output is structured, for clients that show it."""
    first = result(await ask(guide(rivers, pace=0), "danube"))[0]
    assert list(first) == ["file", "heading", "passage", "score"]
    assert (first["file"], first["heading"]) == ("rivers.md", "Rivers > The Danube")
    assert isinstance(first["score"], float)


async def test_quoted_passages_stand_verbatim_in_the_file(rivers: Path) -> None:
    """What is quoted is in the document, to the letter, code blocks included."""
    items = await ask(guide(rivers, pace=0), "Which countries does the Danube flow through?")
    text = said(items)
    for found in result(items):
        assert found["passage"] in (rivers / found["file"]).read_text()
        assert "\n".join(f"> {line}" if line else ">" for line in found["passage"].split("\n")) in text
        assert f"**{found['heading']}** (`{found['file']}`)" in text
    assert "> # not a heading" in text


async def test_the_first_answer_says_what_the_guide_is(rivers: Path) -> None:
    """Nobody shall take the guide for a language model."""
    first_line = said(await ask(guide(rivers, pace=0), "danube")).partition("\n")[0]
    assert "not a language model" in first_line
    assert "legato serve my_agent.py" in first_line


async def test_a_later_answer_says_it_briefly(rivers: Path) -> None:
    """With history, the introduction is one short line."""
    first_line = said(await ask(guide(rivers, pace=0), "danube", later=True)).partition("\n")[0]
    assert first_line == "*A search of the documentation, not a model:*"


async def test_the_same_question_gives_the_same_items(rivers: Path) -> None:
    """The guide is deterministic, also over two guides of the same folder."""
    once = await ask(guide(rivers, pace=0), "danube or rhine, which sea?")
    assert once == await ask(guide(rivers, pace=0), "danube or rhine, which sea?")
    assert once == await ask(guide(rivers, pace=1e9), "danube or rhine, which sea?")


@pytest.mark.parametrize(
    ("question", "file"),
    [
        ("flowing", "rivers.md"),  # stemmed
        ("CONSTANCE?", "deep/lakes.txt"),
        ("consta", "deep/lakes.txt"),  # begins so
        ("constanse", "deep/lakes.txt"),  # begins nearly so
        ("black sea closed", "seas.rst"),
        ('"danube" AND (NEAR*', "rivers.md"),
        ("-danube ^rhine {a b}: col:umn", "rivers.md"),
    ],
)
async def test_questions_find_their_document(rivers: Path, question: str, file: str) -> None:
    """Word forms, beginnings, slips and FTS syntax all lead to the right file."""
    assert file == result(await ask(guide(rivers, pace=0), question))[0]["file"]


async def test_a_near_match_is_told_as_such(rivers: Path) -> None:
    """When no passage holds a word of the question, the answer says so."""
    assert "No passage holds `constanse`" in said(await ask(guide(rivers, pace=0), "constanse"))
    assert "No passage holds" not in said(await ask(guide(rivers, pace=0), "constance"))


async def test_nothing_found_lists_the_documents(rivers: Path) -> None:
    """An empty result is a successful search with no passages, and the answer says what there is."""
    items = await ask(guide(rivers, pace=0), "quantum chromodynamics")
    text = said(items)
    assert result(items) == []
    assert "Nothing found for `quantum`, `chromodynamics`" in text
    assert "- Rivers (`rivers.md`)" in text


@pytest.mark.parametrize("question", ["what is this?", "?!…", "'", '""', "*", "how are you", "\u0000", "🎵"])
async def test_a_question_without_a_telling_word_is_not_searched_for(rivers: Path, question: str) -> None:
    """Stop words and signs alone give the list of documents instead of a random passage."""
    items = await ask(guide(rivers, pace=0), question)
    assert not any(isinstance(item, ToolCall) for item in items)
    assert "rivers.md" in said(items)


@pytest.mark.parametrize("greeting", ["Hi", "hello!", "Good morning.", "Hello there", "thanks :)", "你好", "привет"])
async def test_a_greeting_is_returned(rivers: Path, greeting: str) -> None:
    """A greeting is not searched for."""
    items = await ask(guide(rivers, pace=0), greeting)
    assert not any(isinstance(item, ToolCall) for item in items)
    assert said(items).startswith("Hello. This is Legato's built-in guide")


async def test_a_very_long_question_is_bounded(rivers: Path) -> None:
    """Ten thousand words are cut down to a bounded query."""
    items = await ask(guide(rivers, pace=0), "danube " + " ".join(f"word{n}" for n in range(10_000)))
    assert result(items)[0]["file"] == "rivers.md"
    assert len(terms(" ".join(f"word{n}" for n in range(10_000)))) <= MAX_TERMS


async def test_dense_scripts_are_found_inside_a_sentence(tmp_path: Path) -> None:
    """In a script without blanks, a word in the middle of a sentence is found."""
    (tmp_path / "a.md").write_text("# 音楽\n\n音符は隙間なくつながる。\n")
    assert result(await ask(guide(tmp_path, pace=0), "隙間とは"))[0]["file"] == "a.md"


async def test_an_empty_folder_is_told(tmp_path: Path) -> None:
    """With nothing to search, the guide says so and does not fail."""
    text = said(await ask(guide(tmp_path, pace=0), "danube"))
    assert "Nothing found for `danube`. There are no documents here" in text


async def test_the_own_documents_answer_a_question_about_agents() -> None:
    """Without a folder, the guide knows Legato."""
    items = await ask(guide(pace=0), "How do I write an agent?")
    assert any("agent" in found["passage"].lower() for found in result(items))
    for found in result(items):
        assert found["passage"] in (own_documents() / found["file"]).read_text()


def test_deltas_are_short() -> None:
    """A delta is about a word, never a paragraph."""
    text = RIVERS * 3
    assert text == "".join(pieces(text))
    assert max(len(piece) for piece in pieces(text)) <= 12


@given(st.text())
def test_pieces_join_to_the_text(text: str) -> None:
    """No character is lost, whatever the text."""
    assert text == "".join(pieces(text))


@settings(max_examples=200)
@given(st.text())
def test_no_question_breaks_the_search(question: str) -> None:
    """Whatever is asked, the query that comes of it is one that FTS5 accepts."""
    SMALL.search(terms(question))
    SMALL.search([question])


@pytest.fixture(scope="module", autouse=True)
def small(tmp_path_factory: pytest.TempPathFactory) -> None:
    global SMALL
    folder = tmp_path_factory.mktemp("small")
    (folder / "a.md").write_text(RIVERS)
    SMALL = Library(folder)


SMALL: Library


# Pace -----------------------------------------------------------------------------------------------------------------


class Clock:
    """Stands in for the loop's time and for ``asyncio.sleep``: sleeping moves the time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.slept: list[float] = []
        real = asyncio.sleep

        async def sleep(seconds: float) -> None:
            self.slept.append(seconds)
            self.now += seconds
            await real(0)

        monkeypatch.setattr(asyncio, "sleep", sleep)
        monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: self.now, raising=False)


async def test_the_pace_is_kept_against_a_schedule(rivers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Time lost between two deltas is made up for, so that the pace does not drift."""
    stream = guide(rivers, pace=10.0).stream(make_turn("/long 20"))
    clock = Clock(monkeypatch)
    begin = clock.now
    async for item in stream:
        if item == "note-5 ":
            clock.now += 0.15
    assert pytest.approx(clock.now - begin) == 2.0


async def test_after_a_long_wait_the_backlog_does_not_burst(rivers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waited a minute for a permission goes on at the pace, not with sixty seconds of text at once."""
    stream = guide(rivers, pace=10.0).stream(make_turn("/long 20"))
    clock = Clock(monkeypatch)
    begin = clock.now
    async for item in stream:
        if item == "note-5 ":
            clock.now += 60.0
    assert 61.6 < clock.now - begin < 62.0


async def test_without_a_pace_the_loop_still_gets_its_turn(rivers: Path) -> None:
    """Pace 0 does not starve others, so that a cancel can arrive."""
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    ticker = asyncio.create_task(tick())
    await ask(guide(rivers, pace=0), "/long 3200")
    ticker.cancel()
    assert ticks >= 90


async def test_a_cancel_passes_through(rivers: Path) -> None:
    """The guide has no last word: a cancel ends it where it waits."""
    items: list[object] = []
    began = asyncio.Event()

    async def read() -> None:
        async for item in guide(rivers, pace=1000.0).stream(make_turn("/long 20000")):
            items.append(item)
            began.set()

    task = asyncio.create_task(read())
    async with asyncio.timeout(30):
        await began.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert len(items) < 20_000


def test_a_negative_pace_is_refused(rivers: Path) -> None:
    """A pace is a number of deltas per second, or 0."""
    with pytest.raises(InvalidInput):
        guide(rivers, pace=-1)
    with pytest.raises(InvalidInput):
        guide(rivers, pace=float("nan"))


# Demonstrations -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["help", "/help", "?", "HELP "])
async def test_help_names_every_command(rivers: Path, text: str) -> None:
    """What can be tried is told."""
    answer = said(await ask(guide(rivers, pace=0), text))
    for command in ("/permission", "/notify", "/tools", "/long N", "/fail"):
        assert f"`{command}`" in answer


@pytest.mark.parametrize(("granted", "word"), [(True, "granted"), (False, "denied")])
async def test_permission_asks_and_tells_the_answer(rivers: Path, granted: bool, word: str) -> None:
    """/permission makes a call that needs a permission, and says what came of it."""
    desk = Desk(granted=granted)
    items = await ask(guide(rivers, pace=0), "/permission", desk=desk)
    assert [(asked.tool, asked.action) for asked in desk.asked] == [("PretendToWrite", "write")]
    assert [granted] == [item.success for item in items if isinstance(item, ToolResult)]
    assert f"Permission was {word}" in said(items)


@pytest.mark.parametrize(
    ("answer", "words"), [(Answer(by="user", value="re"), "You chose *re*"), (Answer(by="timeout"), "Nobody chose")]
)
async def test_notify_waits_for_the_choice_and_tells_it(rivers: Path, answer: Answer, words: str) -> None:
    """/notify offers choices, waits, and says which it was."""
    desk = Desk(answer=answer)
    text = said(await ask(guide(rivers, pace=0), "/notify", desk=desk))
    assert desk.asked[0].choices == ["do", "re", "mi"]
    assert words in text


@pytest.mark.parametrize(("command", "count"), [("/long 7", 7), ("/long", 200), ("/long 999999999", 20_000)])
async def test_long_writes_that_many_numbered_words(rivers: Path, command: str, count: int) -> None:
    """/long N gives exactly N words, one delta each, numbered, at most 20,000."""
    items = await ask(guide(rivers, pace=0), command)
    assert [f"note-{number}" for number in range(1, count + 1)] == said(items).split()
    assert count == len(items)


async def test_long_with_something_else_than_a_number_fails_with_an_example(rivers: Path) -> None:
    """A wrong argument is told, not guessed at."""
    with pytest.raises(AgentError, match="/long 500"):
        await ask(guide(rivers, pace=0), "/long many")


async def test_fail_says_something_and_then_fails(rivers: Path) -> None:
    """/fail ends as an agent's error with its own code, after some text."""
    items: list[object] = []

    async def read() -> None:
        async for item in guide(rivers, pace=0).stream(make_turn("/fail")):
            items.append(item)

    with pytest.raises(AgentError) as caught:
        await read()
    assert caught.value.code == "asked_to_fail"
    assert said(items)


async def test_tools_runs_two_calls_at_once(rivers: Path) -> None:
    """/tools begins both calls before either has its result, and the results come in the other order."""
    items = await ask(guide(rivers, pace=0), "/tools")
    marks = [(type(item).__name__, item.id) for item in items if isinstance(item, ToolCall | ToolStarted | ToolResult)]
    assert marks == [
        ("ToolCall", "list_1"),
        ("ToolCall", "count_2"),
        ("ToolStarted", "list_1"),
        ("ToolStarted", "count_2"),
        ("ToolResult", "count_2"),
        ("ToolResult", "list_1"),
    ]
    assert "There are 3 documents here" in said(items)


async def test_an_unknown_command_is_told(rivers: Path) -> None:
    """A slip in a command lists the commands instead of searching for it."""
    answer = said(await ask(guide(rivers, pace=0), "/permision"))
    assert "There is no command `/permision`" in answer


# Going on after a crash -----------------------------------------------------------------------------------------------


def recorded(items: Sequence[object]) -> list[Event]:
    recorder = Recorder("s~r")
    drafts = [draft for item in items for draft in recorder.record(item)]
    return [Event(d.fact, n, 0.0, d.run) for n, d in enumerate(drafts, 2)]


async def go_on(agent: Agent, question: str, left: list[Event]) -> Transcript:
    """The transcript after a second attempt, begun with the events that the first one left."""
    started = [stored("run.started", {"agent": "guide", "attempt": 1}, 1, run="s~r")]
    recorder = Recorder("s~r", earlier=fold(left), resumed=True)
    for item in await ask(agent, question, events=started + left):
        recorder.record(item)
    return recorder.transcript


@pytest.mark.parametrize("question", ["danube", "/tools", "/permission", "hello", "/long 30"])
async def test_a_crash_anywhere_leaves_no_mark_in_the_answer(rivers: Path, question: str) -> None:
    """Stopped after any item, the second attempt completes exactly the message of an uninterrupted run."""
    agent = guide(rivers, pace=0)
    items = await ask(agent, question)
    whole = transcript(items).message("s~r")
    for stop in range(len(items)):
        assert whole == (await go_on(agent, question, recorded(items[:stop]))).message("s~r"), f"after {stop} items"


async def test_a_crash_between_other_deltas_leaves_no_mark_either(rivers: Path) -> None:
    """Where the log's deltas end elsewhere than the guide's, only the rest of a delta is said."""
    agent = guide(rivers, pace=0)
    items = await ask(agent, "hello")
    whole = transcript(items).message("s~r")
    for length in range(0, len(whole.text), 17):
        left = recorded([whole.text[:length]])
        assert whole == (await go_on(agent, "hello", left)).message("s~r")


async def test_changed_documents_end_a_resumed_answer(rivers: Path) -> None:
    """Two different answers are not glued together."""
    question = "Where does the Danube end?"
    items = await ask(guide(rivers, pace=0), question)
    (rivers / "rivers.md").write_text(RIVERS.replace("ten countries", "six villages"))
    with pytest.raises(AgentError) as caught:
        await go_on(guide(rivers, pace=0), question, recorded(items[:-1]))
    assert caught.value.code == "changed"


async def test_a_run_left_by_a_stopped_server_is_completed_by_the_next(rivers: Path) -> None:
    """Through the real runner: stopped in the middle, taken up by another, and the words follow without a gap."""
    store = MemoryStore()
    await store.open()
    await store.append("s", [draft("session.created", {})])
    first = Runner(store, {"guide": guide(rivers, pace=1000.0)})
    second = Runner(store, {"guide": guide(rivers, pace=0)})
    async with asyncio.timeout(30):
        with Subscription(store, "s", 0) as reader:
            await first.start()
            await Sessions(store, first).send(NOBODY, "s", Question("/long 500"))
            said = await words_until(reader, "note-5 ")
            await first.stop()
            await store.open()  # as a new process would: the leases of the old one are forgotten
            await second.start()
            said += await words_until(reader, "note-500\n")
            await second.stop()
    assert said.split() == [f"note-{number}" for number in range(1, 501)]


async def words_until(reader: Subscription, last: str) -> str:
    said = ""
    while last not in said:
        said += "".join(event.fact.text for event in await reader.next() if isinstance(event.fact, TextDelta))
    return said


# The library ----------------------------------------------------------------------------------------------------------


def files_of(folder: Path) -> list[str]:
    return list(Library(folder).titles())


def test_hidden_and_other_files_are_left_out(rivers: Path) -> None:
    """Only visible Markdown, .txt and .rst files are read."""
    (rivers / ".secret.md").write_text("# Secret")
    (rivers / ".git").mkdir()
    (rivers / ".git" / "notes.md").write_text("# Git")
    (rivers / "node_modules").mkdir()
    (rivers / "node_modules" / "readme.md").write_text("# Module")
    (rivers / "code.py").write_text("# Code")
    assert files_of(rivers) == ["rivers.md", "seas.rst", "deep/lakes.txt"]


def test_links_out_of_the_folder_are_refused(rivers: Path, tmp_path: Path) -> None:
    """A symbolic link cannot bring in what lies elsewhere; one inside the folder is fine."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "private.md").write_text("# Private\n\ntext")
    (rivers / "link.md").symlink_to(outside / "private.md")
    (rivers / "linked").symlink_to(outside)
    (rivers / "broken.md").symlink_to(outside / "nowhere.md")
    (rivers / "loop").symlink_to(rivers)
    (rivers / "same.md").symlink_to(rivers / "rivers.md")
    assert files_of(rivers) == ["rivers.md", "same.md", "seas.rst", "deep/lakes.txt"]


def test_large_files_are_left_out(rivers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file beyond the bound is not read at all."""
    monkeypatch.setattr(library_module, "MAX_FILE_BYTES", 100)
    assert files_of(rivers) == ["seas.rst", "deep/lakes.txt"]


@pytest.mark.parametrize(("bound", "value"), [("MAX_FILES", 2), ("MAX_BYTES", len(RIVERS) + 60)])
def test_the_library_is_bounded(rivers: Path, monkeypatch: pytest.MonkeyPatch, bound: str, value: int) -> None:
    """Beyond a number of files or bytes, the rest is left out."""
    monkeypatch.setattr(library_module, bound, value)
    assert files_of(rivers) == ["rivers.md", "seas.rst"]


def test_documents_that_are_not_utf8_are_read_with_marks(tmp_path: Path) -> None:
    """A byte that is not UTF-8 costs one character, not the document; a byte order mark is no part of the text."""
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfcaf\xe9 and more")
    assert [passage.text for passage in Library(tmp_path).passages()] == ["caf\ufffd and more"]


def test_sections_are_cut_at_headings_of_all_kinds(tmp_path: Path) -> None:
    """ATX and underlined headings both begin a section; front matter and a fenced # do not."""
    (tmp_path / "a.md").write_text(
        "---\ntitle: x\n---\nIntro\n\nTop\n===\nunder top\n\n"
        "## Second ##\n- a\n- b\n\n~~~\n# code\n\n~~~\n\nThird\n---\nx\n"
    )
    assert [(passage.heading, passage.text) for passage in Library(tmp_path).passages()] == [
        ("a", "Intro"),
        ("Top", "under top"),
        ("Top > Second", "- a\n- b\n\n~~~\n# code\n\n~~~"),
        ("Top > Third", "x"),
    ]


def test_rst_headings_have_the_level_of_their_first_use(tmp_path: Path) -> None:
    """The signs under headings order themselves by appearance."""
    (tmp_path / "a.rst").write_text("====\nTop\n====\n\none\n\nSub\n~~~~\n\ntwo\n\nNext\n====\n\nthree\n")
    assert [(passage.heading, passage.text) for passage in Library(tmp_path).passages()] == [
        ("Top", "one"),
        ("Top > Sub", "two"),
        ("Next", "three"),
    ]


def test_long_sections_are_cut_between_paragraphs(tmp_path: Path) -> None:
    """A passage grows by whole paragraphs."""
    paragraphs = [f"Paragraph {n} " + "x" * 200 for n in range(20)]
    (tmp_path / "a.md").write_text("# T\n\n" + "\n\n".join(paragraphs))
    cut = [passage.text for passage in Library(tmp_path).passages()]
    assert paragraphs == "\n\n".join(cut).split("\n\n")
    assert max(map(len, cut)) < 900


def test_a_code_block_stays_whole_up_to_a_bound(tmp_path: Path) -> None:
    """A fence is not cut for the usual length, and an endless line is cut in the end."""
    code = "```\n" + "\n\n".join(f"line {n}" for n in range(200)) + "\n```"
    (tmp_path / "a.md").write_text(f"# T\n\nbefore\n\n{code}\n\nafter\n")
    (tmp_path / "b.txt").write_text("y" * 10_000)
    texts = {passage.text for passage in Library(tmp_path).passages()}
    assert any(code in text for text in texts)
    assert max(map(len, texts)) <= MAX_PASSAGE_CHARACTERS


def test_what_is_no_folder_is_refused_at_once(tmp_path: Path) -> None:
    """A wrong path fails when the guide is made, not when it is asked."""
    with pytest.raises(InvalidInput, match="needs a folder"):
        guide(tmp_path / "nowhere")


def test_without_apsw_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The base install lacks apsw; the guide says which extra has it."""
    real = builtins.__import__

    def refuse(name: str, *rest: Any, **about: Any) -> Any:
        if name == "apsw":
            raise ModuleNotFoundError(name)
        return real(name, *rest, **about)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r"legato\[server\]"):
        guide(tmp_path)


def test_terms_keep_compounds_and_their_parts() -> None:
    """A compound is searched for as a phrase and by its parts; stop words and single letters are left out."""
    assert terms("What is the Last-Event-ID?") == ["last-event-id", "last", "event", "id"]
    assert terms("on_crash") == ["on_crash", "crash"]
    assert terms("SQLite's WAL, a SQLite thing"[:16]) == ["sqlite", "wal"]


async def test_the_passage_about_a_word_comes_first(tmp_path: Path) -> None:
    """A heading of its own counts more than one above, and more than the text."""
    (tmp_path / "a.md").write_text("# Cursor tales\n\n## First\n\ncursor cursor\n\n## Cursor\n\nIt is a number.\n")
    assert result(await ask(guide(tmp_path, pace=0), "cursor"))[0]["passage"] == "It is a number."


async def test_the_heading_that_is_the_question_comes_first(tmp_path: Path) -> None:
    """A section named as the question is counts more than one that has the word beside others, or more often."""
    (tmp_path / "a.md").write_text(
        "# Notes\n\n## Cursor and fork\n\ncursor cursor\n\n## What is a cursor?\n\nA number.\n\n## Rest\n\nNo.\n"
    )
    assert result(await ask(guide(tmp_path, pace=0), "What is a cursor?"))[0]["passage"] == "A number."


@pytest.mark.parametrize(
    ("question", "heading"),
    [
        ("What is Legato?", "FAQ > What is Legato?"),
        ("how do I stop a run", "FAQ > How do I stop or cancel a run?"),
        ("does it work with openai", "FAQ > Does it work with OpenAI and other models?"),
        ("how do I deploy behind nginx", "Deploying > Behind a proxy > nginx"),
        ("what happens on kill -9", "FAQ > What happens when the server is killed?"),
        ("how do I write a tool", "Writing an agent > What an agent yields > A tool"),
        ("what is a cursor", "Glossary > Cursor"),
        ("is there authentication", "FAQ > Is there authentication: a login, passwords, API keys?"),
        ("how do I send a notification", "Writing an agent > Sending a notification"),
        ("how do I back up the database", "Deploying > Backups"),
    ],
)
async def test_a_newcomer_s_question_finds_its_passage(question: str, heading: str) -> None:
    """What people ask first is answered from Legato's own documents by the passage that says it."""
    assert result(await ask(guide(pace=0), question))[0]["heading"] == heading


async def test_passages_of_one_section_are_quoted_in_the_order_of_the_document(tmp_path: Path) -> None:
    """Under one heading, and as they stand in the file, whichever was the best hit."""
    first, second = "Tides. " + "x" * 600, "Tides, tides and tides. " + "y" * 600
    (tmp_path / "a.md").write_text(f"# Sea\n\n{first}\n\n{second}\n")
    text = said(await ask(guide(tmp_path, pace=0), "tides"))
    assert text.count("**Sea**") == 1
    assert text.index(first) < text.index(second)
