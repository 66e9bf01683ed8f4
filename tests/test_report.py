"""The report of a torture: what was done to whom and who saw what, as JSON, as text and as a picture."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import msgspec
import pytest

from legato.errors import InvalidInput
from legato.torture.report import COLUMNS, Chart, write_chart

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


def test_other_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"\.json, \.txt, \.svg or \.html"):
        write_chart(chart(), tmp_path / "chart.png")
