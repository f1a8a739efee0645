"""What the agent keeps on disk: whole after a crash at any moment, read with suspicion."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmtask.nodeagent.records import Record, Records
from swarmtask.resources.node import NodeAttempt
from tests.nodeagent.fakes import START, attempt, container_id

ENDED = Record(
    attempt(1), container_id(1), exited=True, started_at=START, finished_at=START + timedelta(seconds=9), exit_code=137,
    reason="OOMKilled", message="the kernel killed it", peak_bytes=2**29, cpu_s=1.23456, recorded_at=START + timedelta(seconds=10),
    fenced=True,
)  # fmt: skip
RUNNING = Record(attempt(2), container_id(2), started_at=START, fenced=True)


def test_what_was_put_is_there_after_a_restart(tmp_path: Path) -> None:
    records = Records(tmp_path / "state")
    assert records.load() == {}
    records.put(ENDED, durable=True)
    records.put(RUNNING, durable=False)
    assert Records(tmp_path / "state").load() == {ENDED.attempt: ENDED, RUNNING.attempt: RUNNING}
    records.drop(ENDED.attempt)
    records.drop(ENDED.attempt)
    assert Records(tmp_path / "state").load() == {RUNNING.attempt: RUNNING}


@pytest.mark.parametrize("record", [ENDED, RUNNING, replace(ENDED, exit_code=None, finished_at=None, message="x" * 5000)])
def test_what_is_told_is_a_node_attempt(record: Record) -> None:
    told = NodeAttempt.model_validate(record.told())
    assert (told.id, told.state == "Exited", told.exit_code) == (record.attempt, record.exited, record.exit_code)


def test_figures_are_told_in_the_api_s_units() -> None:
    told = ENDED.told()
    assert (told["peakMemory"], told["cpuSeconds"], told["finishedAt"]) == (str(2**29), 1.235, "2026-01-01T00:00:09Z")


@pytest.mark.parametrize("size", [0, 1, 8, 9, 40, -1], ids=str)
def test_a_torn_file_costs_itself_only(tmp_path: Path, size: int, caplog: pytest.LogCaptureFixture) -> None:
    records = Records(tmp_path)
    records.load()
    records.put(ENDED, durable=True)
    records.put(RUNNING, durable=True)
    path = tmp_path / f"{ENDED.attempt}.json"
    content = path.read_bytes()
    path.write_bytes(content[:-3] if size < 0 else content[:size])
    with caplog.at_level(logging.WARNING):
        assert records.load() == {RUNNING.attempt: RUNNING}
    assert "cannot be read" in caplog.text
    assert not path.exists()


@given(st.binary(max_size=200))
def test_no_content_breaks_a_load(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    directory = tmp_path_factory.mktemp("state")
    (directory / f"{ENDED.attempt}.json").write_bytes(content)
    (directory / "lease").write_bytes(content)
    assert Records(directory).load() == {}
    assert Records(directory).lease("boot") is None


def test_a_record_under_another_name_and_half_a_write_are_removed(tmp_path: Path) -> None:
    records = Records(tmp_path)
    records.put(ENDED, durable=True)
    (tmp_path / f"{ENDED.attempt}.json").rename(tmp_path / f"{RUNNING.attempt}.json")
    (tmp_path / f"{RUNNING.attempt}.new").write_bytes(b"half")
    assert records.load() == {}
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_is_no_attempt_s_reaches_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no attempt's ID"):
        Records(tmp_path).put(replace(ENDED, attempt="../../etc/passwd"), durable=True)


def test_a_disk_that_cannot_be_written_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("no directory")
    records = Records(tmp_path / "file" / "state")
    with caplog.at_level(logging.WARNING):
        assert records.load() == {}
        for _ in range(5):
            records.put(ENDED, durable=True)
            records.put_lease("boot", 1.0)
    assert len(caplog.records) == 1
    assert "may be run again" in caplog.text


def test_a_claim_of_the_lease_is_known_in_every_boot(tmp_path: Path) -> None:
    records = Records(tmp_path / "state")
    assert not records.lease_claimed()
    records.load()
    records.claim_lease(True)
    assert records.lease_claimed()
    assert records.lease("boot") is None, "called for, not renewed"
    records.put_lease("boot", 7.0)
    records.claim_lease(True)
    assert records.lease("boot") == 7.0, "a claim takes nothing away"
    records.claim_lease(False)
    assert not records.lease_claimed()


def test_a_disk_that_cannot_say_counts_as_a_claim(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert Records(tmp_path / "file").lease_claimed()


def test_the_lease_is_known_in_its_own_boot_only(tmp_path: Path) -> None:
    records = Records(tmp_path)
    assert records.lease("boot-1") is None
    records.put_lease("boot-1", 123456.75)
    records.put_lease("boot-1", 9.5)
    assert records.lease("boot-1") == 9.5
    assert records.lease("boot-2") is None
    torn = (tmp_path / "lease").read_bytes()
    (tmp_path / "lease").write_bytes(torn.replace(b"9.5", b"8.5"))
    assert records.lease("boot-1") is None


WRITER = """
import sys
from dataclasses import replace
from pathlib import Path
from swarmtask.nodeagent.records import Record, Records
records = Records(Path(sys.argv[1]))
records.load()
number = 0
while True:
    number += 1
    name = f"st-{'a' * 16}-{number % 20}"
    records.put(Record(name, "c", exited=True, exit_code=number, message="m" * 900), durable=True)
    records.put_lease("boot", float(number))
    print(number, flush=True)
"""


def test_kill_9_at_any_moment_leaves_what_was_said_to_be_written(tmp_path: Path) -> None:
    for at_least in (1, 30, 55):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        said = [writer.stdout.readline() for _ in range(at_least)]
        os.kill(writer.pid, signal.SIGKILL)
        said += writer.stdout.readlines()
        writer.wait(20)
        writer.stdout.close()
        last = max(int(line) for line in said if line.endswith("\n"))
        found = Records(tmp_path).load()
        for number in range(max(1, last - 19), last + 1):
            code = found[f"st-{'a' * 16}-{number % 20}"].exit_code
            assert code is not None
            assert code >= number
        renewed_at = Records(tmp_path).lease("boot")
        assert renewed_at is not None
        assert renewed_at >= last
