"""From when on a changed limit counts: never before it may be in force, never later than it has to be."""

from __future__ import annotations

from typing import Any, cast

from swarmtask.controllers.cache import Cache
from swarmtask.kube import Object
from swarmtask.resources.kinds import SWARM_NODE, SWARM_QUEUE, Kind
from tests.simulation.limits import Limits, Sent

TASK = ("default", "t")


class Scene:
    """`Limits` with an operator's cache that knows and assumes what a test says."""

    def __init__(self, kind: Kind = SWARM_QUEUE) -> None:
        self.told: list[Object] = []
        self.limits = Limits(lambda _kind, obj: self.told.append(obj))
        self.cache, self.kind, self.version = Cache(), kind, 0
        self.sent: dict[int, Sent] = {}

    def store(self, *, status: Any = None, **spec: Any) -> None:
        self.version += 1
        namespace = {"namespace": "default"} if self.kind is SWARM_QUEUE else {}
        body = {"metadata": {"name": "x", "resourceVersion": str(self.version)} | namespace, "spec": spec}
        self.limits.changed(self.kind, body | ({"status": status} if status else {}))

    def hear(self) -> None:
        """The operator's watch has shown the newest version."""
        namespace = "default" if self.kind is SWARM_QUEUE else ""
        self.cache._versions[(self.kind.plural, (namespace, "x"))] = self.version
        self.look()

    def look(self) -> None:
        self.limits.look(self.cache, self.sent)

    def place(self, number: int) -> None:
        """A placement is written, by a write of this number."""
        self.cache._assumed[TASK] = cast(Any, object())
        self.sent[number] = Sent(TASK, places=True)

    @property
    def spec(self) -> Any:
        return self.told[-1]["spec"]


def test_a_lowered_bound_counts_when_the_operator_has_heard_of_it_and_what_it_had_sent_has_arrived() -> None:
    scene = Scene()
    scene.store(maxRunning=4)
    scene.place(1)
    scene.store(maxRunning=1)
    scene.look()
    assert scene.spec == {"maxRunning": 4}
    scene.hear()
    assert scene.spec == {"maxRunning": 4}
    scene.place(2)  # what is sent now, also of the same placement, has had to be looked at again
    del scene.sent[1]
    scene.look()
    assert scene.spec == {"maxRunning": 1}


def test_a_placement_that_was_given_up_may_still_arrive() -> None:
    scene = Scene()
    scene.store(maxRunning=4)
    scene.place(1)
    scene.cache._assumed.clear()
    scene.sent[2] = Sent(("default", "other"), places=False)
    scene.store(maxRunning=1)
    scene.hear()
    assert scene.spec == {"maxRunning": 4}
    del scene.sent[1]
    scene.look()
    assert scene.spec == {"maxRunning": 1}


def test_a_bound_that_is_raised_counts_at_once_also_when_another_one_is_lowered() -> None:
    scene = Scene()
    scene.store(maxRunningPerNode=0, limits={"a": 1, "b": 1})
    scene.hear()
    scene.store(maxRunningPerNode=0, maxRunning=2, limits={"a": 3, "b": 1})
    assert scene.spec == {"maxRunningPerNode": 0, "limits": {"a": 3, "b": 1}}
    scene.store(maxRunning=2, limits={"a": 0})
    assert scene.spec == {"limits": {"a": 3}}
    scene.hear()
    assert scene.spec == {"maxRunning": 2, "limits": {"a": 0}}


def test_the_limits_of_a_new_queue_count_when_the_operator_has_heard_of_them() -> None:
    """They are also those of the tasks of others."""
    scene = Scene()
    scene.place(1)
    scene.store(maxRunning=2, limits={"a": 1})
    assert scene.spec == {"maxRunning": 2, "limits": {}}
    scene.hear()
    assert scene.spec == {"maxRunning": 2, "limits": {}}
    scene.sent.clear()
    scene.look()
    assert scene.spec == {"maxRunning": 2, "limits": {"a": 1}}


def test_a_deleted_queue_starts_nothing_once_the_operator_knows_and_has_its_bounds_when_it_is_back() -> None:
    scene = Scene()
    scene.store(maxRunning=4)
    scene.store(maxRunning=0)  # so `world` tells of a deletion
    scene.cache._versions.clear()
    scene.look()
    assert scene.spec == {"maxRunning": 4}
    scene.cache._tombstones[(SWARM_QUEUE.plural, ("default", "x"))] = scene.version
    scene.look()
    assert scene.spec == {"maxRunning": 0}
    scene.store(maxRunning=4)
    assert scene.spec == {"maxRunning": 4}


def test_the_same_of_a_node_of_which_one_amount_grows_and_another_shrinks() -> None:
    scene = Scene(SWARM_NODE)
    scene.store(status={"allocatable": {"cpu": "4", "memory": "8Gi", "gpu": 1}})
    scene.store(status={"allocatable": {"cpu": "2500m", "memory": "16Gi", "gpu": 1}}, maxTasks=1)
    assert scene.told[-1]["status"]["allocatable"] == {"cpu": "4000m", "memory": str(16 * 2**30), "gpu": 1}
    assert scene.spec == {"maxTasks": None}
    scene.hear()
    assert scene.told[-1]["status"]["allocatable"]["cpu"] == "2500m"
    assert scene.spec == {"maxTasks": 1}
