"""The ``legato`` group: its help, its version and its commands."""

from __future__ import annotations

import keyword
from importlib import import_module

import click

import legato

from .failure import Commands, debug_option

_HOMES = {
    "backup": ".backup",
    "chat": ".chat",
    "config": ".config",
    "erase": ".data",
    "export": ".data",
    "gc": ".gc",
    "import": ".data",
    "keys": ".keys",
    "log": ".sessions",
    "migrate": ".migrate",
    "send": ".sessions",
    "serve": ".serve",
    "sessions": ".sessions",
    "tail": ".sessions",
    "torture": ".torture",
}
"""The commands, and where each is; that module is loaded when the command is named, or the help."""


class _Named(Commands):
    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name."""
        if cmd_name not in _HOMES:
            return None
        module = import_module(_HOMES[cmd_name], __package__)
        command = getattr(module, f"{cmd_name}_" if keyword.iskeyword(cmd_name) else cmd_name)
        assert isinstance(command, click.Command)
        return command


@click.group(
    "legato",
    cls=_Named,
    commands={name: click.Command(name) for name in _HOMES},  # their names alone count here
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(legato.__version__, message="legato %(version)s")
@debug_option
def group() -> None:
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
