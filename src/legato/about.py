"""What is being worked on, for lines in the log: which request, of whom, which run. It goes with the context of a task.

What serves many at once (the runner's own task, the end of a round) is about nobody, and begins in an empty context.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import NamedTuple


class About(NamedTuple):
    """Names, as far as they are known; empty ones are not.

    Attributes:
        request: the id of the request, also in what it began.
        owner: the subject of the caller.
        session, run: ids.
        trace: the span in which the request was sent, as it says (``traceparent``).
    """

    request: str = ""
    owner: str = ""
    session: str = ""
    run: str = ""
    trace: str = ""


ABOUT: ContextVar[About] = ContextVar("legato_about", default=About())  # noqa: B039  # it cannot be changed
"""What the running task is about."""
