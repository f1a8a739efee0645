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

from tests.run import INTERRUPTED, LANES, ROOT, Part, run

OPTIONS = ("-c", os.devnull, "-p", "no:cacheprovider")
GOOD = "def test_good(): pass\n"
BAD = "def test_bad(): assert 1 == 2\n"
SKIPPED = "import pytest\ndef test_skipped(): pytest.skip('[missing: spoon] there is none. Buy one.')\n"
CRASH = "import os\ndef test_crash(): os._exit(3)\n"


def lane(tmp_path: Path, **texts: str) -> dict[str, tuple[str, ...]]:
    """One with a part per text."""
    parts = {}
    for name, text in texts.items():
        file = tmp_path / f"test_{name}.py"
        file.write_text(text)
        parts[name] = (*OPTIONS, "--rootdir", str(tmp_path), str(file))
    return parts


def ran(tmp_path: Path, *lanes: dict[str, tuple[str, ...]]) -> tuple[int, str]:
    """Exit status and output."""
    said = io.StringIO()
    return run(lanes, (), tmp_path / "out", said), said.getvalue()


@pytest.mark.slow
def test_the_sums_of_all_parts_are_told(tmp_path: Path) -> None:
    status, said = ran(tmp_path, lane(tmp_path, one=GOOD), lane(tmp_path, two=GOOD + SKIPPED))
    assert status == 0
    assert "two: 1 passed, 0 failed, 1 skipped" in said
    assert "whole suite: 2 passed, 0 failed, 1 skipped\n  skipped for want of spoon: 1\n" in said


@pytest.mark.slow
def test_parts_of_a_lane_run_one_after_another_whatever_becomes_of_them(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    first = f"import pathlib\ndef test_first():\n    pathlib.Path({str(mark)!r}).touch()\n    assert 1 == 2\n"
    then = f"import pathlib\ndef test_then(): assert pathlib.Path({str(mark)!r}).exists()\n"
    status, said = ran(tmp_path, lane(tmp_path, first=first, then=then))
    assert status == 1
    assert "whole suite: 1 passed, 1 failed, 0 skipped" in said


@pytest.mark.slow
@pytest.mark.parametrize("order", [(GOOD, BAD), (BAD, GOOD)])
def test_a_failure_of_either_is_a_failure(tmp_path: Path, order: tuple[str, str]) -> None:
    status, said = ran(tmp_path, lane(tmp_path, one=order[0]), lane(tmp_path, two=order[1]))
    assert status == 1
    assert "assert 1 == 2" in said, "the log is shown"
    assert "whole suite: 1 passed, 1 failed, 0 skipped" in said


@pytest.mark.slow
def test_a_part_that_dies_is_a_failure(tmp_path: Path) -> None:
    status, said = ran(tmp_path, lane(tmp_path, one=GOOD, two=CRASH))
    assert status == 1
    assert "FAILED with exit status 3" in said


@pytest.mark.slow
def test_a_part_without_tests_is_none_but_all_without_are(tmp_path: Path) -> None:
    assert ran(tmp_path, lane(tmp_path, one=GOOD), lane(tmp_path, two=""))[0] == 0
    assert ran(tmp_path, lane(tmp_path, one=""), lane(tmp_path, two=""))[0] == 1


@pytest.mark.slow
@pytest.mark.parametrize("end_with", [signal.SIGTERM, signal.SIGINT])
def test_interrupted_it_lets_what_runs_clean_up(tmp_path: Path, end_with: signal.Signals) -> None:
    lanes = []
    for name in ("one", "two"):
        text = (
            "import pathlib, time, pytest\n"
            "@pytest.fixture\n"
            "def thing():\n"
            f"    pathlib.Path({str(tmp_path / f'{name}.up')!r}).touch()\n"
            "    yield\n"
            f"    pathlib.Path({str(tmp_path / f'{name}.down')!r}).touch()\n"
            "def test_long(thing): time.sleep(600)\n"
        )
        lanes.append(lane(tmp_path, **{name: text, f"never_{name}": GOOD}))
    code = "import sys; from pathlib import Path; from tests.run import run; "
    code += f"sys.exit(run({lanes!r}, (), Path({str(tmp_path)!r}), sys.stdout))"
    in_the_background = ["sh", "-c", "trap '' INT; exec \"$@\"", "sh"]
    command = [*in_the_background, sys.executable, "-c", code]
    runner = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
    try:
        end = time.monotonic() + 60
        while not all((tmp_path / f"{name}.up").exists() for name in ("one", "two")):
            assert time.monotonic() < end, "they did not begin"
            time.sleep(0.05)
        runner.send_signal(end_with)
        assert runner.wait(60) == INTERRUPTED
    finally:
        runner.kill()
        runner.wait()
    assert all((tmp_path / f"{name}.down").exists() for name in ("one", "two"))
    assert not list(tmp_path.glob("never_*.log"))


def test_progress_counts_what_is_done_and_what_has_failed(tmp_path: Path) -> None:
    part = Part("part", ("--version",), tmp_path)
    assert part.process.wait(60) == 0
    part.log.write_text("....s...F.  [  7%]\n.E")
    assert part.progress == "part: 12 tests done, 2 failed"


def test_every_test_is_in_exactly_one_part() -> None:
    from _pytest.mark.expression import Expression

    expressions = [Expression.compile(selection[1]) for parts in LANES for selection in parts.values()]
    for marks in (set(), {"docker"}, {"lab"}, {"docker", "lab"}, {"kubectl", "slow"}, {"lab", "e2e"}, {"docker", "e2e"}, {"e2e"}):
        assert sum(expression.evaluate(lambda name, marks=marks, **_: name in marks) for expression in expressions) == 1
