"""What tests need of the machine besides Python packages: found, or installed from Debian's packages where we may."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess

import pytest

from venvs import one_process

SYSTEM = "/usr/sbin:/usr/local/sbin:/sbin"


@functools.cache  # a failure too: one slow attempt per test run, not one per test
def program(package: str, *names: str) -> str:
    """The path of a program, by the first of ``names`` (the package's own by default) that is there.

    Installs the package first where that needs no password; skips the test, saying what is missing, if that fails.
    """
    names = names or (package,)
    found = _find(names)
    if found is None and (prefix := _root()) is not None and shutil.which("apt-get"):
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        with one_process("apt"):  # of the tests; it does not wait for another of its kind
            found = _find(names)
            for command in (["apt-get", "update"], ["apt-get", "install", "-y", "--no-install-recommends", package]):
                if found is None:
                    subprocess.run([*prefix, *command], env=environment, capture_output=True, timeout=600)
            found = _find(names)
    if found is None:
        pytest.skip(f"{names[0]} is missing and could not be installed; on Debian: apt-get install {package}")
    return found


def _find(names: tuple[str, ...]) -> str | None:
    path = f"{os.environ.get('PATH', '')}:{SYSTEM}"
    return next((found for name in names if (found := shutil.which(name, path=path))), None)


def _root() -> list[str] | None:
    """What to put before a command that only root may run; None if we cannot."""
    if os.geteuid() == 0:
        return []
    sudo = shutil.which("sudo")
    if sudo and subprocess.run([sudo, "-n", "true"], capture_output=True).returncode == 0:
        return [sudo, "-n"]
    return None
