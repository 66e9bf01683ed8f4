"""Settings: the options of ``legato serve``, on the command line, in the environment, and in a file.

The table of settings is the command's own list of options, and a setting's other names follow from its option's:
``--allow-host`` is ``LEGATO_ALLOW_HOST`` in the environment, and ``allow-host`` in the file. So none of them can drift
from the others. What is said twice holds as it is said on the command line, else in the environment, else in the file.
"""

from __future__ import annotations

import difflib
import json
import math
import os
import re
import stat
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

import click
from click.core import ParameterSource

from ..addresses import HIDDEN, shown, shown_in
from .failure import Misuse
from .text import line

FILE = "legato.toml"
PREFIX = "LEGATO_"
OTHERS = {"LEGATO_CONFIG", "LEGATO_DEBUG", "LEGATO_KEY", "LEGATO_URL"}
"""Variables that are no settings."""
SAID = "legato.settings"
"""In a context's ``meta``: the name of the file that was read."""
NOT_OURS = re.compile(r"(?:tcp|udp|sctp)://")
"""What Kubernetes says in the environment of where a service is; of one called ``legato``, in ``LEGATO_PORT``."""
_SECRET = re.compile(r"(?:^|-)(?:secret|password|token|key)s?(?:$|-)")
NO_URLS = ("model", "instructions", "target")
"""Settings in which an ``@`` behind a colon says nothing, unless it is in a URL."""
NUMBER_OR_TEXT: click.ParamType[str] = click.types.StringParamType()
"""The type of an option whose text may be a number alone, such as a port; in a file it may be one, too."""


class Misset(Misuse):
    """Settings that are not what they must be, all of them at once: a line for each."""

    def __init__(self, faults: Iterable[str]) -> None:
        self.faults = [line(fault, None) for fault in faults]
        super().__init__(" ".join(self.faults))

    def show(self, file: IO[str] | None = None) -> None:
        """Write the lines."""
        for fault in self.faults:
            click.echo(f"legato: {fault}", file=file, err=file is None)


class Configured(click.Command):
    """A command whose options may also stand in the environment and in a file, which ``--config`` names."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if not any(param.name == "config" for param in self.params):
            self.params.append(_config_option())
        for key, param in settings(self).items():
            param.envvar = variable(key)


def _config_option() -> click.Option:
    return click.Option(
        ["--config"],
        metavar="FILE",
        envvar=f"{PREFIX}CONFIG",
        is_eager=True,
        expose_value=False,
        callback=_read,
        help="TOML file with settings: each option by its name, such as allow-host = ['chat.example.com']. All of them "
        f"may be in the environment, too: {PREFIX}ALLOW_HOST. `legato config` shows what holds.",
    )


def settings(command: click.Command) -> dict[str, click.Parameter]:
    """All settings of a command, by their names in the file."""
    return {key_of(param): param for param in command.params if param.expose_value and not param.is_eager}


def key_of(param: click.Parameter) -> str:
    """The name of a setting in the file."""
    if isinstance(param, click.Argument):
        return param.human_readable_name.lower()
    return max(param.opts, key=len).lstrip("-")


def variable(key: str) -> str:
    """The name of a setting in the environment."""
    return PREFIX + key.upper().replace("-", "_")


def said(ctx: click.Context, param: click.Parameter) -> str | None:
    """How it was said what holds: ``--cors``, ``LEGATO_CORS``, ``cors in legato.toml``; None if it was not."""
    where = source(ctx, param)
    return None if where == "default" else f"{key_of(param)} in {where}" if where == ctx.meta.get(SAID) else where


def source(ctx: click.Context, param: click.Parameter) -> str:
    """Where it was said what holds: an option, a variable, a file's name, or ``default``."""
    found = None if param.name is None else ctx.get_parameter_source(param.name)
    if found is ParameterSource.COMMANDLINE:
        return max(param.opts, key=len) if isinstance(param, click.Option) else "command line"
    if found is ParameterSource.ENVIRONMENT:
        return variable(key_of(param))
    return str(ctx.meta[SAID]) if found is ParameterSource.DEFAULT_MAP else "default"


def masked(key: str, value: object) -> Any:
    """``value`` as it may be shown: without passwords."""
    if isinstance(value, str):
        if value and _SECRET.search(key):
            return HIDDEN
        return shown_in(value) if key in NO_URLS else shown(value)
    return [masked(key, each) for each in value] if isinstance(value, list | tuple) else value


def toml(value: object) -> str:
    """A setting's value as TOML has it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return f"{value:g}" if isinstance(value, float) else str(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(toml, value))}]"
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")


# What is read ---------------------------------------------------------------------------------------------------------


def _read(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Read the file and look at the environment, as a whole, before anything else is done with them.

    Raises:
        Misset: something in them is not what it must be.
    """
    known = settings(ctx.command)
    odd, faults = _of_environment(ctx, known)
    if value is not None:
        ctx.meta[SAID] = value
        try:
            content, mode = _content(Path(value))
        except ValueError as exc:
            raise Misset([*faults, f"{value}: {exc}"]) from exc
        found: dict[str, object] = {}
        for name, each in content.items():
            given = known.get(name.replace("_", "-"))
            if given is None or given.name is None:
                faults.append(f"{value}: {name}: there is no such setting{_meant(name, known, 0.6) or '.'}")
            elif given.name in found:
                faults.append(f"{value}: {name}: it is said twice, also as {key_of(given)}.")
            elif (fault := _fault(ctx, given, each, typed=True)) is not None:
                faults.append(f"{value}: {name}: {fault}")
            else:
                found[given.name] = [each] if _is_repeated(given) and not isinstance(each, list) else each
            if mode & stat.S_IROTH and masked(name, each) != each:
                odd.append(f"{value} has a password, and anybody on this machine can read it: chmod o-r {value}")
        ctx.default_map = {**(ctx.default_map or {}), **found}
    elif Path(FILE).is_file():
        odd.append(f"{FILE} is not read; --config {FILE} reads it.")
    if faults:
        raise Misset(faults)
    for text in odd:
        click.echo(f"legato: {line(text, None)}", err=True)
    return value


def _of_environment(ctx: click.Context, known: Mapping[str, click.Parameter]) -> tuple[list[str], list[str]]:
    """What is odd about variables, and what is wrong with them."""
    odd, faults = [], []
    names = {variable(key): param for key, param in known.items()}
    for name, param in names.items():
        raw = os.environ.get(name)
        if raw and NOT_OURS.match(raw) and key_of(param) == "port":
            del os.environ[name]
        elif raw and (fault := _fault(ctx, param, param.value_from_envvar(ctx), typed=False)) is not None:
            faults.append(f"{name}: {fault}")
    for name in os.environ:
        if name.startswith(PREFIX) and name not in {*names, *OTHERS} and (meant := _meant(name, names, 0.9)):
            odd.append(f"{name} is no setting{meant}")
    return odd, faults


def _content(path: Path) -> tuple[dict[str, object], int]:
    """What a file says, and its mode.

    Raises:
        ValueError: it cannot be read, it is not TOML, or it is not to be trusted.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode if os.name == "posix" else 0
            if mode & stat.S_IWOTH and stat.S_ISREG(mode):
                raise ValueError(f"anybody on this machine can change it, and so what is served: chmod o-w {path}")
            return tomllib.loads(file.read().decode()), mode
    except OSError as exc:
        raise ValueError(f"it cannot be read: {exc.strerror}.") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise ValueError(f"expected TOML such as port = 8088, got something else: {exc}.") from exc


def _is_repeated(param: click.Parameter) -> bool:
    return isinstance(param, click.Option) and param.multiple


def _fault(ctx: click.Context, param: click.Parameter, value: object, *, typed: bool) -> str | None:
    """What is wrong with a value; None if nothing is. ``typed``: it is TOML's, and a number is no text."""
    for each in value if _is_repeated(param) and isinstance(value, list | tuple) else [value]:
        try:
            if not typed or _fits(param.type, each):
                made = param.type_cast_value(ctx, [each] if _is_repeated(param) else each)
                if not isinstance(made, float) or math.isfinite(made):
                    continue
        except click.BadParameter:
            pass
        return f"expected {expected(param)}, got {_shown(key_of(param), each)}."
    return None


def _fits(kind: click.ParamType[object], value: object) -> bool:
    """Whether a value of TOML is of a type, which click would make of nearly anything."""
    if isinstance(kind, click.types.BoolParamType):
        return isinstance(value, bool)
    if isinstance(kind, click.types.IntParamType):
        return isinstance(value, int) and not isinstance(value, bool)
    if isinstance(kind, click.types.FloatParamType):
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is NUMBER_OR_TEXT and isinstance(value, int) and not isinstance(value, bool):
        return True
    return isinstance(value, str) and "\0" not in value


def _shown(key: str, value: object) -> str:
    if isinstance(value, dict | list):
        return "a table" if isinstance(value, dict) else "a list"
    text = toml(masked(key, value)) if isinstance(value, str | bool | int | float) else str(value)
    return text if len(text) <= 100 else f"{text[:99]}…"


def expected(param: click.Parameter) -> str:
    """What a setting's value must be, for people."""
    one = _expected(param.type)
    return f"{one}, or a list of such" if isinstance(param, click.Option) and param.multiple else one


def _expected(kind: click.ParamType[object]) -> str:
    if isinstance(kind, click.types.BoolParamType):
        return "true or false"
    if isinstance(kind, click.IntRange | click.FloatRange):
        what = "a whole number" if isinstance(kind, click.IntRange) else "a number"
        least, most = kind.min, kind.max
        if most is None:
            return what if least is None else f"{what}, {least:g} or more"
        return f"{what} from {least or 0:g} to {most:g}"
    if isinstance(kind, click.types.IntParamType | click.types.FloatParamType):
        return "a number"
    if isinstance(kind, click.Choice):
        return f"one of {', '.join(map(str, kind.choices))}"
    if isinstance(kind, click.Path):
        return f"the path of {'a folder' if not kind.file_okay else 'a file'}{' that exists' if kind.exists else ''}"
    return "a whole number or text" if kind is NUMBER_OR_TEXT else "text"


def _meant(name: str, known: Iterable[str], cutoff: float) -> str:
    near = difflib.get_close_matches(name.replace("_", "-") if name.islower() else name, known, 1, cutoff)
    return f"; did you mean {near[0]}?" if near else ""
