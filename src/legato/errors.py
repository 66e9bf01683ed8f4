"""Every error Legato raises, in one tree.

    LegatoError                     the root: ``code`` for programs, ``status`` for HTTP, ``detail`` for data
    |-- InvalidInput        400     you sent something that cannot be used as it is
    |   |-- FrameError      400     CR, LF or NUL where it would forge a frame
    |   |-- CursorInvalid   400     a cursor that is not of the dialect's form
    |   `-- IllegalTransition       a run was asked to do what its state forbids
    |-- Unauthorized        401     the server wants to know who asks, or does not believe it
    |-- Forbidden           403     the application does not let you
    |   `-- ScopeMissing    403     what you signed in with is not good for this
    |-- NotFound            404
    |   |-- SessionNotFound 404
    |   |-- RunNotFound     404
    |   |-- BlobNotFound    404     the session refers to no such bytes
    |   |   `-- BlobLost    404     it does, and they are not where they were, or not what they were
    |   `-- AskNotFound     404     a permission or notification that is unknown or already answered
    |-- Conflict            409
    |   |-- SessionExists   409
    |   |-- KeyReused       409     the same idempotency key with another body
    |   |-- QueueFull       409     too many messages already wait in this session
    |   |-- SessionFull     409     the session has all that one may have
    |   |-- HeadMoved       409     the log has grown since the caller read it
    |   |-- RunInProgress   409     the run has not ended yet
    |   |-- RunEnded        409     the run has had its terminal event
    |   |-- StaleLease      409     a newer owner writes this run
    |   `-- LeaseHeld       409     somebody else owns this run until ``expires_at``
    |-- TooLarge            413     a body, an event or a run beyond its limit
    |-- UnsupportedEncoding 415     a body that is compressed
    |-- UnsupportedType     415     a body that does not call itself JSON
    |-- TooMany             429     streams or runs beyond their limit
    |   |-- TooFast         429     messages faster than their limit
    |   |-- QuotaSpent      429     what one owner may have in a day has been had
    |   `-- QuotaRefused    429     the application's own rule refused it
    |-- Draining            503     the server is shutting down; try again elsewhere
    |-- Overloaded          503     the server has too much to do; try again later
    |-- StoreError          500     the store could not do it; nothing was written
    |   |-- StoreLocked     500     another process has this file open
    |   |-- StoreBusy       503     another program has locked the file; try again later
    |   |-- StoreLost       503     the file is not where it was
    |   |-- StoreSilent     503     the store does not answer
    |   |-- BlobsAway       503     the folder or bucket of blobs does not answer, or nobody says where it is
    |   |-- StoreReadOnly   500
    |   |-- StoreFull       507     the disk is full
    |   |-- StoreCorrupt    500
    |   `-- StoreVersion    500     written by a newer Legato
    |-- AgentError          502     raised by agents: its code and message are safe to show to users
    |-- StreamFormatError           bytes that are not a usable event stream (SSE, JSON)
    `-- ClientError                 raised by the SDK, see ``legato.client``

*Local* errors (you broke it) are ``InvalidInput`` and ``Conflict``; *remote* ones (they broke it) are the rest.
Callers branch on the class or on ``code``, never on the text.
"""

from __future__ import annotations

from typing import Any, ClassVar


class LegatoError(Exception):
    """The root of all errors that Legato raises on purpose.

    Attributes:
        code: a stable machine-readable word, for example ``"session_not_found"``.
        status: the HTTP status that a server answers with.
        message: what was expected and what came, for a person.
        detail: the data behind the message (``offset``, ``owner``, ``limit`` ...), safe to show; without ``bound``.
        stored: what the request sent is in the log all the same; sent again without a key, it would be there twice.
        bound: the name of the limit that was passed, see ``bounds.BOUNDS``; "" if it was none.
        retry_after: seconds after which it may go better, where that is known.
        loggable: the message has nothing of what people, models and tools say: any log may have it, see ``logs``.
    """

    code: str = "error"
    status: ClassVar[int] = 500
    loggable: ClassVar[bool] = False
    stored: bool = False
    bound: str = ""
    retry_after: float | None = None

    def __init__(self, message: str = "", **detail: Any) -> None:
        super().__init__(message)
        self.message = message
        if "bound" in detail:
            self.bound = detail.pop("bound")
        self.detail = detail


class InvalidInput(LegatoError):
    """Something was sent that cannot be used as it is; nothing was changed."""

    code = "invalid_input"
    status = 400


class FrameError(InvalidInput, ValueError):
    """CR, LF or NUL stood where it would forge an SSE frame."""

    code = "frame_forged"


class CursorInvalid(InvalidInput):
    """A cursor was not of the form that its dialect writes."""

    code = "cursor_invalid"


class IllegalTransition(InvalidInput):
    """A run was asked to do what its state forbids."""

    code = "illegal_transition"


class Unauthorized(LegatoError):
    """Nobody has said who asks, or in a way that does not count (any more). It is the same for all ways."""

    code = "unauthorized"
    status = 401

    def __init__(self, message: str = "Sign in: this server wants to know who asks.") -> None:
        super().__init__(message)


class Forbidden(LegatoError):
    """The application does not let this caller do it. Of what is another's it is never said: that is not found."""

    code = "forbidden"
    status = 403


class ScopeMissing(Forbidden):
    """What the caller signed in with is not good for this, whosever it is."""

    code = "scope_missing"

    def __init__(self, scope: str) -> None:
        super().__init__(f"This takes the scope {scope!r}, which what you signed in with does not have.", scope=scope)


class NotFound(LegatoError):
    """There is no such thing, or it is not yours to see."""

    code = "not_found"
    status = 404


class SessionNotFound(NotFound):
    """There is no such session: it never was, or it has been deleted."""

    code = "session_not_found"

    def __init__(self, session: str) -> None:
        super().__init__(f"There is no session {session[:128]!r}.", session=session[:128])


class RunNotFound(NotFound):
    """There is no such run in the session, or its answer is no part of the conversation any more."""

    code = "run_not_found"

    def __init__(self, run: str) -> None:
        super().__init__(f"There is no run {run[:200]!r}.", run=run[:200])


class BlobNotFound(NotFound):
    """The session refers to no such bytes."""

    code = "blob_not_found"


class BlobLost(BlobNotFound):
    """The session refers to bytes that are not where they were put, or are not what was put there."""

    code = "blob_lost"


class AskNotFound(NotFound):
    """The permission or notification is unknown, or it has been answered already."""

    code = "ask_not_found"


class Conflict(LegatoError):
    """The request fits, but not the present state; nothing was changed."""

    code = "conflict"
    status = 409


class SessionExists(Conflict):
    """A session of this id exists, or existed: ids are not used twice."""

    code = "session_exists"


class KeyReused(Conflict):
    """The same idempotency key came with another body."""

    code = "idempotency_key_reused"


class QueueFull(Conflict):
    """Too many messages already wait for their turn in this session."""

    code = "queue_full"


class SessionFull(Conflict):
    """The session has as many events, bytes or runs as one may have; go on in another."""

    code = "session_full"


class HeadMoved(Conflict):
    """The log has grown since it was read, so what was to be appended on the strength of that was refused whole."""

    code = "head_moved"


class RunInProgress(Conflict):
    """The run has not ended yet, and what was asked for needs its end."""

    code = "run_in_progress"


class RunEnded(Conflict):
    """The run has had its terminal event, or there is no such run in this session."""

    code = "run_ended"


class StaleLease(Conflict):
    """A newer owner writes this run; what was to be appended was refused whole."""

    code = "stale_lease"


class LeaseHeld(Conflict):
    """Somebody else owns the run, or an earlier run of the session is not over."""

    code = "lease_held"


class TooLarge(LegatoError):
    """A body, an event or a run is beyond its limit."""

    code = "too_large"
    status = 413


class UnsupportedEncoding(LegatoError):
    """A body is compressed, or coded otherwise; JSON as it is, is expected."""

    code = "unsupported_encoding"
    status = 415


class UnsupportedType(LegatoError):
    """A request that changes something says that its body is no JSON."""

    code = "unsupported_type"
    status = 415


class TooMany(LegatoError):
    """More streams or runs at once than the limit allows; try again later."""

    code = "too_many"
    status = 429


class TooFast(TooMany):
    """Messages came faster than the limit lets them."""

    code = "too_fast"

    def __init__(self, message: str, *, after: float, **detail: object) -> None:
        super().__init__(message, **detail)
        self.retry_after = after


class QuotaSpent(TooFast):
    """What one owner may have in a window of time has been had; there is more when the next one begins."""

    code = "quota_spent"


class QuotaRefused(TooMany):
    """The application's ``quota`` refused it; the text is the application's, and shown to users."""

    code = "quota_refused"
    bound = "quota"


class Draining(LegatoError):
    """The server is shutting down and takes no new messages; try again, here or elsewhere."""

    code = "draining"
    status = 503


class Overloaded(LegatoError):
    """The server has too much to do and takes no new messages for the moment; what it has begun goes on."""

    code = "overloaded"
    status = 503


class StoreError(LegatoError):
    """The store could not do it. What was to be appended was not written, whole or in part.

    Attributes:
        told: what callers are told of it; ``message`` may name files, and is for the server's log: no content is in it.
    """

    code = "store_failed"
    loggable = True
    told: ClassVar[str] = "The server's store failed; the server's log says why."


class StoreLocked(StoreError):
    """Another process has this file open, or this one has already (then ``detail["ours"]`` is true)."""

    code = "store_locked"


class StoreBusy(StoreError):
    """Another program has locked the file for longer than one waits; try again later."""

    code = "store_busy"
    status = 503
    told = "The server's store is in use by another program; try again later."


class StoreLost(StoreError):
    """The file has been moved, removed or cut while it was in use, so nothing is stored until it is back."""

    code = "store_lost"
    status = 503
    told = "The server's store is away, and nothing is stored until it is back; try again later."


class StoreSilent(StoreError):
    """The store has not answered within the time that it has."""

    code = "store_silent"
    status = 503
    told = "The server's store does not answer; try again later."


class BlobsAway(StoreError):
    """The folder or bucket with blobs cannot be reached, or this process was not told where it is."""

    code = "blobs_away"
    status = 503
    told = "The server cannot reach what was sent along with messages; try again later."


class StoreReadOnly(StoreError):
    """The file or its folder cannot be written."""

    code = "store_read_only"
    told = "The server's store cannot be written; the server's log says why."


class StoreFull(StoreError):
    """The disk is full."""

    code = "store_full"
    status = 507
    told = "The server's disk is full; what was acknowledged is safe."


class StoreCorrupt(StoreError):
    """The file is not a database, or it is damaged."""

    code = "store_corrupt"
    told = "The server's store is damaged; the server's log says where."


class StoreVersion(StoreError):
    """The file was written by a newer version of Legato."""

    code = "store_version"


class AgentError(LegatoError):
    """Raised by an agent to end its run as failed; ``code`` and ``message`` are shown to users as they are.

    Any other exception is shown as ``agent_error`` with a general sentence, its text only in the server's log.
    """

    code = "agent_error"
    status = 502

    def __init__(self, message: str, *, code: str = "agent_error", **detail: object) -> None:
        super().__init__(message, **detail)
        self.code = code


class StreamFormatError(LegatoError):
    """Bytes that are not a usable event stream: beyond a bound, or not of the documented form."""

    code = "stream_malformed"
    status = 502
