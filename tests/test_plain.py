"""Names and questions of agents, on cards by which somebody decides: nothing in them reorders, hides or forges."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from legato.cli.text import line, safe

DOM = Path(__file__).parent.parent / "src" / "legato" / "web" / "dom.js"
UNSEEN = [0, 7, 0x1B, 0x7F, 0x85, 0x9B, 0x61C, 0x180E, 0x200B, 0x200E, 0x200F, 0x2028, 0x2029, *range(0x202A, 0x202F),
          *range(0x2060, 0x206A), 0xFEFF, 0xFFF9, 0xFFFB]  # fmt: skip
NAMES = [f"Ba{chr(code)}sh" for code in UNSEEN if code != 0x2065]


@pytest.mark.skipif(shutil.which("node") is None, reason="Needs Node.js; on Debian: apt-get install nodejs")
def test_elements_show_what_is_there() -> None:
    """Each such character is seen as one that is not text, and all else stays."""
    script = (
        f"import({json.dumps(DOM.as_uri())}).then((m) => console.log(JSON.stringify({json.dumps(NAMES)}.map(m.plain))))"
    )
    shown = json.loads(subprocess.run(["node", "-e", script], capture_output=True, check=True, text=True).stdout)
    assert shown == ["Ba\ufffdsh"] * len(NAMES)


def test_terminals_show_what_is_there() -> None:
    """As pictures of controls, as marks or, of a break, as a space; never as nothing."""
    for name in NAMES:
        assert safe(name) != "Bash"
        assert "Bash" not in line(name)
        assert name[2] not in line(name)
