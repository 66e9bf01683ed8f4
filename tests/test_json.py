"""Types that several threads read JSON as: msgspec learns them once, and nobody uses what is half learnt."""

from __future__ import annotations

import subprocess
import sys

RACE = """
import sys, threading
import msgspec
from legato.json import known

sys.setswitchinterval(1e-6)
TYPES = '''
class Leaf(msgspec.Struct, tag="leaf"):
    text: str
    more: "list[Leaf | Node]" = []
class Node(msgspec.Struct, tag="node"):
    leaf: "Leaf | None" = None
    names: "dict[str, int] | None" = None
class One(msgspec.Struct):
    parts: "list[Leaf | Node]"
class Two(msgspec.Struct):
    parts: "list[Leaf | Node]"
'''
JSON = b'{"parts":[{"type":"leaf","text":"a","more":[{"type":"node","names":{"b":1}}]},{"type":"node"}]}'
wrong = []

def read(kind, begin):
    begin.wait()
    try:
        msgspec.json.decode(JSON, type=known(kind))
    except Exception as exc:
        wrong.append(exc)

for _ in range(int(sys.argv[1])):
    made = {"msgspec": msgspec, "__name__": "__main__"}
    exec(TYPES, made)
    sys.modules["__main__"].__dict__.update(made)
    begin = threading.Barrier(4)
    threads = [threading.Thread(target=read, args=(made[name], begin)) for name in ("One", "Two") * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
print(wrong)
"""


def test_threads_that_read_a_type_for_the_first_time() -> None:
    """At once, of two types that have a third in common: without ``known`` this ends the process."""
    done = subprocess.run([sys.executable, "-c", RACE, "300"], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


def test_a_part_is_known_before_it_is_read_in_threads() -> None:
    """All that a log is made of is learnt when the module is loaded, by one thread."""
    program = (
        "import msgspec; from legato import event, json, part\n"
        "kinds = [*event.EVENTS.values(), *part.PARTS.values(), part.Usage]\n"
        "print([kind.__name__ for kind in kinds if kind not in json._known])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout == "[]\n"
