"""Why a container ended: who was killed for memory, by whose limit, and who only had a child that was."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from swarmtask.nodeagent.causes import Evidence, Mark, below_limit, cause
from swarmtask.nodeagent.cgroups import Usage
from tests.nodeagent.fakes import GIB, START

END = START + timedelta(seconds=100)
KILL = Evidence((END - timedelta(seconds=1),), limit_bytes=GIB, peak_bytes=GIB)


@pytest.mark.parametrize(
    ("code", "evidence", "reason"),
    [
        (137, KILL, "OOMKilled"),
        (137, replace(KILL, moments=(END + timedelta(seconds=1),)), "OOMKilled"),
        (137, replace(KILL, moments=(), flag=True), "OOMKilled"),
        (0, replace(KILL, flag=True), ""),
        (1, replace(KILL, flag=True), ""),
        (143, KILL, ""),
        (137, replace(KILL, moments=()), ""),
        (137, replace(KILL, moments=(START,), flag=True), ""),
        (137, replace(KILL, moments=(START, END), flag=True), "OOMKilled"),
        (137, replace(KILL, by_host=True), "Evicted"),
        (137, replace(KILL, limit_bytes=0), "Evicted"),
        (None, KILL, ""),
    ],
    ids=[
        "counted", "noticed a look late", "docker says so, nobody counted", "child killed, main went on", "main failed of it",
        "stopped meanwhile", "killed by somebody", "child killed long ago, then killed by somebody", "child first, then main",
        "the machine was out of memory", "it has no limit", "nobody saw the exit",
    ],
)  # fmt: skip
def test_the_exit_code_decides_and_the_time_of_the_kill(code: int | None, evidence: Evidence, reason: str) -> None:
    assert cause(code, END, None, evidence)[0] == reason


@pytest.mark.parametrize(
    ("hits", "peak", "below"),
    [(0, GIB // 2, True), (0, GIB, False), (3, GIB // 2, False)],
    ids=["far", "cgroup v1", "no peak kept"],
)
def test_either_sign_shows_that_the_limit_was_met(hits: int, peak: int, below: bool) -> None:
    assert below_limit(Usage(1, hits, 0, peak, None), GIB) == below


@pytest.mark.parametrize(("own", "below"), [(0, True), (1, False)])
def test_cgroup_v2_says_itself_whose_limit_it_was(own: int, below: bool) -> None:
    """Page cache runs against the limit and fills it up to the last page, and nobody dies of that."""
    assert below_limit(Usage(1, 4000, GIB, GIB, None, own), GIB) == below
    assert below_limit(Usage(1, 0, 0, GIB // 2, None, own), GIB) == below


def test_the_message_has_the_evidence() -> None:
    assert cause(137, END, None, KILL)[1] == "the kernel killed it at its memory limit of 1024 MiB; the most it used was 1024 MiB"


def test_who_was_stopped_by_the_node_was_stopped_unless_it_had_ended_before() -> None:
    mark = Mark("Fenced", "why", START)
    assert cause(137, END, mark, KILL) == ("Fenced", "why")
    assert cause(None, None, mark, KILL) == ("Fenced", "why")
    assert cause(0, START - timedelta(milliseconds=1), mark, Evidence()) == ("", "")
    assert cause(137, START - timedelta(seconds=1), mark, Evidence()) == ("Fenced", "why"), "the clock was set back"
    assert cause(1, START - timedelta(seconds=3), mark, Evidence()) == ("", "")
