"""The report of a torture: what was done to whom and who saw what, as JSON, as text and as a picture."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import msgspec
import pytest

from legato.errors import InvalidInput
from legato.torture.report import (
    COLUMNS,
    ENTRY,
    MARKED,
    SIGNS,
    SPANS,
    WIDTH,
    Chart,
    ReportFailed,
    check_name,
    write_chart,
    write_report,
)

SVG = "{http://www.w3.org/2000/svg}"


def chart() -> Chart:
    drawn = Chart("two nodes, one of them killed")
    drawn.span("node 1", 0, 4, "up")
    drawn.span("node 1", 4, 10, "down")
    drawn.mark("node 1", 4, "kill", 'while it said <"x"> & \x00')
    for at in range(10):
        drawn.level("log", at, 10 * at, "offset")
        drawn.mark("reader 1", at, "seen")
        drawn.level("reader 1", at, 9 * at, "offset")
    drawn.figures["lost"] = 0
    return drawn


def test_a_lane_is_there_once_in_the_order_of_its_coming() -> None:
    assert chart().lanes == ["node 1", "log", "reader 1"]


def test_a_text_shows_each_lane_and_what_was_done() -> None:
    lines = chart().lines()

    node = next(line for line in lines if line.startswith("node 1"))
    assert node.count("=") == pytest.approx(COLUMNS * 0.4, abs=2)
    assert node.count("X") == 1
    assert any("4.000 s" in line and "kill while it said" in line for line in lines)


def test_a_picture_is_whole_and_needs_nothing_else() -> None:
    drawn = chart()
    drawn.faults.append("a < b")

    root = ElementTree.fromstring(drawn.svg())
    assert {each.text for each in root.iter(f"{SVG}text")} >= {"node 1", "log", "reader 1", "kill", "up"}
    assert "href" not in drawn.svg()
    hints = [each.text or "" for each in root.iter(f"{SVG}title")]
    assert any("kill" in hint and '<"x"> & ' in hint for hint in hints)
    lines = [each.attrib["d"] for each in root.iter(f"{SVG}path") if each.attrib.get("class") == "l"]
    assert len(lines) == 2


@pytest.mark.parametrize(
    ("end", "first", "last"),
    [(0.001, 0.0001, 0.001), (21.967, 5, 20), (60, 10, 60), (198.9, 20, 180), (86_400, 10_000, 80_000)],
)
def test_an_axis_has_round_numbers(end: float, first: float, last: float) -> None:
    """However long it took; and none of them is beyond the end, where it would be cut off."""
    drawn = Chart("so long")
    drawn.mark("node 1", end, "end")

    said = [each.text or "" for each in ElementTree.fromstring(drawn.svg()).iter(f"{SVG}text")]
    ticks = [float(text[:-2]) for text in said if text.endswith(" s") and text[0].isdigit()]
    assert ticks[0] == 0
    assert ticks[1] == pytest.approx(first)
    assert ticks[-1] == pytest.approx(last)


def test_each_kind_is_told_from_the_others() -> None:
    """A span and a mark of one name, too; and all of them are within the picture."""
    drawn = Chart("all kinds")
    for at, kind in enumerate(SPANS):
        drawn.span("node 1", at, at + 1, kind)
    for at, kind in enumerate(MARKED):
        drawn.mark("node 1", at, kind)

    root = ElementTree.fromstring(drawn.svg())
    legend = [each for each in root.iter(f"{SVG}text") if each.text in {*SPANS, *MARKED}]
    assert sorted(str(each.text) for each in legend) == sorted([*SPANS, *MARKED])
    assert all(float(each.attrib["x"]) < WIDTH - ENTRY for each in legend)
    assert set(SIGNS) >= set(MARKED) - {"seen"}


def test_an_empty_chart_is_one_too() -> None:
    ElementTree.fromstring(Chart("nothing").svg())
    assert Chart("nothing").lines()[0] == "nothing"


def test_json_has_all(tmp_path: Path) -> None:
    write_chart(chart(), tmp_path / "chart.json")

    assert msgspec.json.decode((tmp_path / "chart.json").read_bytes(), type=Chart) == chart()


@pytest.mark.parametrize(("name", "begins"), [("a.txt", "two nodes"), ("a.svg", "<svg"), ("a.HTML", "<!doctype")])
def test_the_name_of_a_file_says_what_it_is(tmp_path: Path, name: str, begins: str) -> None:
    write_chart(chart(), tmp_path / name)

    assert (tmp_path / name).read_text("utf-8").startswith(begins)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("chart.png", r"\.json, \.txt, \.svg or \.html"),
        ("no/chart.svg", "no folder"),
        ("folder.svg", "cannot be written"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path: Path, name: str, wrong: str) -> None:
    """Before there is anything to write, which may take a day."""
    (tmp_path / "folder.svg").mkdir()

    with pytest.raises(InvalidInput, match=wrong):
        check_name(tmp_path / name)


def test_a_disk_that_is_full_is_an_error() -> None:
    with pytest.raises(ReportFailed, match="No space left"):
        write_report(Path("/dev/full"), b"x" * 10_000)
