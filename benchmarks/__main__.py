"""All benchmarks, one after another, within bounds; the tables go to ``benchmarks/results``.

    python benchmarks [--base CHECKOUT] [--quick] [--only NAME ...]
    python benchmarks --pages

With ``--quick`` there is little of everything, in some minutes, and the results go to ``benchmarks/results/quick``,
which git does not know. Each benchmark can be run by itself, with more options: see its first lines.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from support.pages import write_pages

HERE = Path(__file__).resolve().parent
DEBIAN = {
    "libnginx-mod-nchan": "/usr/lib/nginx/modules/ngx_nchan_module.so",
    "redis-server": "/usr/bin/redis-server",
    "gcc": "/usr/bin/gcc",
    "libc6-dev": "/usr/include/stdio.h",
}
"""Packages, and what they bring."""


class Run(NamedTuple):
    """How a benchmark is run here.

    Attributes:
        whole, quick: its arguments.
        sides: whether it knows ``--base`` and ``--save``; else what it prints is its result.
    """

    whole: list[str]
    quick: list[str]
    sides: bool = True


RUNS = {
    "fan_out": Run(["--rounds", "2", "--seconds", "3"], ["--quick"]),
    "chat": Run(["--rounds", "2", "--seconds", "3"], ["--quick"]),
    "overload": Run([], ["--quick"]),
    "first_word": Run(["--busy", "100", "--messages", "200"], ["--busy", "20", "--messages", "30"]),
    "long_session": Run(["--messages", "10"], ["--messages", "5", "--lengths", "100", "1000"]),
    "memory": Run(["--seconds", "4"], ["--quick"]),
    "catch_up": Run([], ["--quick"]),
    "resume": Run(["--cases", "A"], ["--cases", "A", "--dialects", "mix"]),
    "stalled": Run(["--rounds", "1"], ["--quick"]),
    "codec": Run([], ["--rounds", "1"]),
    "sse_decode": Run([], ["--rounds", "1"], sides=False),
    "sqlite_append": Run(["--rounds", "3"], ["--rounds", "1", "--seconds", "0.2"]),
    "store_append": Run([], ["--rounds", "1", "--seconds", "0.3"], sides=False),
    "nodes": Run([], ["--quick"]),
    "operations": Run([], ["--quick"]),
    "start": Run(["--rounds", "10"], ["--rounds", "3"]),
    "sign_in": Run([], ["--rounds", "3", "--requests", "100", "--readers", "20"], sides=False),
    "long_answer": Run([], ["--size", "100000", "--kinds", "prose", "list"], sides=False),
    "provider_stream": Run(["--rounds", "2"], ["--rounds", "1", "--seconds", "1"]),
}
"""In this order; whatever else is there comes after them, without arguments."""


def install_peers() -> None:
    """The peers that are packages of Debian, if they may be installed; the benchmarks say what they do without."""
    missing = [package for package, program in DEBIAN.items() if not Path(program).exists()]
    if missing and os.geteuid() == 0 and shutil.which("apt-get"):
        print(f"Installing {', '.join(missing)}, to compare with.", flush=True)
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}  # 1: starts no service
        for command in (["update"], ["install", "-y", "--no-install-recommends", *missing]):
            subprocess.run(["apt-get", "-qq", *command], env=environment, stdout=subprocess.DEVNULL, check=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, metavar="CHECKOUT", help="another checkout, to run in turn with this one")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these benchmarks")
    parser.add_argument("--pages", action="store_true", help="write the results into the README and docs, and no more")
    options = parser.parse_args()
    if options.pages:
        write_pages()
        return
    install_peers()
    folder = HERE / "results" / ("quick" if options.quick else "")
    folder.mkdir(exist_ok=True)
    others = sorted({path.stem for path in HERE.glob("*.py")} - {"__main__", *RUNS})
    for name in options.only or [*RUNS, *others]:
        run = RUNS.get(name, Run([], [], sides=False))
        command = [sys.executable, str(HERE / f"{name}.py"), *(run.quick if options.quick else run.whole)]
        if run.sides:
            command += ["--save", str(folder)]
            command += ["--base", str(options.base)] if options.base else []
        print(f"\n== {name}\n", flush=True)
        begun = time.monotonic()
        done = subprocess.run(command, stdout=None if run.sides else subprocess.PIPE, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{name} failed.")
        if not run.sides:
            print(done.stdout, end="")
            (folder / f"{name}.txt").write_text(done.stdout)
        print(f"\n({name}: {time.monotonic() - begun:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
