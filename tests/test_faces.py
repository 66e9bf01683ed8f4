"""Each face for threads is what its twin for asyncio makes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import faces


@pytest.mark.parametrize("source", faces.FACES, ids=lambda path: path.parent.name)
def test_the_made_face_is_what_is_there(source: Path) -> None:
    """Nobody changed the one and not the other; ``make faces`` writes it."""
    assert faces.made(source) == faces.target(source).read_text("utf-8")


def test_every_rule_is_used() -> None:
    """A phrase that was reworded must be reworded in the rules, too."""
    source = "".join(path.read_text("utf-8") for path in faces.FACES)

    assert [words for words, _ in faces.WORDS if words not in source] == []
    assert [pattern for pattern, _ in faces.CODE if not re.search(pattern, source)] == []


def test_a_difference_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """The check names the file and what to do; writing it mends it."""
    source = tmp_path / "aio.py"
    source.write_text("async def go() -> None:\n    await AsyncThing().aclose()\n", "utf-8")
    source.with_name("sync.py").write_text("", "utf-8")
    monkeypatch.setattr(faces, "FACES", [source])
    monkeypatch.setattr(faces, "ROOT", tmp_path)

    assert 1 == faces.main(["--check"])
    assert "sync.py is not what aio.py beside it makes. Change aio.py, and run: make faces\n" == capsys.readouterr().out
    assert 0 == faces.main([])
    assert 0 == faces.main(["--check"])
    assert f"{faces.HEAD}def go() -> None:\n    Thing().close()\n" == source.with_name("sync.py").read_text("utf-8")
