"""The ``legato`` group: its help, its version and its commands."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

import click

from .chat import chat
from .failure import Commands, debug_option
from .serve import serve
from .sessions import log, send, sessions, tail


def _version() -> str:
    try:
        return version("legato")
    except PackageNotFoundError:  # run from a source tree that is not installed
        return "0 (not installed)"


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(_version(), message="legato %(version)s")
@debug_option
def legato() -> None:
    """Answers of AI agents, streamed without a gap.

    \b
    Quick start, in two terminals:
      legato serve                  the guide, an agent that needs no model
      legato chat                   talk to it

    \b
    Then a model:
      legato serve --model ollama:llama3.2

    \b
    Or your own agent, in agent.py:
      async def agent(turn):
          yield f"You said {turn.message.text!r}."
      legato serve agent.py
    """


for _command in (serve, chat, send, tail, log, sessions):
    legato.add_command(_command)
