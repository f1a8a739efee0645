"""The benchmarks run, and say what they promise to say. No figure is judged here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.benchmarks import __main__ as program
from tests.benchmarks import packing
from tests.benchmarks.measuring import Effort, Figure, Goal, Spread, table

STARTS_PROCESSES = ("B8", "B9", "B10")
NAMES = [pytest.param(name, marks=pytest.mark.slow if name in STARTS_PROCESSES else ()) for name in sorted(program.BENCHMARKS)]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_leaves_its_figures_with_their_goals(name: str, tmp_path: Path) -> None:
    figures = program.run([name], Effort.quick(), tmp_path)
    written = json.loads((tmp_path / f"{name}.json").read_text())
    assert written["benchmark"] == name
    assert written["sizes_divided_by"] == Effort.quick().part
    assert written["machine"]["fsync_ms"]["median"] >= 0
    assert len(written["figures"]) == len(figures) > 0
    for figure in written["figures"]:
        assert figure["benchmark"] == name
        spread = figure["value"]
        assert 0 < spread["lowest"] <= spread["median"] <= spread["highest"]
        assert (figure["goal"] is None) == (figure["verdict"] == "")
    assert any(figure["goal"] is not None for figure in written["figures"])
    lines = table(figures).splitlines()
    assert len(lines) == len(figures) + 1
    assert all(line.startswith(name) for line in lines[1:])


def test_the_verdict_says_by_how_much_a_goal_is_missed() -> None:
    assert Goal(">=", 100).verdict(100) == "reached"
    assert Goal(">=", 100).verdict(75) == "missed by 25%"
    assert Goal("<=", 1.2).verdict(1.2) == "reached"
    assert Goal("<=", 1.2).verdict(1.5) == "missed by 25%"
    assert Figure("B0", "", "x", Spread.of([1.0])).verdict == ""


def test_an_unknown_benchmark_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        program.main(["B1", "B99"])
    assert "there is no benchmark B99" in capsys.readouterr().err


def test_no_schedule_is_shorter_than_the_lower_bound() -> None:
    nodes, pending, durations = packing.work(3, 60, 4)
    least = packing.lower_bound_s(nodes, pending, durations)
    assert packing.first_in_first_out_s(nodes, pending, durations) >= least
    assert least >= max(durations.values())
