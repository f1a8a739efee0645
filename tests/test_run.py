"""The runner of the whole suite: what it runs, counts and says, and that it leaves nothing when it is interrupted."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.run import INTERRUPTED, ROOT, SIDES, Side, run

OPTIONS = ("-c", os.devnull, "-p", "no:cacheprovider")
GOOD = "def test_good(): pass\n"
BAD = "def test_bad(): assert 1 == 2\n"
SKIPPED = "import pytest\ndef test_skipped(): pytest.skip('[missing: spoon] there is none. Buy one.')\n"
CRASH = "import os\ndef test_crash(): os._exit(3)\n"


def ran(tmp_path: Path, *texts: str) -> tuple[int, str]:
    """Exit status and output of a run with one side per text."""
    sides = {}
    for number, text in enumerate(texts):
        file = tmp_path / f"test_side{number}.py"
        file.write_text(text)
        sides[f"side{number}"] = (*OPTIONS, "--rootdir", str(tmp_path), str(file))
    said = io.StringIO()
    return run(sides, (), tmp_path / "out", said), said.getvalue()


@pytest.mark.slow
def test_the_sums_of_both_sides_are_told(tmp_path: Path) -> None:
    status, said = ran(tmp_path, GOOD, GOOD + SKIPPED)
    assert status == 0
    assert "side1: 1 passed, 0 failed, 1 skipped" in said
    assert "whole suite: 2 passed, 0 failed, 1 skipped\n  skipped for want of spoon: 1\n" in said


@pytest.mark.slow
@pytest.mark.parametrize("order", [(GOOD, BAD), (BAD, GOOD)])
def test_a_failure_on_either_side_is_a_failure(tmp_path: Path, order: tuple[str, str]) -> None:
    status, said = ran(tmp_path, *order)
    assert status == 1
    assert "assert 1 == 2" in said, "the log is shown"
    assert "whole suite: 1 passed, 1 failed, 0 skipped" in said


@pytest.mark.slow
def test_a_side_that_dies_is_a_failure(tmp_path: Path) -> None:
    status, said = ran(tmp_path, GOOD, CRASH)
    assert status == 1
    assert "FAILED with exit status 3" in said


@pytest.mark.slow
def test_a_side_without_tests_is_none_but_all_without_are(tmp_path: Path) -> None:
    assert ran(tmp_path, GOOD, "")[0] == 0
    assert ran(tmp_path, "", "")[0] == 1


@pytest.mark.slow
def test_interrupted_it_lets_both_sides_clean_up(tmp_path: Path) -> None:
    sides = {}
    for name in ("one", "two"):
        file = tmp_path / f"test_{name}.py"
        file.write_text(
            "import pathlib, time, pytest\n"
            "@pytest.fixture\n"
            "def thing():\n"
            f"    pathlib.Path({str(tmp_path / f'{name}.up')!r}).touch()\n"
            "    yield\n"
            f"    pathlib.Path({str(tmp_path / f'{name}.down')!r}).touch()\n"
            "def test_long(thing): time.sleep(600)\n"
        )
        sides[name] = (*OPTIONS, "--rootdir", str(tmp_path), str(file))
    code = "import sys; from pathlib import Path; from tests.run import run; "
    code += f"sys.exit(run({sides!r}, (), Path({str(tmp_path)!r}), sys.stdout))"
    runner = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
    try:
        end = time.monotonic() + 60
        while not all((tmp_path / f"{name}.up").exists() for name in sides):
            assert time.monotonic() < end, "the sides did not begin"
            time.sleep(0.05)
        runner.send_signal(signal.SIGTERM)
        assert runner.wait(60) == INTERRUPTED
    finally:
        runner.kill()
        runner.wait()
    assert all((tmp_path / f"{name}.down").exists() for name in sides)


def test_progress_counts_what_is_done_and_what_has_failed(tmp_path: Path) -> None:
    side = Side("side", ("--version",), tmp_path)
    assert side.process.wait(60) == 0
    side.log.write_text("....s...F.  [  7%]\n.E")
    assert side.progress == "side: 12 tests done, 2 failed"


def test_every_test_is_on_exactly_one_side() -> None:
    from _pytest.mark.expression import Expression

    expressions = [Expression.compile(selection[1]) for selection in SIDES.values()]
    for marks in (set(), {"docker"}, {"lab"}, {"docker", "lab"}, {"kubectl", "slow"}):
        assert sum(expression.evaluate(lambda name, marks=marks, **_: name in marks) for expression in expressions) == 1
