"""Whether an agent lives, as its health check sees it."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from swarmtask.nodeagent import heartbeat
from swarmtask.nodeagent.heartbeat import FRESH_S, beat, main, problem


def test_a_fresh_beat_is_health_and_an_old_one_is_not(tmp_path: Path) -> None:
    beat(tmp_path, 1000.0)
    assert problem(tmp_path, 1000.0 + FRESH_S - 1) == ""
    assert "old" in problem(tmp_path, 1000.0 + FRESH_S + 1)


def test_a_beat_needs_no_room_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Docker would end an agent that is well, again and again, until somebody has made room."""
    beat(tmp_path, 9.0)
    before = (tmp_path / heartbeat.FILE).stat()
    beat(tmp_path, 123_456_789.0)
    after = (tmp_path / heartbeat.FILE).stat()
    assert (after.st_ino, after.st_size) == (before.st_ino, before.st_size), "what is there is written over"
    assert problem(tmp_path, 123_456_790.0) == ""

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="no space left"):
        beat(tmp_path, 123_456_799.0)
    assert problem(tmp_path, 123_456_800.0) == "", "the last one stays"


def test_a_beat_from_before_the_last_boot_is_none(tmp_path: Path) -> None:
    beat(tmp_path, 90_000.0)
    assert problem(tmp_path, 20.0)


@pytest.mark.parametrize("content", [None, "", "soon"])
def test_no_beat_at_all(tmp_path: Path, content: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    if content is not None:
        (tmp_path / heartbeat.FILE).write_text(content)
    assert main([str(tmp_path)], lambda: 1.0) == 1
    assert "no heartbeat" in capsys.readouterr().err


def test_the_programs_answer(tmp_path: Path) -> None:
    beat(tmp_path, 5.0)
    assert main([str(tmp_path)], lambda: 6.0) == 0
    assert main([], lambda: 6.0) == 2


def test_the_check_reads_in_next_to_nothing(tmp_path: Path) -> None:
    """It runs twice a minute on laptops, as `worker-image/install.sh` starts it."""
    beat(tmp_path, time.monotonic())
    program = [sys.executable, "-I", "-S", "-X", "importtime", str(heartbeat.__file__), str(tmp_path)]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "os" in loaded
    assert not loaded & {"pathlib", "collections", "re", "typing"}
