"""What happens to a world while it is being shaken: to its operator, its API, its engine, its nodes, its clock, and by its people.

Used by `story`, which asks for a list of moments and performs what is due. Each method of `Happenings` is one kind; what is not for
ever registers in `world.restores` how it ends. Draws everything from one random source.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from contextvars import Context
from dataclasses import replace
from datetime import timedelta
from typing import Any

from swarmtask.controllers import crashpoints
from swarmtask.engines.base import Workload as EngineWorkload
from swarmtask.kube import Object
from swarmtask.resources.kinds import SWARM_NODE, SWARM_QUEUE, SWARM_TASK
from swarmtask.resources.task import ANNOTATION_CANCEL, ANNOTATION_FRONT, ANNOTATION_RETRY, attempt_id
from tests.simulation.chances import PER_MINUTE
from tests.simulation.workload import Birth
from tests.simulation.world import World

RARE: Mapping[str, float] = {
    "stop": 2, "remove": 3, "release-finalizer": 2, "delete-task": 3, "remove-orphan": 2,
    "write-array": 10, "create-member": 12, "delete-member": 12, "steer-member": 12,
}  # fmt: skip
"""Write -> how much likelier an operator is to be killed around it than around one that happens all the time."""
OF_ARRAYS = frozenset({"write-array", "create-member", "delete-member", "steer-member"})


class Happenings:
    """See the module."""

    def __init__(self, world: World, rng: random.Random) -> None:
        self._world, self._rng = world, rng
        self._counter = 0
        self._again = world.source("queues made again")
        self._minds = world.source("changes of nodeLoss")
        self._edited: set[tuple[str, int, str | None]] = set()
        """(UID, attempt, phase) of tasks whose nodeLoss was edited then."""
        self._kinds: Mapping[str, Callable[[], None]] = {
            "crash": self.crash, "crashpoint": self.crash_point, "stall": self.stall, "api.down": self.api_down,
            "api.hold": self.hold_watches, "api.expire": self.expire_watches, "engine.down": self.engine_down,
            "node.lost": self.lose_node, "node.flap": self.flap_node, "node.leave": self.node_leaves, "clock.jump": self.jump_clock,
            "orphan": self.orphan, "removed": self.remove_behind_its_back, "person.task": self.person_at_task,
            "person.node": self.person_at_node, "person.queue": self.person_at_queue, "agent.lost": self.lose_agent,
        }  # fmt: skip
        assert self._kinds.keys() == PER_MINUTE.keys()
        self._leads: Mapping[str, tuple[str, Callable[[], None]]] = {
            "stop": ("person.task", self._end_something), "release-finalizer": ("person.task", self._delete_something),
            "steer-member": ("person.task", self._steer_an_array), "delete-member": ("person.task", self._narrow_an_array),
            "create-member": ("person.task", self._delete_a_run), "remove-orphan": ("orphan", self.orphan),
            "create-node": ("person.node", self._delete_a_node), "label-node": ("person.node", self._unlabel_a_node),
            "create-queue": ("person.queue", self._come_to_a_new_namespace), "take-tenure": ("crash", self.crash),
        }  # fmt: skip

    def plan(self) -> list[tuple[float, str, Callable[[], None]]]:
        """(moment, kind, what to do) of everything that will happen, by time."""
        moments: list[tuple[float, str, Callable[[], None]]] = []
        for kind, act in self._kinds.items():
            rate = self._world.chances.rates.get(kind, 0.0) * self._world.haste
            at_s = self._rng.expovariate(rate / 60) if rate else float("inf")
            while at_s < self._world.workload.chaos_s:
                moments.append((at_s, kind, act))
                at_s += self._rng.expovariate(rate / 60)
        moves, when = self._world.workload.front, self._world.source("front")
        moments += [(when.uniform(moves.from_s, moves.to_s), "to the front", self.move_to_front) for _ in range(moves.count)]
        hogs, when = self._world.workload.hogs, self._world.source("hogs")
        if self._world.chances.allowed:
            moments += [(when.uniform(hogs.from_s, hogs.to_s), "memory is short", self.hog) for _ in range(hogs.count)]
        moments += self._changes_of_mind()
        return sorted(moments, key=lambda moment: moment[:2])

    def _changes_of_mind(self) -> list[tuple[float, str, Callable[[], None]]]:
        """When people edit what is to happen to a live attempt whose node is lost; where its node has an agent to fence it."""
        world, when = self._world, self._minds
        per_minute = when.choice((0.0, 0.0, 6.0, 20.0)) * world.haste
        moments, at_s = [], when.expovariate(per_minute / 60) if per_minute else float("inf")
        while at_s < world.workload.chaos_s and world.agents and "person.task" in world.chances.allowed:
            moments.append((at_s, "nodeLoss", self.edit_node_loss))
            at_s += when.expovariate(per_minute / 60)
        return moments

    # --- the operator, the API, the engine, the clock ---

    def crash(self) -> None:
        self._world.kill_operator("at some await", self._pause_s())

    def crash_point(self) -> None:
        """Arm one, rather around a write that is rare; where somebody can do what leads to that write, he does."""
        arrays = any(birth.members for birth in self._world.births)
        writes = [point.partition(":")[2] for point in crashpoints.POINTS]
        weights = [0.0 if write in OF_ARRAYS and not arrays else RARE.get(write, 1.0) for write in writes]
        point = self._rng.choices(crashpoints.POINTS, weights)[0]
        self._world.arm(point, self._pause_s())
        kind, lead = self._leads.get(point.partition(":")[2], ("", lambda: None))
        if kind in self._world.chances.allowed:
            lead()

    def stall(self) -> None:
        world, number = self._world, self._world.operators
        if world.operator is not None and "stall" not in world.restores:
            world.loop.pause(number)
            self._for_a_while("stall", self._rng.uniform(1, 30), lambda: world.loop.resume(number))

    def api_down(self) -> None:
        self._world.kube.down = True
        self._for_a_while("api.down", self._rng.uniform(1, 15), lambda: setattr(self._world.kube, "down", False))

    def hold_watches(self) -> None:
        self._world.kube.hold_watches()
        self._for_a_while("api.hold", self._rng.uniform(0.5, 8), self._world.kube.release_watches)

    def expire_watches(self) -> None:
        self._world.kube.expire_watches()

    def engine_down(self) -> None:
        self._world.engine.unavailable = True
        self._for_a_while("engine.down", self._rng.uniform(1, 20), lambda: setattr(self._world.engine, "unavailable", False))

    def jump_clock(self) -> None:
        jump_s = self._rng.choice((1, -1)) * self._rng.choice((self._rng.uniform(1, 120), 3600.0))
        self._world.set_clock(jump_s)

    # --- nodes ---

    def lose_node(self) -> None:
        node = self._rng.choice(self._world.node_ids)
        self._lose(node, self._rng.choice([self._rng.uniform(*bounds) for bounds in self._world.workload.losses.for_s]))

    def flap_node(self) -> None:
        node, at_s = self._rng.choice(self._world.node_ids), 0.0
        for _ in range(self._rng.randint(2, 5)):
            down_s, up_s = self._rng.uniform(1, 6), self._rng.uniform(0.5, 5)
            self._later(at_s, lambda down_s=down_s: self._lose(node, down_s))
            at_s += down_s + up_s

    def _lose(self, node: str, for_s: float) -> None:
        engine = self._world.engine
        if engine._nodes[node].removed or not engine._nodes[node].connected:
            return
        how = getattr(engine, self._rng.choice(self._world.workload.losses.ways))
        self._world.note(f"{node}: {how.__name__} for {for_s:.1f} s")
        how(node)
        self._for_a_while(f"node {node}", for_s, lambda: self._back(node))

    def _back(self, node: str) -> None:
        if not self._world.engine._nodes[node].removed:
            self._world.note(f"{node} is back")
            self._world.engine.reconnect(node)

    def lose_agent(self) -> None:
        """Of a node that its engine goes on to reach: its agent dies, or cannot reach the API any more."""
        world = self._world
        agents = [agent for node, agent in world.agents.items() if node in world.node_ids and agent.alive and agent.reaches]
        if not agents:
            return
        agent, for_s = self._rng.choice(agents), self._rng.uniform(3, 60)
        what = self._rng.choice(("alive", "reaches"))
        world.note(f"the agent of {agent.node_id} is not {what} for {for_s:.1f} s")
        setattr(agent, what, False)
        if what == "alive":
            world.excuse_node(agent.node_id)
        self._for_a_while(f"agent {agent.node_id}", for_s, lambda: setattr(agent, what, True))

    def hog(self) -> None:
        """A machine runs out of memory: its agent asks for the end of an attempt, or ends one."""
        world = self._world
        agents = [agent for node, agent in world.agents.items() if node in world.node_ids and not agent.short]
        if agents:
            agent, for_s = self._rng.choice(agents), self._rng.uniform(2, 15)
            world.note(f"{agent.node_id} runs out of memory for {for_s:.1f} s")
            agent.short = True
            self._for_a_while(f"hog {agent.node_id}", for_s, lambda: setattr(agent, "short", False))

    def node_leaves(self) -> None:
        world = self._world
        node = self._rng.choice(world.node_ids)
        info = world.engine._nodes[node].info
        world.note(f"{node} leaves its engine for good")
        world.engine.remove_node(node)
        world.node_ids.remove(node)
        again = lambda: world.add_node(info.hostname, info.cpu_milli, info.memory_bytes // 2**30, info.gpus)  # noqa: E731
        if world.node_ids:
            self._for_a_while(f"machine {info.hostname}", self._rng.uniform(2, 30), again)
        else:
            again()

    # --- workloads behind the operator's back ---

    def orphan(self) -> None:
        """A workload with our label whose task nobody knows, for example of a database that was restored from a backup."""
        world, uid = self._world, f"{self._rng.getrandbits(128):032x}"
        work = EngineWorkload(
            name=attempt_id(uid, 1), task_uid=uid, namespace="default", task_name=f"lost-{uid[:6]}", attempt=1,
            node_id=self._rng.choice(world.node_ids), image="busybox",
        )  # fmt: skip
        world.adopted.add(work.name)
        world.note(f"an orphan appears: {work.name}")
        world.engine.adopt(work)

    def remove_behind_its_back(self) -> None:
        """`docker service rm` by hand; on a node that the engine reaches, where it ends the program."""
        engine, seen = self._world.engine, self._observed()
        found = [name for name, run in engine._runs.items() if name in seen and engine._nodes[run.workload.node_id].connected]
        if found:
            name = self._rng.choice(found)
            self._world.note(f"somebody removes {name} behind the operator's back")
            if self._world.flaky_engine.under_way[name]:
                self._world.excused.add(name)  # with the name goes what keeps that submit from running the attempt again
            engine.lose(name)

    def _observed(self) -> set[str]:
        """Attempts that the operator has seen. One that it has not seen yet it would rightly submit again."""
        attempts = [one for obj in self._world.kube.all(SWARM_TASK) for one in (obj.get("status") or {}).get("attempts") or ()]
        return {one["id"] for one in attempts if one.get("observed")}

    # --- people ---

    def person_at_task(self) -> None:
        tasks = self._world.kube.all(SWARM_TASK)
        if not tasks:
            return
        dead = [obj for obj in tasks if (obj.get("status") or {}).get("phase") in ("Failed", "Cancelled", "Expired")]
        if dead and self._rng.random() < 0.25:
            obj = self._rng.choice(dead)
            self._world.note(f"a person retries {obj['metadata']['name']}")
            self._retry(obj)
            return
        obj = self._rng.choice(tasks)
        act = self._rng.choice((
            self._edit, self._cancel, self._uncancel, self._suspend, self._resume, self._delete, self._retry, self._recreate,
        ))  # fmt: skip
        self._world.note(f"a person: {act.__name__} {obj['metadata']['name']}")
        act(obj)

    def _edit(self, obj: Object) -> None:
        changes: list[Any] = [
            {"priority": self._rng.randint(-5, 5)}, {"backoffLimit": self._rng.randint(0, 4)},
            {"container": {"image": f"busybox:{self._rng.randint(1, 9)}"}},
            {"container": {"resources": {"requests": {"cpu": self._rng.choice(("100m", "2", "4"))}}}},
            {"placement": {"nodeName": self._rng.choice((None, "n1"))}},
            {"queue": self._rng.choice(("default", "elsewhere"))},
            {"queueDeadlineSeconds": self._rng.choice((None, 1, 20))}, {"activeDeadlineSeconds": self._rng.choice((2, 20))},
        ]  # fmt: skip
        if obj["spec"].get("completions"):
            changes += [{"completions": self._rng.randint(1, 12)} for _ in range(2)]
            changes += [{"parallelism": self._rng.choice((None, 1, 3))}, {"maxFailedIndexes": self._rng.choice((None, 0, 1))}]
        if obj["spec"].get("dedupeKey"):
            changes.append({"dedupeKey": self._rng.choice((None, "a", "b"))})
        self._patch(obj, {"spec": self._rng.choice(changes)})

    def edit_node_loss(self) -> None:
        """Of an unfinished task, once for each attempt and phase of it: rather of one whose node is silent."""
        tasks = {}
        for obj in self._world.kube.all(SWARM_TASK):
            status = obj.get("status") or {}
            stand = (obj["metadata"]["uid"], status.get("attempt", 0), status.get("phase"))
            if stand not in self._edited and stand[2] in ("Queued", "Backoff", "Starting", "Running", "Unknown"):
                tasks[stand] = obj
        found = [stand for stand in tasks if stand[2] == "Unknown"] or list(tasks)
        if found:
            stand = self._minds.choice(found)
            self._edited.add(stand)
            obj = tasks[stand]
            loss = {
                "replace": self._minds.choices(("afterFence", "never", "afterLost"), (3, 2, 1))[0],
                "graceSeconds": self._minds.choice((0, 3, 10)),
            }
            self._world.note(f"a person edits nodeLoss of {obj['metadata']['name']}: {loss}")
            self._patch(obj, {"spec": {"nodeLoss": loss}})

    def _cancel(self, obj: Object) -> None:
        self._patch(obj, {"metadata": {"annotations": {ANNOTATION_CANCEL: self._words()}}})

    def _uncancel(self, obj: Object) -> None:
        self._patch(obj, {"metadata": {"annotations": {ANNOTATION_CANCEL: None}}})

    def _suspend(self, obj: Object) -> None:
        self._patch(obj, {"spec": {"suspend": True}})

    def _resume(self, obj: Object) -> None:
        self._patch(obj, {"spec": {"suspend": None}})

    def _retry(self, obj: Object) -> None:
        self._patch(obj, {"metadata": {"annotations": {ANNOTATION_RETRY: self._words()}}})

    def _delete(self, obj: Object) -> None:
        self._world.delete_task(obj)

    def _recreate(self, obj: Object) -> None:
        """Delete, and create again under the same name as soon as that is free."""
        self._world.delete_task(obj)
        birth = next((one for one in self._world.births if one.name == obj["metadata"]["name"]), None)
        if birth is not None:
            self._create_when_free(birth)

    def _create_when_free(self, birth: Birth) -> None:
        if self._world.kube.peek(SWARM_TASK, birth.name, "default") is None:
            self._world.create_task(birth)
        elif self._world.chances.active:
            self._later(0.5, lambda: self._create_when_free(birth))

    def move_to_front(self) -> None:
        """One that waits. A workload asks for it, and it is no fault: it happens where nothing goes wrong too."""
        obj = self._some(lambda one: (one.get("status") or {}).get("phase") == "Queued")
        if obj is not None:
            self._world.note(f"a person moves {obj['metadata']['name']} to the front")
            moment = self._world.true_clock.now().isoformat(timespec="microseconds")
            self._patch(obj, {"metadata": {"annotations": {ANNOTATION_FRONT: moment}}})

    # --- what leads to a rare write ---

    def _some(self, fits: Callable[[Object], bool]) -> Object | None:
        found = [obj for obj in self._world.kube.all(SWARM_TASK) if fits(obj)]
        return self._rng.choice(found) if found else None

    def _end_something(self) -> None:
        obj = self._some(lambda one: (one.get("status") or {}).get("phase") in ("Scheduled", "Starting", "Running"))
        if obj is not None:
            self._world.note(f"a person ends {obj['metadata']['name']}")
            self._rng.choice((self._cancel, self._suspend))(obj)

    def _delete_something(self) -> None:
        obj = self._some(lambda one: True)
        if obj is not None:
            self._world.note(f"a person deletes {obj['metadata']['name']}")
            self._delete(obj)

    def _steer_an_array(self) -> None:
        obj = self._some(lambda one: bool(one["spec"].get("completions")) and not (one.get("status") or {}).get("completionTime"))
        if obj is not None:
            self._world.note(f"a person steers {obj['metadata']['name']}")
            self._rng.choice((self._cancel, self._suspend))(obj)

    def _narrow_an_array(self) -> None:
        obj = self._some(lambda one: bool(one["spec"].get("completions")))
        if obj is not None:
            self._world.note(f"a person narrows {obj['metadata']['name']}")
            fewer = {"completions": max(1, obj["spec"]["completions"] // 2)}
            narrow = lambda one: self._patch(one, {"spec": self._rng.choice(({"parallelism": 1}, fewer))})  # noqa: E731
            self._rng.choice((self._cancel, self._retry, narrow, narrow))(obj)

    def _delete_a_run(self) -> None:
        """Of an array, which has to create it again."""
        obj = self._some(lambda one: bool(one["metadata"].get("ownerReferences")))
        if obj is not None:
            self._world.note(f"a person deletes {obj['metadata']['name']}")
            self._delete(obj)

    def _delete_a_node(self) -> None:
        nodes = self._world.kube.all(SWARM_NODE)
        if nodes:
            self._world.kube.remove(SWARM_NODE, self._rng.choice(nodes)["metadata"]["name"])

    def _unlabel_a_node(self) -> None:
        """`docker node update --label-rm` by hand."""
        node = self._world.engine._nodes[self._rng.choice(self._world.node_ids)]
        self._world.note(f"a person takes the labels off {node.info.id}")
        node.info = replace(node.info, labels={})

    def _come_to_a_new_namespace(self) -> None:
        """With a task that is to wait: the operator makes the queue. It is deleted soon, so that no run waits for it."""
        world, self._counter = self._world, self._counter + 1
        name = f"newcomer-{self._counter}"
        world.note(f"a person comes to the namespace {name}")
        spec = {"suspend": True, "container": {"image": "busybox:1"}}
        made = world.kube.add(SWARM_TASK, {"metadata": {"name": name, "namespace": name}, "spec": spec})
        world.checker.acknowledged_create(name, name, made["metadata"]["uid"], world.true_clock.now())

        def leave() -> None:
            obj = world.kube.peek(SWARM_TASK, name, name)
            if obj is not None:
                world.delete_task(obj)

        self._for_a_while(f"namespace {name}", 10.0, leave)

    def person_at_node(self) -> None:
        nodes = self._world.kube.all(SWARM_NODE)
        if not nodes:
            return
        name = self._rng.choice(nodes)["metadata"]["name"]
        change: dict[str, Any] | None = self._rng.choice((
            {"unschedulable": True}, {"unschedulable": None}, {"maxTasks": self._rng.randint(0, 3)}, {"maxTasks": None}, None,
            {"drain": True}, {"drain": True}, {"drain": None}, {"quietHours": self._quiet_hours()}, {"quietHours": None},
        ))  # fmt: skip
        if change is None:
            self._world.note(f"a person deletes the SwarmNode {name}")
            self._world.kube.remove(SWARM_NODE, name)
            return
        self._world.kube.edit(SWARM_NODE, name, None, {"spec": change})
        self._world.restores["nodes"] = self._open_nodes

    def _quiet_hours(self) -> str:
        """Some that begin or end soon, by the operator's clock."""
        now = self._world.clock.now()
        begin, end = (now + timedelta(minutes=self._rng.randint(-2, 3)) for _ in range(2))
        return f"{begin:%H:%M}-{end:%H:%M}" if f"{begin:%H:%M}" != f"{end:%H:%M}" else "00:00-24:00"

    def _open_nodes(self) -> None:
        for obj in self._world.kube.all(SWARM_NODE):
            wishes = {"unschedulable": None, "maxTasks": None, "drain": None, "quietHours": None}
            self._world.kube.edit(SWARM_NODE, obj["metadata"]["name"], None, {"spec": wishes})

    def person_at_queue(self) -> None:
        queues = self._world.kube.all(SWARM_QUEUE)
        if not queues:
            return
        name = self._rng.choice(queues)["metadata"]["name"]
        changes: list[dict[str, Any] | None] = [
            {"stopped": True}, {"stopped": None}, {"maxRunning": self._rng.randint(0, 4)}, {"maxRunning": None}, None,
            {"maxRunningPerNode": self._rng.randint(0, 2)}, {"maxRunningPerNode": None},
        ]  # fmt: skip
        for limit in sorted((self._world.workload.queues.get(name) or {}).get("limits") or ()):
            changes += [{"limits": {limit: self._rng.randint(0, 4)}}, {"limits": {limit: None}}]
        change = self._rng.choice(changes)
        if change is None:
            self._replace_queue(name)
        else:
            self._world.kube.edit(SWARM_QUEUE, name, "default", {"spec": change})

    def _replace_queue(self, name: str) -> None:
        """Delete it; mostly it is made again as it was, after a while in which only its tasks know of it."""
        world, again = self._world, self._again
        spec = (world.kube.peek(SWARM_QUEUE, name, "default") or {}).get("spec") or {}
        world.note(f"a person deletes the queue {name}")
        world.kube.remove(SWARM_QUEUE, name, "default")
        if again.random() < 0.9:
            after_s = again.choice((0.0, again.uniform(0, 0.5), again.uniform(0, 10)))
            self._for_a_while(f"queue {name}", after_s, lambda: self._make_queue(name, spec))

    def _make_queue(self, name: str, spec: Object) -> None:
        """As `kubectl apply` does: also where a new operator, which could not know that the queue had been there, was faster."""
        world = self._world
        world.note(f"a person makes the queue {name} again")
        if world.kube.peek(SWARM_QUEUE, name, "default") is None:
            world.make_queue(name, spec)
        else:
            world.kube.edit(SWARM_QUEUE, name, "default", {"spec": spec})

    # --- inside ---

    def _patch(self, obj: Object, patch: dict[str, Any]) -> None:
        metadata = obj["metadata"]
        if patch.get("spec", {}).get("container"):
            patch["spec"]["container"] = {"image": obj["spec"]["container"]["image"]} | patch["spec"]["container"]
        self._world.kube.edit(SWARM_TASK, metadata["name"], metadata["namespace"], patch)

    def _words(self) -> str:
        self._counter += 1
        return f"{self._counter}"

    def _pause_s(self) -> float:
        return self._rng.choice((0.0, self._rng.uniform(0, 1), self._rng.uniform(0, 12)))

    def _later(self, delay_s: float, act: Callable[[], None]) -> None:
        def if_still_shaking() -> None:
            if self._world.chances.active:
                act()

        self._world.loop.call_later(delay_s, if_still_shaking, context=Context())

    def _for_a_while(self, name: str, delay_s: float, end: Callable[[], None]) -> None:
        """`end` happens after the delay, or when all faults end; the first of several of one name wins."""
        known = self._world.restores.get(name)

        def over() -> None:
            if self._world.restores.pop(name, None) is not None:
                end()

        if known is None:
            self._world.restores[name] = over
            self._later(delay_s, over)
