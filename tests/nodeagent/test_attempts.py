"""What runs and how it ended, against a Docker on a unix socket, a cgroup tree and a disk; every step by hand."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from swarmtask.errors import EngineUnavailable
from swarmtask.nodeagent import attempts as attempts_module
from swarmtask.nodeagent.attempts import Attempts
from swarmtask.nodeagent.cgroups import Cgroups, Usage
from swarmtask.nodeagent.containers import signal_number
from swarmtask.nodeagent.daemon import Daemon
from swarmtask.nodeagent.early_figures import EarlyFigures
from swarmtask.nodeagent.records import Records
from swarmtask.resources.node import NodeAttempt
from tests.nodeagent.fakes import GIB, CgroupTree, FakeDocker, HandClock, attempt, container_id


@dataclass
class Place:
    """A node; `restart` is the agent killed and started anew."""

    path: Path
    clock: HandClock
    docker: FakeDocker
    tree: CgroupTree
    changes: list[None] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.restart()

    def restart(self, early: Callable[[str], Usage | None] = lambda name: None) -> None:
        daemon = Daemon(self.docker.path, cluster="c1", timeout_s=5)
        self.attempts = Attempts(
            daemon, Cgroups(self.tree.root, self.tree.proc), Records(self.path / "state"), now=self.clock.now,
            changed=lambda: self.changes.append(None), early=early,
        )  # fmt: skip

    def begin(self, number: int, **options: Any) -> str:
        self.tree.begin(container_id(number), 1000 + number)
        return self.docker.run(number, **options)

    def end(self, name: str, code: int, *, oom: bool = False) -> None:
        self.tree.end(name)
        self.docker.end(name, code, oom=oom)

    def look(self) -> list[NodeAttempt]:
        self.attempts.look(full=True)
        return self.told()

    def told(self) -> list[NodeAttempt]:
        return [NodeAttempt.model_validate(item) for item in self.attempts.told()]

    def one(self) -> NodeAttempt:
        (found,) = self.look()
        return found


@pytest.fixture(params=[1, 2])
def place(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Place]:
    clock = HandClock()
    docker = FakeDocker(tmp_path / "docker.sock", clock)
    docker.start()
    yield Place(tmp_path, clock, docker, CgroupTree(tmp_path, request.param))
    docker.stop()
    assert docker.unexpected == []


def test_an_end_that_docker_lists_late_is_asked_about_until_it_is_listed(place: Place) -> None:
    name = place.begin(1)
    place.tree.use(name, memory=GIB, peak=GIB)
    assert place.one().state == "Running"
    place.tree.end(name)
    place.attempts.heard({"Action": "oom", "Actor": {"ID": name}})
    assert place.one().state == "Running", "so says Docker's list"
    assert place.attempts.look(full=False), "but it is not believed"
    place.docker.end(name, 137)
    ended = place.one()
    assert (ended.state, ended.exit_code, ended.reason) == ("Exited", 137, "OOMKilled")
    assert not place.attempts.look(full=False)


def test_an_attempt_from_its_beginning_to_its_end(place: Place) -> None:
    name = place.begin(1)
    place.tree.use(name, memory=2**28, peak=2**29, cpu_s=3.5)
    seen = place.one()
    assert (seen.id, seen.state, seen.exit_code, seen.reason) == (attempt(1), "Running", None, "")
    assert (seen.peak_memory, seen.cpu_seconds) == (str(2**29), 3.5)
    place.clock.elapsed_s += 5
    place.tree.use(name, memory=2**27, peak=2**29, cpu_s=7.25)
    assert not place.attempts.look(full=False)
    place.end(name, 3)
    assert place.attempts.look(full=False), "its figures are gone: ask Docker"
    seen = place.one()
    assert (seen.state, seen.exit_code, seen.reason, seen.peak_memory, seen.cpu_seconds) == ("Exited", 3, "", str(2**29), 7.25)
    assert seen.started_at is not None
    assert seen.finished_at == seen.started_at + timedelta(seconds=5)


def test_figures_of_one_that_no_look_has_seen_running(place: Place) -> None:
    early = EarlyFigures(Cgroups(place.tree.root, place.tree.proc), place.clock.monotonic)
    place.restart(early=early.usage)
    name = place.begin(1)
    place.tree.use(name, memory=2**22, peak=2**24, cpu_s=0.125)
    early.begun(name)
    place.end(name, 0)
    seen = place.one()
    assert (seen.state, seen.exit_code, seen.peak_memory, seen.cpu_seconds) == ("Exited", 0, str(2**24), 0.125)


@pytest.mark.parametrize(("signal", "told"), [("", False), ("1", False), ("15", True), ("9", True)])
def test_it_tells_who_was_sent_a_signal_to_end(place: Place, signal: str, told: bool) -> None:
    name = place.begin(1)
    assert place.one().told_to_end is None
    if signal:
        place.attempts.heard({"Action": "kill", "Actor": {"ID": name, "Attributes": {"signal": signal}}})
    place.end(name, 0)
    assert place.one().told_to_end is told
    place.restart()
    assert place.one().told_to_end is told


def test_of_one_that_began_before_the_agent_it_does_not_say(place: Place) -> None:
    name = place.begin(1)
    place.clock.elapsed_s += 5
    place.restart()
    place.end(name, 0)
    assert place.one().told_to_end is None


def test_an_end_is_on_the_disk_before_it_is_told(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    name = place.begin(1)
    place.look()
    place.end(name, 0)
    told_at_write: list[str] = []
    write = Records.put

    def put(self: Records, record: Any, *, durable: bool) -> None:
        told_at_write.extend(item["state"] for item in place.attempts.told())
        assert durable
        write(self, record, durable=durable)

    monkeypatch.setattr(Records, "put", put)
    assert place.one().state == "Exited"
    assert told_at_write == ["Running"]


def test_what_ended_while_the_agent_was_away_is_found_and_what_it_knew_is_kept(place: Place) -> None:
    name, done = place.begin(1), place.begin(2)
    place.look()
    place.end(done, 0)
    place.look()
    asked = place.docker.asked.count(f"GET /containers/{done}/json")
    place.end(name, 4)
    place.docker.remove(done)
    place.restart()
    assert {item.id: item.exit_code for item in place.look()} == {attempt(1): 4, attempt(2): 0}
    assert place.docker.asked.count(f"GET /containers/{done}/json") == asked


def test_killed_at_its_own_limit(place: Place) -> None:
    name = place.begin(1)
    place.look()
    place.tree.use(name, memory=GIB, peak=GIB, kills=1, hits=40)
    place.attempts.look(full=False)
    place.end(name, 137, oom=True)
    seen = place.one()
    assert seen.reason == "OOMKilled"
    assert seen.message == "the kernel killed it at its memory limit of 1024 MiB; the most it used was 1024 MiB"


def test_killed_at_its_limit_faster_than_anybody_looks(place: Place) -> None:
    """Only Docker has noticed: by an event, or by its flag."""
    first, second = place.begin(1), place.begin(2)
    place.attempts.heard({"Action": "oom", "Actor": {"ID": first}, "timeNano": int(place.clock.now().timestamp() * 1e9)})
    place.end(first, 137)
    place.end(second, 137, oom=True)
    assert {item.reason for item in place.look()} == {"OOMKilled"}


def test_a_child_killed_for_memory_while_the_main_process_went_on(place: Place) -> None:
    """ENGINES: Docker's flag says OOM for it all the same."""
    went_on, killed_later = place.begin(1), place.begin(2)
    place.look()
    for name in (went_on, killed_later):
        place.tree.use(name, memory=GIB, peak=GIB, kills=1, hits=40)
    place.attempts.look(full=False)
    place.clock.elapsed_s += 60
    place.end(went_on, 0, oom=True)
    place.end(killed_later, 137, oom=True)
    assert {(item.exit_code, item.reason) for item in place.look()} == {(0, ""), (137, "")}


def test_killed_because_the_machine_was_out_of_memory(place: Place) -> None:
    """The kernel counts it in the container's cgroup too, which has never met its own limit."""
    name = place.begin(1, memory=8 * GIB)
    place.look()
    place.tree.use(name, memory=GIB, peak=GIB, kills=1, own=0, hits=0)
    place.attempts.look(full=False)
    place.end(name, 137)
    assert place.one().reason == "Evicted"


def test_cgroup_v2_tells_a_machine_without_memory_from_a_full_page_cache(tmp_path: Path) -> None:
    """A container that reads files fills its limit, and runs against it for ever, at no harm. Nor does an earlier child count."""
    clock = HandClock()
    docker = FakeDocker(tmp_path / "docker.sock", clock)
    docker.start()
    try:
        place = Place(tmp_path, clock, docker, CgroupTree(tmp_path, 2))
        reader, parent = place.begin(1), place.begin(2)
        place.tree.use(parent, memory=GIB, peak=GIB, kills=1, own=1)
        place.look()
        clock.elapsed_s += 60
        place.tree.use(reader, memory=GIB, peak=GIB, kills=1, own=0, hits=4000)
        place.tree.use(parent, memory=GIB, peak=GIB, kills=2, own=1)
        place.attempts.look(full=False)
        for name in (reader, parent):
            place.end(name, 137)
        assert {item.reason for item in place.look()} == {"Evicted"}
    finally:
        docker.stop()


@pytest.fixture
def second(tmp_path: Path) -> Iterator[Place]:
    """A place with cgroup v2, where containerd sends an oom event for every kill."""
    clock = HandClock()
    docker = FakeDocker(tmp_path / "docker.sock", clock)
    docker.start()
    yield Place(tmp_path, clock, docker, CgroupTree(tmp_path, 2))
    docker.stop()


def told_of_a_kill(place: Place, name: str) -> NodeAttempt:
    """Docker tells of it, and the cgroup is gone before anybody has looked again."""
    place.clock.elapsed_s += 0.5
    place.attempts.heard({"Action": "oom", "Actor": {"ID": name}, "timeNano": int(place.clock.now().timestamp() * 1e9)})
    place.end(name, 137, oom=True)
    return place.one()


@pytest.mark.parametrize(("peak", "reason"), [(GIB // 2, "Evicted"), (GIB * 19 // 20 + 1, "OOMKilled")])
def test_with_cgroup_v2_an_event_is_no_proof_of_its_own_limit(second: Place, peak: int, reason: str) -> None:
    name = second.begin(1)
    second.tree.use(name, memory=peak, peak=peak)
    second.look()
    ended = told_of_a_kill(second, name)
    assert ended.reason == reason
    if reason == "Evicted":
        assert ended.message == (
            "the kernel killed it for memory, and not at its limit of 1024 MiB: the machine must have been out of memory; "
            "the most it used was 512 MiB"
        )


def test_an_own_oom_that_was_counted_before_the_kill_was_is_proof_enough(second: Place) -> None:
    """Also where the kernel keeps no peak."""
    name = second.begin(1)
    second.tree.use(name, memory=GIB // 2, peak=GIB // 2, own=1)
    second.look()
    assert told_of_a_kill(second, name).reason == "OOMKilled"


@pytest.mark.parametrize(
    ("ooms", "kills", "peak", "reason"),
    [
        (3, 6, GIB // 2, "Evicted"), (4, 6, GIB // 2, "OOMKilled"), (3, 6, GIB, "Evicted"),
        (3, 5, GIB // 2, "Evicted"), (3, 5, GIB, "OOMKilled"),
    ],
    ids=["the machine's", "its own, and it grew fast", "the machine's, full of page cache", "not counted there", "nor here"],
)  # fmt: skip
def test_the_cgroup_around_it_knows_whose_limit_it_was(second: Place, ooms: int, kills: int, peak: int, reason: str) -> None:
    name = second.begin(1)
    second.tree.around(ooms=3, kills=5)
    second.tree.use(name, memory=peak, peak=peak)
    second.look()
    second.tree.around(ooms=ooms, kills=kills)
    assert told_of_a_kill(second, name).reason == reason


@pytest.mark.parametrize(("own", "peak", "reason"), [(1, GIB, "OOMKilled"), (0, GIB // 2, "Evicted")])
def test_one_that_lived_for_less_than_a_second_is_judged_by_its_first_figures(
    second: Place, own: int, peak: int, reason: str
) -> None:
    early = EarlyFigures(Cgroups(second.tree.root, second.tree.proc), second.clock.monotonic)
    second.restart(early=early.usage)
    counted, told = second.begin(1), second.begin(2)
    for name in (counted, told):
        second.tree.use(name, memory=peak, peak=peak)
        early.begun(name)
    second.clock.elapsed_s += 0.1
    second.tree.use(counted, memory=peak, peak=peak, kills=1, own=own)
    early.step()
    second.end(counted, 137)
    second.attempts.heard({"Action": "oom", "Actor": {"ID": told}, "timeNano": int(second.clock.now().timestamp() * 1e9)})
    second.end(told, 137, oom=True)
    assert [item.reason for item in second.look()] == [reason, reason]


def test_a_child_killed_in_its_first_second_is_not_why_it_was_killed_later(second: Place) -> None:
    early = EarlyFigures(Cgroups(second.tree.root, second.tree.proc), second.clock.monotonic)
    second.restart(early=early.usage)
    name = second.begin(1)
    second.tree.use(name, memory=GIB, peak=GIB, kills=1)
    early.begun(name)
    second.clock.elapsed_s += 60
    second.end(name, 137)
    assert second.one().reason == ""


def test_killed_at_its_limit_and_removed_before_anybody_could_ask(place: Place) -> None:
    """What limit it had is known from when it ran."""
    name = place.begin(1)
    place.tree.use(name, memory=GIB, peak=GIB)
    place.look()
    nanos = int(place.clock.now().timestamp() * 1e9)
    for action, attributes in (("oom", {}), ("die", {"exitCode": "137"})):
        place.attempts.heard({"Action": action, "Actor": {"ID": name, "Attributes": attributes}, "timeNano": nanos})
    place.end(name, 137)
    place.docker.remove(name)
    seen = place.one()
    assert (seen.reason, seen.exit_code) == ("OOMKilled", 137)


def test_a_reason_of_the_node_s_is_kept_over_its_own_restart(place: Place) -> None:
    name, before = place.begin(1), place.begin(2)
    place.look()
    place.end(before, 0)
    place.clock.elapsed_s += 1
    place.attempts.mark([name, before], "Fenced", "no API")
    place.attempts.look(full=False)
    place.restart()
    place.clock.elapsed_s += 1
    place.end(name, 137)
    found = {item.id: (item.reason, item.message, item.exit_code) for item in place.look()}
    assert found == {attempt(1): ("Fenced", "no API", 137), attempt(2): ("", None, 0)}


def test_who_is_being_stopped_is_no_candidate_and_says_why_at_once(place: Place) -> None:
    name = place.begin(1, priority=-3, memory=GIB)
    place.tree.use(name, memory=2**28)
    place.look()
    (candidate,) = place.attempts.candidates()
    assert (candidate.attempt, candidate.priority, candidate.memory_bytes, candidate.request_bytes) == (attempt(1), -3, 2**28, GIB)
    place.attempts.mark([name], "Evicted", "memory")
    assert place.attempts.candidates() == []
    place.attempts.mark([name], "Fenced", "later")
    place.attempts.look(full=False)
    assert [(item.state, item.reason) for item in place.told()] == [("Running", "Evicted")]


def test_removed_before_anybody_could_ask(place: Place) -> None:
    """Swarm removes a container with its service. What Docker's event told is kept; of the rest nothing is told."""
    heard, unheard, fenced = (place.begin(number) for number in (1, 2, 3))
    place.look()
    place.attempts.heard({"Action": "die", "Actor": {"ID": heard, "Attributes": {"exitCode": "9"}}, "timeNano": 10**18})
    place.attempts.mark([fenced], "Fenced", "no API")
    for name in (heard, unheard, fenced):
        place.docker.remove(name)
    assert {(item.id, item.exit_code, item.reason) for item in place.look()} == {
        (attempt(1), 9, ""),
        (attempt(3), None, "Fenced"),
    }
    place.restart()
    assert len(place.told()) == 2


def test_kept_for_an_hour_after_the_container_and_as_long_as_the_container(place: Place) -> None:
    gone, there = place.begin(1), place.begin(2)
    place.look()
    place.end(gone, 0)
    place.end(there, 0)
    place.look()
    place.docker.remove(gone)
    place.clock.elapsed_s += 90_000
    assert len(place.look()) == 2, "the API was away all the time, and does not know"
    place.restart()
    place.look()
    place.attempts.delivered([attempt(1), attempt(2)])
    place.clock.elapsed_s += 3590
    place.attempts.delivered([attempt(1), attempt(2)])
    assert len(place.look()) == 2
    place.clock.elapsed_s += 20
    assert [item.id for item in place.look()] == [attempt(2)]
    place.restart()
    assert [item.id for item in place.told()] == [attempt(2)]


def test_no_more_than_the_bound_and_what_was_dropped_stays_dropped(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts_module, "MOST", 5)
    for number in range(1, 9):
        name = place.begin(number)
        place.clock.elapsed_s += 1
        place.end(name, 0)
        place.look()
    running = place.begin(20)
    seen = place.look()
    assert [item.id for item in seen] == [attempt(number) for number in (20, 8, 7, 6, 5)]
    assert len(list((place.path / "state").glob("*.json"))) == 6
    asked = len(place.docker.asked)
    place.look()
    assert len(place.docker.asked) == asked + 1, "the list, and no container once more"
    place.clock.elapsed_s += 1
    place.end(running, 0)
    assert place.look()[0].id == attempt(20)


def test_strange_labels_and_other_people_s_containers(place: Place) -> None:
    place.begin(1, **{"swarmtask.io/cluster": "other"})
    place.begin(2, **{"swarmtask.io/task-uid": "../../../etc"})
    place.begin(3, **{"swarmtask.io/attempt": "9" * 40})
    place.begin(4, **{"swarmtask.io/priority": "very"})
    assert [item.id for item in place.look()] == [attempt(4)]


def test_of_two_containers_of_one_attempt_the_one_that_runs_counts(place: Place) -> None:
    old = place.begin(1)
    place.look()
    place.end(old, 1)
    place.look()
    place.docker.containers[container_id(99)] = place.docker.containers[old] | {"Id": container_id(99)}
    place.docker.containers[container_id(99)]["State"] = place.docker.containers[old]["State"] | {
        "Status": "running", "Running": True, "Pid": 5, "FinishedAt": "0001-01-01T00:00:00Z",
    }  # fmt: skip
    place.docker.containers[old] = place.docker.containers.pop(old)  # listed first
    assert place.one().state == "Running"


def test_figures_that_cannot_be_read_do_not_keep_docker_busy(place: Place) -> None:
    name = place.begin(1)
    place.look()
    place.tree.end(name)
    assert place.attempts.look(full=False)
    place.look()
    asked = [place.attempts.look(full=False) for _ in range(100)]
    assert any(asked) and not any(asked[-50:]), "it may have ended without Docker's list showing it yet, but not for ever"
    assert place.one().state == "Running"


def test_a_container_that_was_made_and_never_started_is_nothing(place: Place) -> None:
    name = place.begin(1)
    place.docker.containers[name]["State"].update(Status="created", Running=False, Pid=0)
    assert place.look() == []


def test_without_docker_figures_go_on_and_nothing_is_forgotten(place: Place) -> None:
    name = place.begin(1)
    place.look()
    place.docker.broken = True
    place.tree.use(name, peak=2**30)
    with pytest.raises(EngineUnavailable, match="500"):
        place.attempts.look(full=True)
    assert [(item.state, item.peak_memory) for item in place.told()] == [("Running", str(2**30))]


def test_changes_are_called_out_and_figures_are_not(place: Place) -> None:
    name = place.begin(1)
    place.look()
    assert len(place.changes) == 1
    place.tree.use(name, peak=2**30)
    place.look()
    assert len(place.changes) == 1
    place.end(name, 0)
    place.look()
    assert len(place.changes) == 2


@pytest.mark.parametrize(
    "event",
    [{}, {"Action": "die"}, {"Action": "die", "Actor": {"ID": 5}}, {"Action": "oom", "Actor": {"ID": "x"}, "timeNano": "n"}],
)
def test_events_that_are_none(place: Place, event: dict[str, Any]) -> None:
    place.attempts.heard(event)
    assert place.look() == []


@pytest.mark.slow
def test_readers_of_other_threads_see_whole_things(place: Place) -> None:
    """The loop and the fence read while the watch writes."""
    names = [place.begin(number) for number in range(1, 21)]
    place.look()
    ended, failures = threading.Event(), []

    def read() -> None:
        while not ended.is_set():
            try:
                assert len(place.told()) == 20
                place.attempts.candidates()
                place.attempts.mark(names[:5], "Fenced", "no API")
                assert len(place.attempts.fenced_known()[1]) <= 20
            except Exception as error:  # whatever it is, the test fails of it
                failures.append(error)
                return

    reader = threading.Thread(target=read)
    reader.start()
    for name in names:
        place.end(name, 0)
        place.look()
    ended.set()
    reader.join(20)
    assert failures == []


def test_who_is_far_above_its_request_is_known_though_docker_knows_the_limit_alone(place: Place) -> None:
    name = place.begin(1, memory=2 * GIB, **{"swarmtask.io/memory-request": str(2**26)})
    place.begin(2, memory=2**26)
    place.tree.use(name, memory=2**29)
    place.look()
    assert {one.attempt: one.request_bytes for one in place.attempts.candidates()} == {attempt(1): 2**26, attempt(2): 2**26}


@pytest.mark.parametrize(
    ("name", "number"),
    [("SIGTERM", "15"), ("TERM", "15"), ("15", "15"), ("SIGRTMIN+3", "37"), ("RTMAX-1", "63"), ("SIGNONE", ""), ("RTMIN+", "")],
)
def test_signals_by_their_numbers(name: str, number: str) -> None:
    assert signal_number(name) == number
