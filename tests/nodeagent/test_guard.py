"""The fence, the watch and the stopper together, against a Docker on a unix socket that is slow to obey, dies or is not there."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from swarmtask.engines import base
from swarmtask.errors import EngineUnavailable
from swarmtask.nodeagent import containers, daemon
from swarmtask.nodeagent import guard as guard_module
from swarmtask.nodeagent.daemon import Daemon, NoDaemon
from swarmtask.nodeagent.eviction import Strain
from swarmtask.nodeagent.fence import Terms
from swarmtask.nodeagent.guard import Guard, Places
from swarmtask.nodeagent.watch import LIST_S
from swarmtask.resources.task import attempt_id
from tests.nodeagent.fakes import GIB, UID, CgroupTree, FakeDocker, HandClock, attempt, container_id, until

PLENTY = Strain(4 * GIB, 8 * GIB, 0.0)
SHORT = Strain(GIB // 8, 8 * GIB, 0.6)
DESPERATE = Strain(GIB // 8, 8 * GIB, 0.9)


class Node:
    """A guard whose threads do not run: tests make its steps."""

    def __init__(self, path: Path, version: int = 2) -> None:
        self.path, self.clock = path, HandClock()
        self.docker = FakeDocker(path / "docker.sock", self.clock)
        self.tree = CgroupTree(path, version)
        self.strain = PLENTY
        self.restart()
        self.guard.fence.claim(self.clock.boot_time())  # the first call of this machine for its Lease

    def restart(self, boot_id: str = "boot-1") -> None:
        places = Places(self.path / "docker.sock", self.path / "state", self.tree.root, self.tree.proc, "c1")
        self.guard = Guard(
            places, boot_id, lambda: self.strain, clock=self.clock, wait=self.clock.wait, rng=random.Random(1),
            terms=Terms(fence_s=20, grace_s=10),
        )  # fmt: skip

    def begin(self, number: int, *, fence: bool = True, priority: int = 0, **labels: str) -> str:
        self.tree.begin(container_id(number), 1000 + number)
        return self.docker.run(number, fence=fence, priority=priority, **labels)

    def step(self, seconds: float = 1.0) -> None:
        self.clock.elapsed_s += seconds
        self.guard.watch.step()

    def ends(self) -> dict[str, tuple[str, int | None]]:
        self.guard.watch.doubt()
        self.step()
        return {item["id"]: (item["reason"], item.get("exitCode")) for item in self.guard.told() if item["state"] == "Exited"}


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path)
    node.docker.start()
    yield node
    node.docker.stop()
    assert node.docker.unexpected == []


def test_labels_and_ids_are_those_of_the_engines() -> None:
    ours = (daemon.LABEL_MANAGED, daemon.LABEL_CLUSTER, containers.LABEL_TASK_UID, containers.LABEL_ATTEMPT)
    assert ours == (base.LABEL_MANAGED, base.LABEL_CLUSTER, base.LABEL_TASK_UID, base.LABEL_ATTEMPT)
    assert (containers.LABEL_FENCE, containers.LABEL_PRIORITY) == (base.LABEL_FENCE, base.LABEL_PRIORITY)
    assert (containers.LABEL_GRACE, containers.LABEL_MEMORY_REQUEST) == (base.LABEL_GRACE, base.LABEL_MEMORY_REQUEST)
    names = (containers.LABEL_TASK_NAMESPACE, containers.LABEL_TASK_NAME)
    assert names == (base.LABEL_TASK_NAMESPACE, base.LABEL_TASK_NAME)
    assert containers.attempt_id(UID.format(7), "3") == attempt_id(UID.format(7), 3)


# --- the fence ---


def test_what_is_fenced_stops_and_nothing_else(node: Node) -> None:
    fenced, free = node.begin(1), node.begin(2, fence=False)
    node.step()
    node.clock.elapsed_s += 21
    node.guard.fence.tick()
    assert node.docker.alive() == {free}
    assert [signal for _, signal, _ in node.docker.signals] == ["SIGTERM"]
    assert node.ends() == {attempt(1): ("Fenced", 143)}
    assert fenced not in node.docker.alive()
    assert node.guard.told()[0]["state"] == "Running"


def test_who_does_not_listen_is_killed_when_the_grace_is_over(node: Node) -> None:
    deaf = node.begin(1)
    node.docker.deaf.add(deaf)
    node.clock.elapsed_s += 21
    node.guard.fence.tick()
    (_, first, _), (_, second, at) = node.docker.signals
    assert (first, second) == ("SIGTERM", "SIGKILL")
    assert at == pytest.approx(1030, abs=0.5), "fence and grace count from the last renewal, not from the first look"


def test_each_gets_the_grace_that_its_task_declares_and_nobody_holds_up_the_node_for_long(node: Node) -> None:
    for number, grace_s in enumerate(("0", "4", "25", "3600", "ten"), start=1):
        node.docker.deaf.add(node.begin(number, **{"swarmtask.io/grace-seconds": grace_s}))
    late = container_id(6)

    def begin_another() -> None:
        if node.clock.elapsed_s > 1035 and late not in node.docker.containers:
            node.docker.deaf.add(node.begin(6, **{"swarmtask.io/grace-seconds": "3"}))

    node.clock.on_wait.append(begin_another)
    node.clock.elapsed_s += 21
    node.guard.fence.tick()
    killed = {name: at for name, signal, at in node.docker.signals if signal == "SIGKILL"}
    due = {1: 1021, 2: 1024, 3: 1045, 4: 1050, 5: 1030, 6: 1035}
    assert {number: killed[container_id(number)] for number in due} == pytest.approx(due, abs=0.5)
    assert [name for name, signal, _ in node.docker.signals if signal == "SIGTERM"].count(container_id(1)) == 0


def test_after_a_sleep_longer_than_the_grace_it_kills_at_once(node: Node) -> None:
    for number in range(1, 21):
        node.begin(number)
    node.clock.elapsed_s += 600
    node.guard.fence.tick()
    assert node.docker.alive() == set()
    assert {(signal, at) for _, signal, at in node.docker.signals} == {("SIGKILL", 1600.0)}
    assert set(node.ends().values()) == {("Fenced", 137)}


def test_the_image_s_own_signal_is_sent(node: Node) -> None:
    name = node.begin(1)
    node.docker.containers[name]["Config"] = {"StopSignal": "SIGINT"}
    node.clock.elapsed_s += 21
    node.guard.fence.tick()
    assert [signal for _, signal, _ in node.docker.signals] == ["SIGINT"]


def test_what_had_finished_by_itself_is_not_called_fenced(node: Node) -> None:
    name = node.begin(1)
    node.step()
    node.clock.elapsed_s += 10
    node.docker.end(name, 0)
    node.clock.elapsed_s += 600
    node.guard.fence.tick()
    assert node.ends() == {attempt(1): ("", 0)}


def test_a_new_agent_goes_by_the_lease_on_the_disk_before_anything_else(node: Node) -> None:
    node.begin(1)
    asked_at = node.guard.fence.ask()
    assert asked_at is not None
    node.guard.fence.renewed(asked_at)
    node.clock.elapsed_s += 60
    node.restart()
    assert node.guard.fence.ask() is None
    node.guard.fence.tick()
    assert node.docker.alive() == set()
    assert node.guard.fence.ask() is not None
    assert node.ends() == {attempt(1): ("Fenced", 137)}


def test_after_a_restart_of_the_machine_it_counts_from_its_start(node: Node) -> None:
    node.begin(1)
    asked_at = node.guard.fence.ask()
    assert asked_at is not None
    node.guard.fence.renewed(asked_at)
    node.clock.elapsed_s += 60
    node.restart("boot-2")
    node.guard.fence.tick()
    assert len(node.docker.alive()) == 1
    node.clock.elapsed_s += 21
    node.guard.fence.tick()
    assert node.docker.alive() == set()


def test_an_agent_that_was_killed_during_its_first_call_is_followed_by_one_that_fences(node: Node) -> None:
    """The call may have made the Lease, and then the operator counts; also after a restart of the machine."""
    node.begin(1)
    node.restart("boot-2")
    node.clock.elapsed_s += 21
    node.guard.fence.tick()
    assert node.docker.alive() == set()


def test_on_a_machine_that_never_had_a_lease_nothing_is_fenced(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.guard.fence.refused()
    node.restart()
    node.docker.start()
    name = node.begin(1)
    node.clock.elapsed_s += 600
    node.guard.fence.tick()
    assert node.docker.alive() == {name}
    assert node.guard.fence.ask() is not None
    node.docker.stop()


class Sleeper:
    """A real process in a container's cgroup."""

    def __init__(self, directory: Path) -> None:
        self.process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        self.procs = directory / "cgroup.procs"
        self.procs.write_text(f"{self.process.pid}\n")


@pytest.fixture
def sleeper(node: Node) -> Iterator[Sleeper]:
    node.begin(1)
    sleeper = Sleeper(node.tree.root / "docker" / container_id(1))
    yield sleeper
    sleeper.process.kill()
    sleeper.process.wait(20)


def test_containers_outlive_a_docker_that_was_killed_and_are_killed_without_it(node: Node, sleeper: Sleeper) -> None:
    node.step()
    node.docker.stop()
    node.clock.elapsed_s += 21
    node.guard.fence.tick()
    assert node.guard.fence.ask() is None
    assert sleeper.process.poll() is None, "its grace is not over"
    node.clock.elapsed_s += 10
    node.guard.fence.tick()
    assert sleeper.process.wait(20) == -9
    assert node.guard.fence.ask() is None, "nobody has seen yet that it is gone"
    sleeper.procs.write_text("")
    node.guard.fence.tick()
    assert node.guard.fence.ask() is not None


def test_the_same_for_an_agent_that_only_has_the_disk(node: Node, sleeper: Sleeper) -> None:
    node.step()
    node.docker.stop()
    node.restart()
    node.clock.elapsed_s += 31
    node.guard.fence.tick()
    assert sleeper.process.wait(20) == -9


def test_a_docker_that_does_not_obey_is_not_waited_for(node: Node, sleeper: Sleeper) -> None:
    node.docker.deaf.add(container_id(1))
    node.docker.undead.add(container_id(1))
    node.step()
    node.clock.elapsed_s += 21
    node.guard.fence.tick()
    assert sleeper.process.wait(20) == -9
    assert node.guard.fence.ask() is None
    node.docker.end(container_id(1), 137)
    node.guard.fence.tick()
    assert node.guard.fence.ask() is not None


def test_a_docker_that_hangs_is_not_waited_for(node: Node, sleeper: Sleeper, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard_module, "IMPATIENT_S", 0.2)
    node.restart()
    node.step()
    node.docker.hung = True
    node.clock.elapsed_s += 31
    node.guard.fence.tick()
    assert sleeper.process.wait(20) == -9


@pytest.mark.slow
def test_a_docker_that_hangs_halfway_is_not_waited_for(node: Node, sleeper: Sleeper, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard_module, "IMPATIENT_S", 0.2)
    node.restart()
    node.docker.deaf.add(container_id(1))
    node.step()
    node.clock.on_wait.append(lambda: setattr(node.docker, "hung", True))
    node.clock.elapsed_s += 21
    node.guard.fence.tick()
    assert sleeper.process.poll() is None, "its grace is not over"
    node.clock.elapsed_s += 9
    node.guard.fence.tick()
    assert sleeper.process.wait(20) == -9


def test_a_docker_that_fails_and_was_never_seen_keeps_the_api_waiting(node: Node) -> None:
    """It may have containers that nobody knows of."""
    node.begin(1)
    node.docker.broken = True
    node.clock.elapsed_s += 60
    node.guard.fence.tick()
    assert node.guard.fence.ask() is None
    node.docker.broken = False
    node.guard.fence.tick()
    assert node.guard.fence.ask() is not None
    assert node.docker.alive() == set()


def test_a_machine_without_docker_has_nothing_to_fence(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    node = Node(tmp_path)
    for _ in range(5):
        node.step(10)
    node.guard.fence.tick()
    assert node.guard.fence.ask() is not None
    assert node.guard.told() == []
    assert sum("there is no Docker at" in record.getMessage() for record in caplog.records if record.levelname == "WARNING") == 1


# --- the watch ---


def test_the_list_is_read_after_a_doubt_and_now_and_then(node: Node) -> None:
    node.step()
    listed = node.docker.asked.count("GET /containers/json")
    for _ in range(10):
        node.step()
    assert node.docker.asked.count("GET /containers/json") == listed
    node.guard.watch.doubt()
    node.step()
    assert node.docker.asked.count("GET /containers/json") == listed + 1
    node.step(LIST_S)
    assert node.docker.asked.count("GET /containers/json") == listed + 2


def test_a_docker_that_fails_is_asked_with_growing_pauses_and_read_in_full_after(node: Node) -> None:
    node.docker.broken = True
    for _ in range(240):
        node.guard.watch.doubt()
        node.step(0.25)
    asked = node.docker.asked.count("GET /containers/json")
    assert 10 <= asked <= 60
    node.docker.broken = False
    node.begin(1)
    for _ in range(6):
        node.step()
    assert len(node.guard.told()) == 1


def test_the_least_important_goes_when_memory_runs_out(node: Node) -> None:
    dear, cheap = node.begin(1, priority=5), node.begin(2, priority=-1)
    node.docker.deaf.add(cheap)
    node.step(10)
    node.strain = SHORT
    for _ in range(5):
        node.step()
    until(lambda: cheap not in node.docker.alive())
    assert node.docker.alive() == {dear}
    (reason, code) = node.ends()[attempt(2)]
    assert (reason, code) == ("Evicted", 137)
    message = next(item["message"] for item in node.guard.told() if item["id"] == attempt(2))
    assert message.startswith("stopped by the node: 128 MiB of 8192 MiB were left; it had priority -1")


def test_of_equals_the_one_farthest_above_what_it_was_promised_goes_with_its_own_grace(node: Node) -> None:
    greedy = node.begin(1, **{"swarmtask.io/memory-request": str(2**20), "swarmtask.io/grace-seconds": "1"})
    honest = node.begin(2, **{"swarmtask.io/memory-request": str(700 * 2**20)})
    node.docker.deaf.add(greedy)
    for name in (greedy, honest):
        node.tree.use(name, memory=600 * 2**20, peak=600 * 2**20)
    node.step(10)
    node.strain = SHORT
    for _ in range(5):
        node.step()
    until(lambda: greedy not in node.docker.alive())
    assert node.docker.alive() == {honest}
    (_, asked, asked_at), (_, killed, killed_at) = node.docker.signals
    assert (asked, killed) == ("SIGTERM", "SIGKILL")
    assert killed_at - asked_at < 2


class Pleas:
    """What the operator is asked, as it changes."""

    def __init__(self, node: Node) -> None:
        self.node, self.seen = node, list[str | None]()
        node.guard.watch.pleaded = self._changed

    def _changed(self) -> None:
        told = self.node.guard.eviction()
        self.seen.append(None if told is None else str(told["id"]))


def under_pressure(node: Node, strain: Strain = SHORT) -> Pleas:
    """The API has just been reached, and memory is short for as long as it takes."""
    node.step()
    pleas = Pleas(node)
    node.guard.fence.renewed(node.clock.boot_time())
    node.strain = strain
    for _ in range(4):
        node.step()
    return pleas


def test_the_operator_is_asked_first_and_not_waited_for_longer_than_a_moment(node: Node) -> None:
    cheap = node.begin(1, priority=-1)
    node.begin(2)
    pleas = under_pressure(node)
    told = node.guard.eviction()
    assert told is not None
    assert (told["id"], told["message"][:32]) == (attempt(1), "128 MiB of 8192 MiB were left; i")
    assert node.docker.signals == []
    node.step(1.5)
    assert node.docker.signals == []
    node.step(1)
    until(lambda: cheap not in node.docker.alive())
    assert pleas.seen == [attempt(1), None]
    assert node.ends()[attempt(1)][0] == "Evicted"


def test_the_harder_the_pressure_the_shorter_the_wait(node: Node) -> None:
    node.begin(1)
    under_pressure(node, DESPERATE)
    assert node.guard.eviction() is not None
    node.step(1)
    assert node.guard.eviction() is None
    until(lambda: node.docker.alive() == set())


def test_memory_that_comes_back_takes_the_wish_back(node: Node) -> None:
    node.begin(1)
    pleas = under_pressure(node)
    node.strain = PLENTY
    for _ in range(10):
        node.step()
    assert pleas.seen == [attempt(1), None]
    assert node.docker.signals == []


def test_the_operator_s_choice_is_hastened_and_keeps_the_operator_s_reason(node: Node) -> None:
    with node.guard:
        until(node.docker.listening.is_set)
        hog, other = node.begin(1), node.begin(2, priority=1)
        until(lambda: len(node.guard.told()) == 2)
        node.guard.watch.end()
    node.docker.deaf.add(other)
    pleas = under_pressure(node)
    node.guard.attempts.heard({"Action": "kill", "Actor": {"ID": hog, "Attributes": {"signal": "10"}}})
    node.guard.attempts.heard({"Action": "kill", "Actor": {"ID": other, "Attributes": {"signal": "15"}}})
    node.step()
    until(lambda: other not in node.docker.alive())
    assert node.docker.alive() == {hog}
    assert pleas.seen == [attempt(1), None]
    assert node.ends()[attempt(2)] == ("", 137), "who told it to end knows why"
    for _ in range(4):
        node.step()
    assert node.docker.alive() == {hog}, "memory takes a while to come back"


def told_to_end(node: Node, name: str, signal: int) -> bool:
    """Whether a container that was sent this counts as one whose end has begun."""
    node.guard.attempts.heard({"Action": "kill", "Actor": {"ID": name, "Attributes": {"signal": str(signal)}}})
    return name in {one.container_id for one in node.guard.attempts.ending()}


def test_a_signal_that_is_no_end_hastens_nobody(node: Node) -> None:
    """A JVM prints its threads on QUIT, servers reopen their logs; killing them without a mark would pass for their own failure."""
    name = node.begin(1, **{"swarmtask.io/grace-seconds": "5"})
    under_pressure(node)
    assert not any(told_to_end(node, name, signal) for signal in (1, 2, 3, 10, 12, 21, 28, 34))
    node.step(1)
    assert node.docker.signals == []
    assert told_to_end(node, name, 15)


def test_its_own_stop_signal_is_an_end(node: Node) -> None:
    name = node.docker.run(1)
    node.docker.containers[name]["Config"] = {"StopSignal": "RTMIN+3"}
    node.guard.attempts.look(full=True)
    assert not told_to_end(node, name, 36)
    assert told_to_end(node, name, 37)


def test_who_has_outlived_a_signal_long_ago_does_not_end_of_it(node: Node) -> None:
    name = node.begin(1, **{"swarmtask.io/grace-seconds": "5"})
    node.guard.attempts.look(full=True)
    assert told_to_end(node, name, 15)
    node.clock.elapsed_s += 16
    assert node.guard.attempts.ending() == []


def test_who_ends_by_himself_meanwhile_has_answered(node: Node) -> None:
    one, other = node.begin(1), node.begin(2, priority=1)
    pleas = under_pressure(node)
    node.docker.end(one, 0)
    node.guard.watch.doubt()
    node.step(0.5)
    node.step(0.5)
    assert pleas.seen == [attempt(1), None]
    assert node.docker.alive() == {other}
    assert node.docker.signals == []


def test_nobody_to_evict_is_no_harm(node: Node) -> None:
    node.strain = SHORT
    for _ in range(20):
        node.step()
    assert node.docker.signals == []


# --- with its threads ---


@pytest.mark.slow
def test_its_threads_watch_reconnect_and_fence_by_themselves(node: Node) -> None:
    with node.guard:
        until(node.docker.listening.is_set)
        name = node.begin(1)
        until(lambda: [item["state"] for item in node.guard.told()] == ["Running"])
        node.docker.break_streams()
        node.tree.end(name)
        node.docker.end(name, 5)
        until(lambda: [item.get("exitCode") for item in node.guard.told()] == [5])
        until(node.docker.listening.is_set)
        other = node.begin(2)
        node.clock.elapsed_s += 25
        until(lambda: other not in node.docker.alive())
        until(lambda: node.guard.fence.ask() is not None)
    assert not [thread for thread in threading.enumerate() if thread.name in {"fence", "watch", "listen"}]


# --- Docker's answers ---


def test_a_socket_nobody_listens_at_and_none(tmp_path: Path, node: Node) -> None:
    with pytest.raises(NoDaemon, match="there is no Docker at"):
        Daemon(tmp_path / "none.sock").containers()
    node.docker.stop()
    with pytest.raises(EngineUnavailable, match="does not answer") as caught:
        Daemon(node.docker.path).containers()
    assert not isinstance(caught.value, NoDaemon)


def test_an_answer_that_is_none(node: Node) -> None:
    client = Daemon(node.docker.path)
    assert client.inspect("gone") is None
    assert not client.kill("gone", "SIGKILL")
    node.docker.broken = True
    with pytest.raises(EngineUnavailable, match="it is broken"):
        client.kill("x", "SIGKILL")
    with pytest.raises(EngineUnavailable, match="gives no events: it answered 500"):
        client.events()


@pytest.mark.slow
def test_a_silent_stream_ends_and_the_next_begins_where_it_stopped(node: Node) -> None:
    client = Daemon(node.docker.path)
    with client.events(silence_s=0.5) as stream:
        until(node.docker.listening.is_set)
        node.docker.emit("oom", container_id(1))
        (heard,) = list(stream)
    node.clock.elapsed_s += 1
    node.docker.emit("die", container_id(1), exitCode="137")
    with client.events(since_nanos=heard["timeNano"], silence_s=0.5) as stream:
        assert [event["Action"] for event in stream] == ["oom", "die"], "that moment included"
    with client.events(since_nanos=heard["timeNano"] + 1, silence_s=0.5) as stream:
        assert [event["Action"] for event in stream] == ["die"]


def test_a_stream_that_breaks_is_no_silence(node: Node) -> None:
    with Daemon(node.docker.path).events() as stream, pytest.raises(EngineUnavailable, match="ended"):
        until(node.docker.listening.is_set)
        node.docker.break_streams()
        list(stream)
