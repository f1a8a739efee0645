"""What a laboratory node says of itself, and the waiting that all of the laboratory does; no Docker needed."""

import os

import pytest

from tests.lab.cluster import DEFAULT_NODES, sizes
from tests.lab.node import GIB, LabError, cpuset, meminfo, poll


def test_sizes_are_cut_to_the_cores_that_there_are(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 4, 7})
    assert [cpuset(1, 0), cpuset(1, 1), cpuset(2, 2), cpuset(9, 1)] == ["3", "4", "3,7", "3,4,7"]


def test_meminfo_is_read_by_its_readers_as_the_size_asked_for():
    rows = dict(line.split(":") for line in meminfo(4 * GIB).splitlines())
    assert rows["MemTotal"].split() == [str(4 * 1024**2), "kB"]
    assert int(rows["MemFree"].split()[0]) < int(rows["MemAvailable"].split()[0]) < 4 * 1024**2


def test_more_laptops_follow_the_default_three():
    assert sizes(3) == DEFAULT_NODES
    assert [size.name for size in sizes(5)] == ["desktop", "laptop-1", "laptop-2", "laptop-3", "laptop-4"]
    assert [size.name for size in sizes(1)] == ["desktop"]


def test_waiting_ends_with_the_first_true_answer():
    answers = iter([None, 0, "", "there"])
    assert poll("an answer", 10, lambda: next(answers)) == "there"


def test_waiting_in_vain_says_for_what_and_why():
    def refuse() -> bool:
        raise OSError("no route")

    with pytest.raises(LabError, match="in vain for the moon; last answer: no route"):
        poll("the moon", 0.05, refuse, ignore=(OSError,))


def test_waiting_does_not_hide_errors_that_were_not_named():
    def break_down() -> bool:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        poll("the moon", 5, break_down, ignore=(OSError,))
