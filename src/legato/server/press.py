"""The press: it has HTML made of texts in processes of its own, so that no text can hold the server.

A text has some time on the processor, in proportion to its length. One that needs more is given up, and is tried once
more without colours for its code; then it is shown as it is. What came of a text is kept, for all who read it, so no
text does that twice. Callers take turns, and of each the shortest text is next.
"""

from __future__ import annotations

import asyncio
import hashlib
import heapq
import logging
import os
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import msgspec

from ..errors import Overloaded, TooLarge
from .typeset import ANSWER, FRESH, TEXT

logger = logging.getLogger("legato")

T = TypeVar("T")

MAX_TEXTS = 256
MAX_CHARACTERS = 200_000
"""Of all texts of one request together; a page shows what is longer as it is."""
SECONDS, SECONDS_EACH = 0.3, 20e-6
"""On the processor, for a text and for each of its characters. Prose takes 1 to 3 microseconds for one, a table 9."""
PATIENCE = 10.0
"""How many times as long a text may take by the clock, since others want the processor, too; and seconds besides."""
START_SECONDS = 30.0
"""For a process to be ready; and after one that could not be begun, until the next is tried."""
PROCESSES = 2
SHORT = 4_000
"""Characters of a text for which one of the processes is always left: what grows is shown a few times a second."""
WAITING = 4_000_000
"""Characters that wait, ``OVERHEAD`` for each text included; half of them may be one caller's."""
OVERHEAD = 500
KEPT = 16_777_216
"""Bytes of what was made."""
KEPT_EACH = 100
"""Bytes that anything kept takes besides."""
BEGINNINGS = 256
BEGINNING = 64
"""Characters by which a text that grows is known again."""
SHARED_SECONDS, SHARED_LACK = 0.1, 2_000
"""For so long what was made of a growing text is given to others who read it, and lacks no more characters of theirs. A
page asks less often than that, so it never gets its own again."""

_COMMAND = """
import sys
_, parent, *sys.path = sys.argv
from legato.server.markdown import render, render_growing
from legato.server.typeset import main
main(int(parent), render, render_growing)
"""
_KILLED = -9


class RenderRequest(msgspec.Struct, frozen=True):
    """What a page wants to show.

    Attributes:
        texts: Markdown, each on its own.
        growing: whether more is to come at their ends.
    """

    texts: list[str]
    growing: bool = False


class RenderAnswer(msgspec.Struct, frozen=True):
    """What was made of the texts.

    Attributes:
        rendered: in the order in which they were sent, each as ``markdown.Rendered``.
        units: of how much of each, in UTF-16 units: of a text that grows, it may be what another reader had.
    """

    rendered: list[msgspec.Raw]
    units: list[int]


class Press:
    """Renders texts, in processes that begin when they are needed. To be used on one event loop, and closed there.

    Attributes:
        made: texts that were rendered.
        given_up: texts that took too long, and are shown as they are.
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[bytes, bytes] = OrderedDict()
        self._size = 0
        self._beginnings: OrderedDict[str, _Slow] = OrderedDict()
        self._jobs: dict[bytes, _Job] = {}  # those that wait, and those that are under way
        self._growths: dict[str, _Job] = {}  # of growing texts, also those that were done just now
        self._lanes: dict[str, _Lane] = {}  # of callers with texts that wait
        self._turn = 0.0
        self._waiting = 0
        self._long = 0  # of those that are under way
        self._working: set[asyncio.Task[None]] = set()
        self._processes: set[_Process] = set()
        self._idle: list[_Process] = []
        self._threads: ThreadPoolExecutor | None = None
        self._begin_after = 0.0
        self._closed = False
        self.made = 0
        self.given_up = 0

    @property
    def processes(self) -> int:
        """How many there are."""
        return len(self._processes)

    @property
    def waiting(self) -> int:
        """Characters of texts that wait."""
        return self._waiting

    async def answer(self, request: RenderRequest, caller: str) -> RenderAnswer:
        """All texts of a request, which take turns with those of other callers.

        Raises:
            TooLarge: more than ``MAX_TEXTS`` or ``MAX_CHARACTERS``.
            Overloaded: too much waits already.
        """
        if len(request.texts) > MAX_TEXTS or sum(map(len, request.texts)) > MAX_CHARACTERS:
            raise TooLarge(
                f"A request may have {MAX_TEXTS} texts with {MAX_CHARACTERS} characters together.", limit=MAX_CHARACTERS
            )
        asked: list[bytes | _Job] = []
        try:
            for text in request.texts:
                asked.append(self._ask(text, request.growing, caller))
            return RenderAnswer(
                [msgspec.Raw(each if isinstance(each, bytes) else await asyncio.shield(each.done)) for each in asked],
                [
                    _units(each.text if isinstance(each, _Job) else text)
                    for each, text in zip(asked, request.texts, strict=True)
                ],
            )
        finally:
            for each in asked:
                if isinstance(each, _Job):
                    each.wanted -= 1

    async def close(self) -> None:
        """End the processes; whoever still waits gets the text as it is."""
        self._closed = True
        for lane in self._lanes.values():
            for _, _, job in lane.waiting:
                job.done.set_result(as_it_is(job.text, job.growing))
        self._lanes.clear()
        for process in tuple(self._processes):
            process.kill()
        while self._working:
            await asyncio.wait(self._working)
        if self._threads is not None:
            for process in self._processes:
                await asyncio.get_running_loop().run_in_executor(self._threads, process.end)
            self._threads.shutdown()

    def _ask(self, text: str, growing: bool, caller: str) -> bytes | _Job:
        key = _digest(text, growing)
        if (made := self._kept.get(key)) is not None:
            self._kept.move_to_end(key)
            return made
        job = self._jobs.get(key)
        if job is None and growing:
            job = self._growth(text)
        if job is not None:
            job.wanted += 1
            return job
        slow = self._beginnings.get(text[:BEGINNING]) if growing else None
        if slow is not None and not slow.begins(text):
            slow = None
        if self._closed or (slow is not None and slow.always):
            return as_it_is(text, growing)
        lane = self._lanes.get(caller) or _Lane(self._turn)
        weight = len(text) + OVERHEAD
        if self._waiting + weight > WAITING or lane.weight + weight > WAITING // 2:
            raise Overloaded("Too many texts wait to be rendered; try again later.")
        job = _Job(text, growing, key, colours=slow is None and ("```" in text or "~~~" in text))
        self._lanes[caller] = lane
        self._jobs[key] = job
        if growing:
            self._growths[text[:BEGINNING]] = job
        self._waiting += weight
        lane.weight += weight
        lane.count += 1
        heapq.heappush(lane.waiting, (len(text), lane.count, job))
        self._go_on()
        return job

    def _growth(self, text: str) -> _Job | None:
        """The job of another who reads the same growing text, if that will do."""
        job = self._growths.get(text[:BEGINNING])
        if job is None or len(text) - len(job.text) > SHARED_LACK or not text.startswith(job.text):
            return None
        return job

    def _forget(self, job: _Job) -> None:
        beginning = job.text[:BEGINNING]
        if self._growths.get(beginning) is job:
            del self._growths[beginning]

    def _go_on(self) -> None:
        while len(self._working) < PROCESSES:
            full = self._long >= max(PROCESSES - 1, 1)
            able = [each for each in self._lanes.items() if not full or each[1].waiting[0][0] <= SHORT]
            if not able:
                return
            caller, lane = min(able, key=lambda each: each[1].turn)
            _, _, job = heapq.heappop(lane.waiting)
            weight = len(job.text) + OVERHEAD
            self._waiting -= weight
            lane.weight -= weight
            if not lane.waiting:
                del self._lanes[caller]
            if not job.wanted:  # who asked has left
                del self._jobs[job.key]
                self._forget(job)
                continue
            self._turn = lane.turn
            lane.turn += job.seconds
            self._long += len(job.text) > SHORT
            task = asyncio.ensure_future(self._work(job))
            self._working.add(task)
            task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._working.discard(task)
        self._go_on()

    async def _work(self, job: _Job) -> None:
        made = as_it_is(job.text, job.growing)
        try:
            made = await self._made(job) or made
        finally:
            self._long -= len(job.text) > SHORT
            del self._jobs[job.key]
            job.done.set_result(made)
            if job.growing:
                asyncio.get_running_loop().call_later(SHARED_SECONDS, self._forget, job)

    async def _made(self, job: _Job) -> bytes | None:
        """What came of a text; None if there is no process for it."""
        for colours in (True, False) if job.colours else (False,):
            made = await self._try(job, colours)
            if made is None:
                return None
            if made:
                self.made += 1
                return self._keep(job.key, made)
            if job.growing:
                self._beginnings[job.text[:BEGINNING]] = _Slow(job.text, always=not colours)
                if len(self._beginnings) > BEGINNINGS:
                    self._beginnings.popitem(last=False)
        self.given_up += 1
        logger.info("a text of %d characters takes too long to be rendered; it is shown as it is", len(job.text))
        return self._keep(job.key, as_it_is(job.text, job.growing))

    def _keep(self, key: bytes, made: bytes) -> bytes:
        self._kept[key] = made
        self._size += len(made) + KEPT_EACH
        while self._size > KEPT:
            self._size -= len(self._kept.popitem(last=False)[1]) + KEPT_EACH
        return made

    async def _try(self, job: _Job, colours: bool) -> bytes | None:
        """What a process makes of a text: nothing, if the text is to blame for it; None, if it is not."""
        for _ in range(2):  # a process that others have killed is replaced
            process = self._idle.pop() if self._idle else await self._begin()
            if process is None or self._closed:
                return None
            made = await self._within(PATIENCE * (1 + job.seconds), process, process.render, job, colours)
            if made is not None:
                self._idle.append(process)
                return made
            self._processes.discard(process)
            if process.overdue or process.ended != _KILLED:
                return b""
        return None

    async def _begin(self) -> _Process | None:
        loop = asyncio.get_running_loop()
        if self._closed or loop.time() < self._begin_after:
            return None
        if self._threads is None:
            self._threads = ThreadPoolExecutor(PROCESSES, thread_name_prefix="legato-press")
        try:
            process = await loop.run_in_executor(self._threads, _Process)
        except OSError as exc:
            why = str(exc)
        else:
            self._processes.add(process)
            if self._closed:
                process.kill()
            if await self._within(START_SECONDS, process, process.ready):
                return process
            self._processes.discard(process)
            why = f"it ended with {process.ended}"
        if not self._closed and loop.time() >= self._begin_after:  # once for those who tried at the same time
            logger.warning("texts are shown without Markdown, since no process can be begun to render them: %s", why)
            self._begin_after = loop.time() + START_SECONDS
        return None

    async def _within(self, seconds: float, process: _Process, work: Callable[..., T], *arguments: object) -> T:
        """Wait for a process in a thread; it is killed when its time is over."""
        loop = asyncio.get_running_loop()
        timer = loop.call_later(seconds, process.expire)
        try:
            return await loop.run_in_executor(self._threads, work, *arguments)
        finally:
            timer.cancel()


class _Job:
    """A text to be rendered."""

    def __init__(self, text: str, growing: bool, key: bytes, *, colours: bool) -> None:
        self.text = text
        self.growing = growing
        self.key = key
        self.colours = colours
        self.seconds = SECONDS + SECONDS_EACH * len(text)
        self.wanted = 1  # by so many requests
        self.done: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()


class _Lane:
    """The texts of one caller that wait, the shortest first; ``turn`` grows by what each may cost."""

    def __init__(self, turn: float) -> None:
        self.turn = turn
        self.waiting: list[tuple[int, int, _Job]] = []
        self.weight = 0
        self.count = 0


class _Slow:
    """A text that grows and took too long when it was so long; ``always``: without colours, too."""

    def __init__(self, text: str, *, always: bool) -> None:
        self.always = always
        self._length = len(text)
        self._digest = _digest(text, growing=True)

    def begins(self, text: str) -> bool:
        """Whether ``text`` is what that has become."""
        return len(text) >= self._length and _digest(text[: self._length], growing=True) == self._digest


class _Process:
    """One process, and its pipes. All but ``kill`` and ``expire`` waits, so it is called in threads.

    Raises:
        OSError: it cannot be begun.
    """

    def __init__(self) -> None:
        options = ["-I", "-B"] if sys.dont_write_bytecode else ["-I"]
        path = [entry for entry in sys.path if isinstance(entry, str)]
        self._process = subprocess.Popen(  # noqa: S603
            [sys.executable, *options, "-c", _COMMAND, str(os.getpid()), *path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            process_group=None if sys.platform == "win32" else 0,  # a terminal's signals are for the server
        )
        self.overdue = False

    @property
    def ended(self) -> int | None:
        """How it has ended, as ``Popen.returncode`` says it."""
        return self._process.returncode

    def kill(self) -> None:
        """End it; who waits for it is told."""
        self._process.kill()

    def expire(self) -> None:
        """End it because its time is over."""
        self.overdue = True
        self.kill()

    def ready(self) -> bool:
        """Wait until it can render; False if it has ended."""
        return self._answer() is not None

    def render(self, job: _Job, colours: bool) -> bytes | None:
        """What it makes of a text, empty if it cannot; None if it has ended."""
        raw = job.text.encode()
        assert self._process.stdin
        try:
            self._process.stdin.write(TEXT.pack(len(raw), job.seconds, job.growing, colours) + raw)
            self._process.stdin.flush()
        except OSError:
            pass  # it has ended, and will not answer
        return self._answer()

    def _answer(self) -> bytes | None:
        pipe = self._process.stdout
        assert pipe
        head = pipe.read(ANSWER.size)
        if len(head) == ANSWER.size:
            size: int = ANSWER.unpack(head)[0]
            answer = pipe.read(size)
            if len(answer) == size:
                return answer
        self.end()
        return None

    def end(self) -> None:
        """End it, and let go of it."""
        self.kill()
        self._process.wait()
        for each in (self._process.stdin, self._process.stdout):
            try:
                each.close()  # type: ignore[union-attr]
            except OSError:
                pass  # what it did not read


def as_it_is(text: str, growing: bool) -> bytes:
    """A text as a ``markdown.Rendered`` that shows it without Markdown."""
    if not text.strip():
        return b'{"blocks":[]}'
    import html  # the names of all signs that HTML knows

    shown = html.escape(text) + FRESH if growing else html.escape(text.rstrip())
    return msgspec.json.encode({"blocks": [{"line": 0, "html": f'<p class="plain">{shown}</p>'}]})


def _units(text: str) -> int:
    return len(text.encode("utf-16-le")) // 2


def _digest(text: str, growing: bool) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16, salt=b"grows" if growing else b"").digest()
