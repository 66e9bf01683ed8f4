"""What a chunk of a model's stream costs its reader, in CPU: Legato's providers beside the clients of two model APIs.

A stand-in for the model (`support/model.py`) sends 50 answers at once, each with 30 chunks a second: as a server reads
that is paced by its models, one chunk at a time, with a core that is idle in between. A quiet machine needs less for
each, and a busy one more, so figures of one run are for comparison with each other. Rounds are interleaved; each client
has a process of its own in each round, and what it costs to start and to connect does not count.

"httpx2" is this checkout with httpx2's own transport under it. "bytes" counts what the event loop hands over, and looks
at none of it: nobody who reads on it costs less. "bare" has httptools and our decoder besides, and gives it to nobody.

    python benchmarks/provider_stream.py [--base CHECKOUT] [--rounds 3] [--seconds 2] [--rate 30] [--save]
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from typing import NamedTuple

from support.asking import BARE, CLIENTS
from support.sides import HERE, Report, Side, parser, sides

ANSWERS = 50
LOOPS = ("asyncio", "uvloop")
WIRES = {"ChatCompletions": "Chat Completions", "Responses": "Responses", "Anthropic": "Anthropic Messages"}


class Contender(NamedTuple):
    """Who reads: ``client`` is its name in ``support/asking.py``."""

    label: str
    side: Side
    client: str

    def cost(self, loop: str, port: str, seconds: float) -> float | None:
        """The microseconds of CPU for one chunk; None: it is not installed."""
        program = HERE / "support" / "asking.py"
        process = self.side.start(program, self.client, loop, port, str(ANSWERS), str(seconds))
        out, _ = process.communicate()
        return float(out.split()[0]) if process.returncode == 0 else None


def contenders(both: list[Side], wire: str) -> list[Contender]:
    this = both[0]
    others = [name for name in CLIENTS if name.endswith(wire) and not name.startswith(("legato", "library"))]
    return [
        *(Contender(f"legato, {side.name}", side, f"legato-{wire}") for side in both),
        Contender("legato, httpx2", this, f"library-{wire}"),
        *(Contender(name.partition("-")[0], this, name) for name in others),
        *(Contender(name, this, f"{name}-{wire}") for name in BARE),
    ]


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--seconds", type=float, default=2.0)
    options.add_argument("--rate", type=float, default=30, metavar="CHUNKS", help="a second, of each answer")
    asked = options.parse_args()
    both = sides(asked)
    report = Report("provider_stream", both)
    report.line(f"{ANSWERS} answers, {asked.rate:g} chunks/s each; median of {asked.rounds} rounds; us of CPU each")
    model = [sys.executable, str(HERE / "support" / "model.py"), str(asked.rate)]
    with subprocess.Popen(model, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            port = server.stdout.readline().strip()
            costs: dict[tuple[str, str, str], list[float]] = {}
            for _ in range(asked.rounds):
                for wire in WIRES:
                    for each in contenders(both, wire):
                        for loop in LOOPS:
                            cost = each.cost(loop, port, asked.seconds)
                            if cost is not None:
                                costs.setdefault((wire, each.label, loop), []).append(cost)
        finally:
            server.kill()
    for wire, title in WIRES.items():
        report.line(f"\n{title}\n\n{'':24}" + "".join(f"{loop:>12}{'ratio':>8}" for loop in LOOPS))
        for each in contenders(both, wire):
            row = f"{each.label:24}"
            for loop in LOOPS:
                if (wire, each.label, loop) not in costs:
                    row += f"{'-':>12}{'':8}"
                    continue
                mine = costs[wire, "legato, this", loop]
                theirs = costs[wire, each.label, loop]
                # Of each round by itself: the machine is not equally busy in all of them.
                ratio = statistics.median(other / own for other, own in zip(theirs, mine, strict=False))
                row += f"{statistics.median(theirs):12.1f}{ratio:8.2f}"
            report.line(row)
    if asked.save:
        report.save(asked.save)


if __name__ == "__main__":
    main()
