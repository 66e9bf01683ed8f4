"""The press: whatever a text costs, it is answered, and nobody else pays for it."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

import hostile
from legato import Legato
from legato.agents.library import Library
from legato.errors import Overloaded
from legato.server import press
from legato.server.markdown import Rendered, mend
from legato.server.press import Press, RenderRequest, as_it_is
from legato.server.typeset import FRESH, MAX_MEMORY
from legato.testing import Driver
from processes import bounded
from running import NET
from test_markdown import check_harmless, text_of

SIZE = 6_000
STUCK = "[" * 40_000
"""Takes ten seconds."""


@pytest.fixture
async def made() -> AsyncIterator[Press]:
    press = Press()
    yield press
    await press.close()


async def rendered(made: Press, *texts: str, growing: bool = False, caller: str = "") -> list[str]:
    """The HTML of texts."""
    async with asyncio.timeout(4 * NET):
        answer = await made.answer(RenderRequest([*texts], growing), caller)
    return [
        "\n".join(block.html for block in msgspec.json.decode(each, type=Rendered).blocks) for each in answer.rendered
    ]


def processes(made: Press) -> list[int]:
    return [each._process.pid for each in made._processes]


def is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def until(so: Callable[[], bool]) -> None:
    async with asyncio.timeout(NET):
        while not so():  # noqa: ASYNC110  # what it waits for is outside of the loop
            await asyncio.sleep(0.01)


# Whatever the text ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("growing", [False, True])
async def test_every_text_is_answered(made: Press, growing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it is, it comes back as harmless HTML or as it is, and the processes are there for the next one."""
    monkeypatch.setattr(press, "SECONDS", 0.1)
    for name, text in hostile.PROSE.items():
        (html,) = await rendered(made, text(SIZE), growing=growing)
        check_harmless(html)
        assert len(processes(made)) <= press.PROCESSES, name
    assert await rendered(made, "*a*") == ["<p><em>a</em></p>"]


@pytest.mark.parametrize("kind", hostile.CODE)
async def test_code_of_every_language_is_answered(made: Press, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the colours of code take too long, it has none; all else of the text is as it should be."""
    monkeypatch.setattr(press, "SECONDS", 0.1)
    texts = [f"*so*\n\n{hostile.code(language, kind, SIZE // 2)}" for language in hostile.LANGUAGES]
    for html, text in zip(await rendered(made, *texts), texts, strict=True):
        check_harmless(html)
        assert html.startswith("<p><em>so</em></p>")
        assert hostile.CODE[kind](SIZE // 2) in text
        assert text_of(html).split() == re.sub(r"\*|```\w*", "", text).split()


@pytest.mark.parametrize("kind", hostile.PROSE)
def test_what_a_growing_text_costs_grows_with_it(kind: str) -> None:
    """To find out how a text ends that still grows takes a time in proportion to its length."""

    def cost(size: int) -> float:
        text, best = hostile.PROSE[kind](size), 60.0
        for _ in range(3):
            begin = time.process_time()
            mend(text)
            best = min(best, time.process_time() - begin)
        return max(best, 0.001)

    assert cost(16_000) < 25 * cost(2_000)  # eight times as long; what is quadratic costs 64 times as much


@pytest.mark.parametrize("suffix", [".md", ".rst", ".txt"])
@pytest.mark.parametrize("kind", hostile.PROSE)
def test_what_is_found_in_a_document_costs_as_much_as_it_is_long(kind: str, suffix: str, tmp_path: Path) -> None:
    """The guide's library, too, takes a time in proportion to a document's length."""

    def cost(size: int) -> float:
        document, best = tmp_path / f"x{suffix}", 60.0
        document.write_text("# " + hostile.PROSE[kind](size), "utf-8", newline="")
        for _ in range(3):
            begin = time.process_time()
            Library(tmp_path).passages()
            best = min(best, time.process_time() - begin)
        return max(best, 0.005)

    assert cost(16_000) < 25 * cost(2_000)


# One for all ----------------------------------------------------------------------------------------------------------


class Held:
    """Stands for a process that renders when it is told to.

    Attributes:
        all: those that have begun.
        texts: what they were given, in that order.
        go: they may.
    """

    all: list[Held]
    texts: list[str]
    go: threading.Event
    overdue = False
    ended = None

    def __init__(self) -> None:
        self.all.append(self)

    def ready(self) -> bool:
        return True

    def kill(self) -> None:
        self.go.set()

    expire = end = kill

    def render(self, job: Any, colours: bool) -> bytes:
        self.texts.append(job.text)
        assert self.go.wait(NET)
        return as_it_is(job.text, job.growing)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> type[Held]:
    Held.all, Held.texts, Held.go = [], [], threading.Event()
    monkeypatch.setattr(press, "_Process", Held)
    monkeypatch.setattr(press, "PROCESSES", 1)
    return Held


def ask(made: Press, *texts: str, caller: str = "") -> asyncio.Task[list[str]]:
    return asyncio.ensure_future(rendered(made, *texts, caller=caller))


async def test_what_many_ask_is_made_once(made: Press, held: type[Held]) -> None:
    """All who want the same text at a time, and later, get what was made for the first of them."""
    asked = [ask(made, "a", caller=str(n)) for n in range(100)]
    await until(lambda: bool(held.texts))
    held.go.set()
    assert [await each for each in asked] == [['<p class="plain">a</p>']] * 100
    assert await rendered(made, "a", caller="late") == ['<p class="plain">a</p>']
    assert held.texts == ["a"]


@pytest.mark.parametrize("kept", [True, False])
async def test_a_growing_text_is_made_once_for_all_who_read_it(
    made: Press, held: type[Held], kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each asks at its own moments, with its own length: it gets what another has, and is told of how much that is."""
    held.go.set()
    monkeypatch.setattr(press, "SHARED_SECONDS", 3600 if kept else 0)
    text = "A 😀 text of many letters that grows. " * 300
    for look in range(100, 8_000, 100):
        for reader in range(3):
            asked = text[: look + 20 * reader]
            answer = await made.answer(RenderRequest([asked], growing=True), str(reader))
            (shown,) = msgspec.json.decode(answer.rendered[0], type=Rendered).blocks
            assert shown.html == f'<p class="plain">{asked[: _characters(asked, answer.units[0])]}{FRESH}</p>'
        await asyncio.sleep(0)
    assert len(held.texts) == (4 if kept else 3 * 79)
    assert await rendered(made, text[:1_000] + "Another.", growing=True) == [
        f'<p class="plain">{text[:1_000]}Another.{FRESH}</p>'
    ]
    assert made._jobs == {}


def _characters(text: str, units: int) -> int:
    return len(text.encode("utf-16-le")[: 2 * units].decode("utf-16-le"))


async def test_those_who_read_a_growing_text_wait_for_the_same(made: Press, held: type[Held]) -> None:
    """What is being made for one is given to others who have a little more; not if that one has left."""
    long = "It grows. " * 10
    first = ask(made, "0")
    await until(lambda: bool(held.texts))
    begun = asyncio.ensure_future(rendered(made, long, growing=True))
    gone = asyncio.ensure_future(rendered(made, f"Another {long}", growing=True))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.wait([gone])
    joined = asyncio.ensure_future(rendered(made, f"{long} on", growing=True))
    await asyncio.sleep(0)
    held.go.set()
    assert (await begun, await joined) == ([f'<p class="plain">{long}{FRESH}</p>'],) * 2
    assert await rendered(made, f"Another {long} on", growing=True) == [
        f'<p class="plain">Another {long} on{FRESH}</p>'
    ]
    assert held.texts == ["0", long, f"Another {long} on"]
    await first


async def test_what_is_kept_is_bounded_in_bytes(made: Press, held: type[Held], monkeypatch: pytest.MonkeyPatch) -> None:
    """What was asked for longest ago goes first; its size counts, and not how much there is."""
    held.go.set()
    monkeypatch.setattr(press, "KEPT", 20_000)
    for n in range(20):
        await rendered(made, f"{n} " + "x" * 1_800)
        await rendered(made, "0 " + "x" * 1_800)
    assert sum(map(len, made._kept.values())) + press.KEPT_EACH * len(made._kept) == made._size <= press.KEPT
    assert len(held.texts) == 20
    await rendered(made, "1 " + "x" * 1_800)
    assert len(held.texts) == 21


async def test_callers_take_turns_and_short_texts_come_first(made: Press, held: type[Held]) -> None:
    """Who has much to be rendered waits for it; another's first text is next, and a short one before a long one."""
    first = ask(made, "0")
    await until(lambda: bool(held.texts))
    many = ask(made, *(f"much {n} " + "x" * 5_000 for n in range(20)), "tiny", caller="a")
    few = ask(made, "few", caller="b")
    await asyncio.sleep(0)
    held.go.set()
    await asyncio.gather(first, many, few)
    assert [text[:4] for text in held.texts[:3]] in (["0", "tiny", "few"], ["0", "few", "tiny"])


async def test_a_short_text_never_waits_for_long_ones(
    made: Press, held: type[Held], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One process is left for those that are short, whoever asks; long ones go on when one of them is over."""
    monkeypatch.setattr(press, "PROCESSES", 2)
    long = ask(made, *(f"{n}" + "x" * press.SHORT for n in range(3)))
    await until(lambda: bool(held.texts))
    short = ask(made, "short")
    await until(lambda: "short" in held.texts)
    assert [len(text) > press.SHORT for text in held.texts] == [True, False]
    held.go.set()
    await asyncio.gather(long, short)
    assert len(held.texts) == 4


async def test_what_waits_is_bounded(made: Press, held: type[Held], monkeypatch: pytest.MonkeyPatch) -> None:
    """One caller may have half of all that waits; who comes then is told to come again, and others are not."""
    monkeypatch.setattr(press, "WAITING", 20_000)
    first = ask(made, "0")
    await until(lambda: bool(held.texts))
    much = ask(made, *(f"{n} " + "x" * 1_000 for n in range(6)), caller="a")
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await rendered(made, "more" + "x" * 1_000, caller="a")
    other = ask(made, "x" * 2_000, caller="b")
    held.go.set()
    await asyncio.gather(first, much, other)
    assert made._waiting == 0
    await rendered(made, "more" + "x" * 1_000, caller="a")


async def test_nothing_is_made_for_those_who_left(made: Press, held: type[Held]) -> None:
    """A text that waits when all who asked for it have gone is not rendered; one that others want is."""
    first = ask(made, "0")
    await until(lambda: bool(held.texts))
    gone, shared, stays = ask(made, "gone"), ask(made, "shared"), ask(made, "shared")
    await asyncio.sleep(0)
    gone.cancel()
    shared.cancel()
    await asyncio.wait([gone, shared])
    held.go.set()
    assert await asyncio.gather(first, stays)
    await until(lambda: not made._working)
    assert held.texts == ["0", "shared"]
    assert not made._jobs
    assert await rendered(made, "gone")


# Too much -------------------------------------------------------------------------------------------------------------


async def test_what_takes_too_long_is_shown_as_it_is_and_not_tried_again(
    made: Press, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process gives it up, and lives on; what it was is remembered, also as it grows further."""
    await rendered(made, "*warm*")
    pids = processes(made)
    tried: list[str] = []
    render = press._Process.render

    def counted(self: Any, job: Any, colours: bool) -> bytes | None:
        tried.append(job.text)
        return render(self, job, colours)

    monkeypatch.setattr(press._Process, "render", counted)
    monkeypatch.setattr(press, "SECONDS_EACH", 0.0)
    monkeypatch.setattr(press, "SHARED_SECONDS", 0.0)
    assert await rendered(made, STUCK) == [f'<p class="plain">{STUCK}</p>']
    assert await rendered(made, STUCK) == [f'<p class="plain">{STUCK}</p>']
    assert len(tried) == 1
    growing = "x " + STUCK + "\na *b* "
    for _ in range(3):
        growing += "[x]"
        assert await rendered(made, growing, growing=True) == [f'<p class="plain">{growing}{FRESH}</p>']
    assert len(tried) == 2
    assert processes(made) == pids
    assert await rendered(made, "x *a*", growing=True) == [f"<p>x <em>a</em>{FRESH}</p>"]
    assert await rendered(made, "*a*") == ["<p><em>a</em></p>"]


async def test_a_text_that_cannot_be_given_up_ends_its_process(made: Press, monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs on in C, deaf to signals, has a second or two more on the processor; then the system ends it."""
    deaf = "render = lambda text, colours: sum(iter(int, 1))\n"
    monkeypatch.setattr(press, "_COMMAND", press._COMMAND.replace("main(int", deaf + "main(int"))
    assert await rendered(made, "*a*") == ['<p class="plain">*a*</p>']
    assert not made._processes


async def test_a_process_that_stands_still_is_ended(made: Press, monkeypatch: pytest.MonkeyPatch) -> None:
    """What uses no processor is bounded by the clock; the loop goes on meanwhile, and the server is healthy."""
    await rendered(made, "*warm*")
    monkeypatch.setattr(press, "PATIENCE", 0.2)
    (pid,) = processes(made)
    os.kill(pid, signal.SIGSTOP)
    assert await rendered(made, "*a*") == ['<p class="plain">*a*</p>']
    assert not is_there(pid)
    monkeypatch.undo()
    assert await rendered(made, "*b*") == ["<p><em>b</em></p>"]


async def test_a_process_that_somebody_killed_is_replaced(made: Press) -> None:
    """That is no fault of the text, which is rendered by the next."""
    assert await rendered(made, "*a*") == ["<p><em>a</em></p>"]
    os.kill(processes(made)[0], signal.SIGKILL)
    assert await rendered(made, "*b*") == ["<p><em>b</em></p>"]


def memory(pid: int) -> int:
    """Its addresses, in bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()


async def test_memory_is_bounded(made: Press) -> None:
    """A text that takes more than a process may have is shown as it is; the next one has another process."""
    await rendered(made, "*warm*")
    (pid,) = processes(made)
    assert resource.prlimit(pid, resource.RLIMIT_AS)[0] == MAX_MEMORY
    used = memory(pid)
    resource.prlimit(pid, resource.RLIMIT_AS, (used + 1_000_000, MAX_MEMORY))
    text = "*a*" * 30_000
    assert await rendered(made, text) == [f'<p class="plain">{text}</p>']
    assert not is_there(pid)
    assert await rendered(made, "*a*") == ["<p><em>a</em></p>"]


async def test_without_processes_texts_are_shown_as_they_are(
    made: Press, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where none can be begun, that is said once, and not tried for each text; later it is tried again."""
    for executable in ("/nowhere/python", sys.executable):
        with monkeypatch.context() as patch:
            patch.setattr(sys, "executable", executable)
            patch.setattr(press, "_COMMAND", "raise SystemExit(7)")
            assert await rendered(made, "*a* <b>", "*b*") == [
                '<p class="plain">*a* &lt;b&gt;</p>',
                '<p class="plain">*b*</p>',
            ]
        assert [record.levelno for record in caplog.records] == [logging.WARNING]
        caplog.clear()
        assert await rendered(made, "*a*") == ['<p class="plain">*a*</p>']
        made._begin_after = 0.0
    assert not caplog.records
    assert await rendered(made, "*a*") == ["<p><em>a</em></p>"]


# Processes ------------------------------------------------------------------------------------------------------------


async def test_processes_have_nothing_of_the_servers(made: Press) -> None:
    """No socket, lock or database, no signal of its terminal, no core dump; and little memory."""
    await rendered(made, "*a*")
    (pid,) = processes(made)
    assert len(os.listdir(f"/proc/{pid}/fd")) == 3
    assert os.getpgid(pid) != os.getpgid(0)
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(pid, number)
    assert await rendered(made, "*b*") == ["<p><em>b</em></p>"]
    assert processes(made) == [pid]


async def test_closing_ends_processes_and_waits() -> None:
    """Also while they render: who waits gets the text as it is. Nothing of the press is left."""
    made = Press()
    texts = [STUCK, STUCK[:3_999], STUCK + "x", "*a*" * 1_000, "*b*"]
    waiting = [ask(made, each, caller=each) for each in texts]
    await until(lambda: len(made._processes) == 2)
    pids = processes(made)
    await made.close()
    html = await asyncio.gather(*waiting)
    assert [text_of(each[0]) for each in html[:2]] == texts[:2]
    assert not any(map(is_there, pids))
    assert not [each for each in threading.enumerate() if each.name.startswith("legato-press")]
    assert await rendered(made, "*c*") == ['<p class="plain">*c*</p>']


def test_lives_take_their_processes_with_them() -> None:
    """An application that is started again, on another event loop, has other ones; if it renders nothing, none."""

    async def agent(turn: object) -> str:
        return "x"

    app = Legato("memory:", agents=[agent])  # type: ignore[list-item]
    seen: list[int] = []

    async def live(text: str | None) -> None:
        async with Driver(app) as driver:
            if text is not None:
                answer = await driver.request("POST", "/web/markdown", json={"texts": [text]})
                assert answer.json()["rendered"] == [{"blocks": [{"line": 0, "html": "<p><em>a</em></p>"}]}]
            seen.extend(processes(app.life.press))

    for text in ("*a*", None, "*a*"):
        asyncio.run(live(text))
    assert len(set(seen)) == 2
    assert not any(map(is_there, seen))


SERVER = """
import asyncio, os, sys, time
from legato.server.press import Press, RenderRequest
async def main():
    press = Press()
    await press.answer(RenderRequest(["a"]), "")
    busy = asyncio.ensure_future(press.answer(RenderRequest(["[" * 40_000]), ""))
    while len(press._idle):
        await asyncio.sleep(0.01)
    if not BUSY:
        await busy
        await press.answer(RenderRequest(["b"]), "")
    if FORK and os.fork() == 0:
        os.close(1)
        time.sleep(60)
        os._exit(0)
    print(*(each._process.pid for each in press._processes), flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""


@pytest.mark.parametrize("busy", [False, True])
@pytest.mark.parametrize("fork", [False, True])
def test_processes_end_with_a_server_that_is_killed(busy: bool, fork: bool) -> None:
    """Idle or not, and also where a child of the server goes on, which holds the far ends of their pipes, too."""
    code = SERVER.replace("BUSY", str(busy)).replace("FORK", str(fork))
    server = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, process_group=0)
    try:
        assert server.stdout
        with bounded(server, "processes of the server"):
            pids = [int(each) for each in server.stdout.readline().split()]
        assert pids
        assert all(map(is_there, pids))
        server.kill()
        asyncio.run(until(lambda: not any(map(is_there, pids))))
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
        server.stdout.close()


async def test_health_is_told_whatever_is_rendered() -> None:
    """While pages have all processes busy, the server answers everybody else."""

    async def agent(turn: object) -> str:
        return "x"

    async with Driver(Legato("memory:", agents=[agent])) as driver:  # type: ignore[list-item]
        busy = [
            asyncio.ensure_future(driver.request("POST", "/web/markdown", json={"texts": [STUCK + str(n)]}))
            for n in range(2 * press.PROCESSES)
        ]
        for _ in range(100):
            assert (await driver.request("GET", "/health")).status == 200
            assert not any(each.done() for each in busy)
        assert {answer.status for answer in await asyncio.gather(*busy)} == {200}


def test_who_has_rendered_loads_no_parser() -> None:
    """The server does nothing of it itself, so no text can hold its interpreter."""
    code = SERVER.replace("BUSY", "True").replace("FORK", "False").split("    busy =")[0]
    code += "    await press.close()\nasyncio.run(main())\nprint(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {"markdown_it", "pygments", "nh3", "legato.server.markdown"}.isdisjoint(loaded)
