"""One streamed answer as a caller sees it, over as many connections as it takes. No I/O.

A ``WireFold`` knows one wire: what each message adds, and when the answer is over. ``StreamState`` knows bytes, cuts
and waiting, and is what a face drives::

    call = state.request()           # the next connection
    state.opened(response.headers)   # its head was good
    state.receive(chunk)             # ... for each chunk of the body; None: it ended properly
    state.begun()                    # until it is true, MayPass asks for another attempt
    state.cut(error)                 # it ended otherwise
    yield from state.items()         # after each of these; then: ended? broken? else read on
    wait = state.pause()             # broken: sleep this long, and begin with request() again

The one rule: an answer ends as a whole, or with an error that carries what came of it.
"""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Generic, Protocol, TypeVar

from ..errors import InvalidInput, LegatoError, StreamFormatError
from ..http.backoff import ReconnectBackoff, Waits, is_final
from ..http.call import HttpCall
from ..http.errors import APIError, ClientError, ConnectionFailed, ConnectionLost
from ..http.packages import httpx2
from ..sse import ODD_LINE, Decoder, SSEMessage
from .errors import ProviderError, ResponseFailed, StreamInterrupted, StreamMalformed, failed, provider_error
from .loose import loose
from .result import ChatResult, Tally

__all__ = ["DONE", "RESUME_BACKOFF", "STREAM_HEADERS", "FoldedCall", "MayPass", "StreamState", "WireFold"]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
P = TypeVar("P", bound=ProviderError)

DONE: Final = "[DONE]"

# Without "identity" some gateways compress, and their compressors hold back what they have.
STREAM_HEADERS: Final = {"accept": "text/event-stream", "accept-encoding": "identity", "cache-control": "no-store"}

# OpenAI can continue a response for five minutes, so to try for much longer is of no use.
RESUME_BACKOFF: Final = ReconnectBackoff(base=0.5, cap=10.0, give_up_after=300.0)


class WireFold(Protocol[T_co]):
    """What one wire's messages add up to.

    Attributes:
        tally: the answer so far.
        over: the answer has ended.
        failure: why it failed; it is raised when the answer is over, or at once if ``impatient``.
        impatient: nothing after a failure is of interest.
        last: the number of the last message, on wires that number them.
    """

    tally: Tally
    over: bool
    failure: ProviderError | None
    impatient: bool
    last: int | None

    @property
    def enough(self) -> bool:
        """Whether a proper end of the body would end the answer now."""

    def take(self, message: SSEMessage) -> Sequence[T_co]:
        """Take a message, be it a piece of an answer, a whole one or an error; return what it gives to the caller.

        Raises:
            ProviderError: the message, or the whole answer, cannot be used.
        """

    def done(self) -> Sequence[T_co]:
        """Take the ``[DONE]`` of a stream that has not ended yet; return what waited for it."""

    def resume(self) -> HttpCall[object] | None:
        """The request that continues the answer behind the last event; None when there is no such request."""


@dataclass(frozen=True, slots=True)
class FoldedCall(Generic[T]):
    """A request for a stream, and what makes the fold that reads what comes, anew for each attempt."""

    call: HttpCall[object]
    fold: Callable[[], WireFold[T]]


class MayPass(ClientError):
    """Raised within an attempt: the provider took the request, and said then, before all else, that it is too busy."""

    def __init__(self, failure: ResponseFailed) -> None:
        super().__init__(failure.message)
        self.failure = failure


class StreamState(Generic[T]):
    """The state of one streamed answer.

    Attributes:
        ended: nothing follows.
        broken: there is no connection, and the answer has not ended.
        sequence_number: of the last event of which the caller has all; None on wires without.
    """

    def __init__(
        self,
        asked: FoldedCall[T],
        *,
        backoff: ReconnectBackoff | None = RESUME_BACKOFF,
        random: Callable[[], float] = random.random,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.ended = False
        self.broken = False
        self.sequence_number: int | None = None
        self._begun = False
        self._asked = asked
        self._fold = asked.fold()
        self._call = asked.call
        self._patience = None if backoff is None else backoff.give_up_after
        self._waits = None if backoff is None else Waits(backoff, random=random, clock=clock)
        self._decoder = Decoder(odd=True)
        self._messages: deque[SSEMessage] = deque()
        self._ahead: Sequence[T] = ()  # what the last message gave, if the caller has not had it
        self._loss: LegatoError | None = None
        self._kind = ""  # of the body, if it says that it is no event stream
        self._taken = False
        self._anew = False  # what came was that there is no answer now; the next attempt knows nothing of it
        self._lines: list[str] = []  # JSON that came without "data:"

    @property
    def id(self) -> str | None:
        """The provider's id of the answer; None before it is known."""
        return self._fold.tally.id

    @property
    def partial(self) -> ChatResult:
        """What came so far."""
        return self._fold.tally.result()

    def begin(self) -> None:
        """Take note that the caller begins to read.

        Raises:
            InvalidInput: it has done so before; to do so again would ask, and pay, again.
        """
        if self._begun:
            raise InvalidInput("A stream is read once. Ask again for another answer; `partial` has what came.")
        self._begun = True

    def request(self) -> HttpCall[object]:
        """The request for the next connection."""
        self._decoder = Decoder(odd=True)
        self._lines.clear()
        self.broken = False
        if self._anew:
            self._fold = self._asked.fold()
            self.ended = self._taken = self._anew = False
        return self._call

    def opened(self, headers: httpx2.Headers) -> None:
        """Take note of a good answer's head.

        What is called otherwise may be an event stream all the same, a whole answer, or an error: what is in it counts.
        """
        kind = headers.get("content-type", "no type")
        self._kind = "" if kind.partition(";")[0].strip().lower() == "text/event-stream" else kind

    def receive(self, chunk: bytes | None) -> None:
        """Take bytes of the body; None: it ended properly.

        Raises:
            StreamMalformed: a line or an event beyond all bounds.
        """
        if chunk is None:
            self.cut(None)
            return
        try:
            self._messages.extend(self._decoder.feed(chunk))
        except StreamFormatError as exc:
            raise self._last(StreamMalformed(exc.message, **exc.detail)) from exc
        if self._waits is not None and self._decoder.retry is not None:
            self._waits.retry = self._decoder.retry / 1000

    def cut(self, error: LegatoError | None) -> None:
        """Take note that there is no connection any more; None: the body ended properly.

        A last event without its blank line counts if it is whole, which JSON shows: some servers forget the line.
        """
        self.broken = True
        self._loss = error
        try:
            messages = self._decoder.feed(b"\n\n")
        except StreamFormatError:
            return  # an unfinished event beyond all bounds was not going to count
        self._messages.extend(each for each in messages if each.event == ODD_LINE or _is_whole(each.data))
        if error is None:
            self._messages.append(_END)

    def begun(self) -> bool:
        """Whether there is something for the caller: a piece of the answer, its end, or what is wrong with it.

        Raises:
            MayPass: the provider failed before it said anything; begin with ``request()`` again.
            ProviderError: the answer cannot be used.
        """
        while self._messages and not (self._ahead or self._settled):
            self._ahead = self._read()
            if not self._ahead:
                self.sequence_number = self._fold.last
        failure = self._fold.failure
        if not self._ahead and self._settled and isinstance(failure, ResponseFailed) and failure.passing:
            self._anew = True
            raise MayPass(self._last(failure))
        return bool(self._ahead) or self._settled or self.broken

    @property
    def _settled(self) -> bool:
        """Whether nothing that comes now would make a difference."""
        fold = self._fold
        return fold.over or (fold.failure is not None and fold.impatient)

    def items(self) -> Iterator[T]:
        """What has come for the caller.

        Raises:
            ProviderError: the answer failed, or cannot be used.
        """
        while not self.ended:
            items, self._ahead = self._ahead, ()
            if not items and not self._settled:
                if not self._messages:
                    break
                items = self._read()
            if len(items) > 1:
                yield from items[:-1]
            # Before the caller gets the last item, since it may stop there, or store how far it is.
            self.ended = self._fold.over
            self.sequence_number = self._fold.last
            if items:
                yield items[-1]
            if self._fold.failure and self._settled:
                raise self._last(self._fold.failure)
        if self.broken and self._loss is None and self._fold.enough and not self.ended:
            yield from self._fold.done()
            self.ended = self._fold.over
            if self._fold.failure:
                raise self._last(self._fold.failure)

    def _read(self) -> Sequence[T]:
        """What the next message gives."""
        last, waits = self._fold.last, self._waits
        items = self._take(self._messages.popleft())
        if waits is not None and waits.attempts and (items or self._fold.last != last):
            waits.progress()
        return items

    def _take(self, message: SSEMessage) -> Sequence[T]:
        data = message.data
        if message.event == ODD_LINE:
            return self._take_line(data)
        if data[:1] == "{":  # as nearly all do; below is what does not
            return self._give(message)
        if not data or data.isspace():
            return ()
        if len(data) < 32 and data.strip() == DONE:
            # Whatever follows it, there is nothing more to come on this connection.
            self._messages.clear()
            rest = self._fold.done()
            self.broken = not self._fold.over
            return rest
        if message.event == "error" and not data.lstrip().startswith(("{", "[")):
            self._fold.failure, self._fold.over = failed(data), True
            return ()
        return self._give(message)

    def _give(self, message: SSEMessage) -> Sequence[T]:
        self._taken = True
        try:
            return self._fold.take(message)
        except ProviderError as exc:
            raise self._last(exc) from exc.__cause__

    def _take_line(self, line: str) -> Sequence[T]:
        """Take a line that is no field: an error or an answer in bare JSON, on one line or on many; "" is their end.

        Raises:
            StreamMalformed: this is no event stream, nor anything else that is known.
        """
        if line.startswith("error:"):  # llama.cpp
            line = line.removeprefix("error:").strip()
            if not line.startswith(("{", "[")):
                self._fold.failure, self._fold.over = failed(line), True
                return ()
        if not line and self._lines:
            text = "\n".join(self._lines)
            return self._give(SSEMessage(text)) if self._kind or _is_whole(text) else ()
        if self._lines or line.lstrip().startswith(("{", "[")):
            # Lines of one object end with a bracket of its own, which stands where it began.
            if _is_whole(line) if not self._lines else line.rstrip() in ("}", "]"):
                text = "\n".join([*self._lines, line])
                if _is_whole(text):
                    self._lines.clear()
                    return self._give(SSEMessage(text))
            self._lines.append(line)
        elif self._kind and not self._taken:
            kind = self._kind
            raise self._last(StreamMalformed(f"An event stream was expected, not {kind!r}.", content_type=kind))
        return ()

    def pause(self) -> float:
        """How many seconds to wait before the next ``request()``.

        Raises:
            ProviderError: the answer cannot be continued, or the provider had said why it ends here.
        """
        if self._fold.failure:
            raise self._last(self._fold.failure)
        call = self._fold.resume()
        wait = None if call is None else self._wait()
        if call is None or wait is None:
            raise self._last(self._interrupted()) from self._loss
        self._call = call
        return wait

    def _wait(self) -> float | None:
        error = self._loss
        if self._waits is None or not (error is None or _passing(error)):
            return None
        asked = error.retry_after if isinstance(error, APIError) else None
        if asked is not None and self._patience is not None and asked > self._patience:
            return None
        return self._waits.next(asked)

    def _interrupted(self) -> ProviderError:
        if self._loss is None:
            return StreamInterrupted("The stream ended, but the answer in it had not.")
        error = provider_error(self._loss)
        if isinstance(error, StreamInterrupted | StreamMalformed):
            return error
        return StreamInterrupted(f"The answer could not be continued: {error.message}", reason=error.code)

    def _last(self, error: P) -> P:
        """The error, with what came before it; nothing comes after it."""
        self.ended = True
        self._messages.clear()
        error.partial = self.partial
        return error


def _passing(error: LegatoError) -> bool:
    if isinstance(error, APIError):
        return not is_final(error.status_code)
    return isinstance(error, ConnectionFailed | ConnectionLost)


def _is_whole(data: str) -> bool:
    if data.strip() == DONE:
        return True
    try:
        return isinstance(loose(data), dict | list)
    except ValueError:
        return False


_END: Final = SSEMessage("", ODD_LINE)
"""The proper end of a body, after its last line."""
