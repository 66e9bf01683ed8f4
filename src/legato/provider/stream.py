"""One streamed answer as a caller sees it, over as many connections as it takes. No I/O.

A ``WireFold`` knows one wire: what each message adds, and when the answer is over. ``StreamState`` knows bytes, cuts
and waiting, and is what a face drives::

    call = state.request()           # the next connection
    state.opened(response.headers)   # its head was good
    state.receive(chunk)             # ... for each chunk of the body; None: it ended properly
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

import msgspec

from ..errors import InvalidInput, LegatoError, StreamFormatError
from ..http.backoff import ReconnectBackoff, Waits, is_final
from ..http.call import HttpCall
from ..http.errors import APIError, ConnectionFailed, ConnectionLost
from ..http.packages import httpx2
from ..sse import Decoder, SSEMessage
from .errors import ProviderError, StreamInterrupted, StreamMalformed, provider_error
from .result import ChatResult, Tally

__all__ = ["DONE", "RESUME_BACKOFF", "STREAM_HEADERS", "FoldedCall", "StreamState", "WireFold"]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

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
        """Take a message; return what it gives to the caller.

        Raises:
            ProviderError: the message, or the whole answer, cannot be used.
        """

    def done(self) -> None:
        """Take the ``[DONE]`` of a stream that has not ended yet."""

    def resume(self) -> HttpCall[object] | None:
        """The request that continues the answer behind the last event; None when there is no such request."""


@dataclass(frozen=True, slots=True)
class FoldedCall(Generic[T]):
    """A request for a stream, and how to read what comes."""

    call: HttpCall[object]
    fold: WireFold[T]


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
        self._fold = asked.fold
        self._call = asked.call
        self._waits = None if backoff is None else Waits(backoff, random=random, clock=clock)
        self._decoder = Decoder()
        self._messages: deque[SSEMessage] = deque()
        self._loss: LegatoError | None = None

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
        self._decoder = Decoder()
        self.broken = False
        return self._call

    def opened(self, headers: httpx2.Headers) -> None:
        """Take note of a good answer's head.

        Raises:
            StreamMalformed: what follows is no event stream.
        """
        kind = headers.get("content-type", "text/event-stream")
        if kind.partition(";")[0].strip().lower() != "text/event-stream":
            raise self._last(StreamMalformed(f"An event stream was expected, not {kind!r}.", content_type=kind))

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
            self._messages.extend(message for message in self._decoder.feed(b"\n\n") if _is_whole(message.data))
        except StreamFormatError:
            pass  # an unfinished event beyond all bounds was not going to count

    def items(self) -> Iterator[T]:
        """What has come for the caller.

        Raises:
            ProviderError: the answer failed, or cannot be used.
        """
        while self._messages and not self.ended:
            last = self._fold.last
            items = self._take(self._messages.popleft())
            if self._waits is not None and (items or self._fold.last != last):
                self._waits.progress()
            if len(items) > 1:
                yield from items[:-1]
            # Before the caller gets the last item, since it may stop there, or store how far it is.
            self.ended = self._fold.over
            self.sequence_number = self._fold.last
            if items:
                yield items[-1]
            if self._fold.failure and (self._fold.over or self._fold.impatient):
                raise self._last(self._fold.failure)
        if self.broken and self._loss is None and self._fold.enough and not self.ended:
            self._fold.done()
            self.ended = self._fold.over
            if self._fold.failure:
                raise self._last(self._fold.failure)

    def _take(self, message: SSEMessage) -> Sequence[T]:
        if message.data == DONE:
            # Whatever follows it, there is nothing more to come on this connection.
            self._messages.clear()
            self._fold.done()
            self.broken = not self._fold.over
            return []
        try:
            return self._fold.take(message)
        except ProviderError as exc:
            raise self._last(exc) from exc.__cause__

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
        return self._waits.next(error.retry_after if isinstance(error, APIError) else None)

    def _interrupted(self) -> ProviderError:
        if self._loss is None:
            return StreamInterrupted("The stream ended, but the answer in it had not.")
        error = provider_error(self._loss)
        if isinstance(error, StreamInterrupted | StreamMalformed):
            return error
        return StreamInterrupted(f"The answer could not be continued: {error.message}", reason=error.code)

    def _last(self, error: ProviderError) -> ProviderError:
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
    if data == DONE:
        return True
    try:
        return isinstance(msgspec.json.decode(data), dict)
    except (msgspec.MsgspecError, UnicodeError):
        return False
