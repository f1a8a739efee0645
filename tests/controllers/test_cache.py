"""The cache: older news never wins, sums are always the sums."""

from __future__ import annotations

import random
from collections import Counter
from datetime import UTC, datetime
from typing import Any

from swarmtask.controllers.cache import Cache
from swarmtask.controllers.entries import Change
from swarmtask.controllers.snapshots import take_snapshot
from swarmtask.kube import Object
from swarmtask.resources.kinds import SWARM_NODE, SWARM_QUEUE, SWARM_TASK
from swarmtask.scheduler.model import Amounts, LimitInfo, RunningTask

GIB = 2**30


def task(
    name: str,
    version: int,
    *,
    uid: str = "",
    phase: str = "Queued",
    node: str = "",
    cpu: str = "1",
    gpus: tuple[int, ...] = (),
    **spec: Any,
) -> Object:
    uid = uid or f"uid-{name}"
    status: Object = {"phase": phase, "queuedTime": "2026-01-01T00:00:00Z"}
    if node:
        held = {"cpu": cpu, "memory": "1Gi", "gpu": len(gpus), "gpuIndices": list(gpus)}
        status["attempt"] = 1
        status["attempts"] = [
            {"number": 1, "id": f"st-{name}-1", "node": node, "engine": "swarm", "state": "Running", "requested": held}
        ]
    container = {"image": "busybox", "resources": {"requests": {"cpu": cpu, "memory": "1Gi"}}}
    return {
        "apiVersion": "swarmtask.io/v1alpha1", "kind": "SwarmTask",
        "metadata": {"name": name, "namespace": "default", "uid": uid, "resourceVersion": str(version)},
        "spec": {"container": container} | spec, "status": status,
    }  # fmt: skip


KEY = ("default", "a")


def test_older_news_changes_nothing() -> None:
    cache = Cache()
    assert cache.apply(SWARM_TASK, task("a", 5, phase="Running", node="n1"))
    assert not cache.apply(SWARM_TASK, task("a", 4))
    assert not cache.apply(SWARM_TASK, task("a", 5))
    assert not cache.remove(SWARM_TASK, KEY, 4)
    assert cache.tasks[KEY].task.status.phase == "Running"


def test_a_look_that_finds_nothing_forgets_no_deletion() -> None:
    cache = Cache()
    cache.apply(SWARM_TASK, task("a", 5))
    assert cache.remove(SWARM_TASK, KEY, 9)
    assert not cache.remove(SWARM_TASK, KEY)
    assert not cache.apply(SWARM_TASK, task("a", 8)), "news from before the deletion, told late"
    assert not cache.tasks
    assert cache.apply(SWARM_TASK, task("a", 10))


def test_a_deleted_object_does_not_come_back_by_old_news() -> None:
    cache = Cache()
    cache.apply(SWARM_TASK, task("a", 5))
    assert cache.remove(SWARM_TASK, KEY, 7)
    assert not cache.apply(SWARM_TASK, task("a", 6))
    assert KEY not in cache.tasks
    assert cache.apply(SWARM_TASK, task("a", 8, uid="another"))


def test_a_complete_list_removes_what_it_lacks_unless_that_is_newer() -> None:
    cache = Cache()
    gone: list[Change] = []
    cache.apply(SWARM_TASK, task("a", 5))
    cache.apply(SWARM_TASK, task("b", 6))
    cache.apply(SWARM_TASK, task("c", 20))
    cache.listeners.append(lambda change: gone.append(change) if change.gone else None)
    cache.replace(SWARM_TASK, [task("b", 6)], 10)
    assert set(cache.tasks) == {("default", "b"), ("default", "c")}
    assert [(change.key, change.uid) for change in gone] == [(KEY, "uid-a")]


def test_an_assumed_task_waits_no_more_and_holds_its_node() -> None:
    cache = Cache()
    cache.apply(SWARM_TASK, task("a", 5))
    (pending,) = cache.waiting()
    assert cache.assume(pending, "n1")
    assert not cache.assume(pending, "n2"), "one assumption at a time"
    assert list(cache.waiting()) == []
    assert cache.requested("n1") == Amounts(1000, GIB)
    assert cache.running(("default", "default")) == 1

    cache.apply(SWARM_TASK, task("a", 6, phase="Starting", node="n1"))
    assert cache.assumption(KEY) is None
    assert cache.requested("n1") == Amounts(1000, GIB)
    assert cache.tasks_on("n1") == 1


def test_a_dropped_assumption_gives_everything_back() -> None:
    cache = Cache()
    cache.apply(SWARM_TASK, task("a", 5))
    (pending,) = cache.waiting()
    cache.assume(pending, "n1")
    assert cache.drop_assumption(KEY)
    assert not cache.drop_assumption(KEY)
    assert cache.requested("n1") == Amounts()
    assert [item.key for item in cache.waiting()] == [KEY]


def test_a_task_that_changed_after_it_was_chosen_is_not_assumed() -> None:
    cache = Cache()
    cache.apply(SWARM_TASK, task("a", 5))
    (pending,) = cache.waiting()
    cache.apply(SWARM_TASK, task("a", 6, cpu="4"))
    assert not cache.assume(pending, "n1")


def test_an_assumption_ends_when_the_task_grows_or_goes() -> None:
    for news in (task("a", 6, cpu="4"), None):
        cache = Cache()
        cache.apply(SWARM_TASK, task("a", 5))
        (pending,) = cache.waiting()
        cache.assume(pending, "n1")
        if news is None:
            cache.remove(SWARM_TASK, KEY, 6)
        else:
            cache.apply(SWARM_TASK, news)
        assert cache.requested("n1") == Amounts()
        assert cache.running(("default", "default")) == 0


def test_writes_about_the_place_in_the_queue_do_not_wake_the_scheduler() -> None:
    cache = Cache()
    changes: list[Change] = []
    cache.listeners.append(changes.append)
    cache.apply(SWARM_TASK, task("a", 5))
    news = task("a", 6)
    news["status"] |= {"queuePosition": 3, "reason": "NoNodeFits", "message": "0/3 nodes fit"}
    cache.apply(SWARM_TASK, news)
    assert [change.placement for change in changes] == [True, False]


def test_a_node_status_with_other_sums_only_does_not_wake_the_scheduler() -> None:
    cache = Cache()
    changes: list[Change] = []
    cache.listeners.append(changes.append)
    for version, tasks in enumerate((0, 1), 1):
        status = {"phase": "Ready", "tasks": tasks, "requested": {"cpu": str(tasks), "memory": "0", "gpu": 0}}
        cache.apply(SWARM_NODE, {"metadata": {"name": "n1", "resourceVersion": str(version)}, "status": status})
    assert [change.placement for change in changes] == [True, False]


def test_broken_nodes_take_nothing() -> None:
    status = {"phase": "Ready", "engines": [{"name": "fake", "id": "n1"}], "capacity": {"cpu": "4", "memory": "8Gi"}}
    for spec, ready in (({"maxTasks": 2}, True), ({"maxTasks": "lots"}, False)):
        cache = Cache()
        cache.apply(SWARM_NODE, {"metadata": {"name": "n1", "resourceVersion": "1"}, "spec": spec, "status": status})
        assert [node.ready for node in take_snapshot(cache, lambda engine: True, 0.0).nodes] == [ready]


def queue_of(name: str, limits: dict[str, int], namespace: str = "default") -> Object:
    return {"metadata": {"name": name, "namespace": namespace, "resourceVersion": "1"}, "spec": {"limits": limits}}


def test_the_smallest_number_that_a_queue_says_of_a_limit_is_in_force_for_all() -> None:
    cache = Cache()
    for namespace, name, limits in (("a", "z", {"x": 5, "y": 1}), ("b", "default", {"x": 2}), ("c", "q", {"x": 2, "y": 3})):
        cache.apply(SWARM_QUEUE, queue_of(name, limits, namespace))
    assert cache.limits() == {"x": LimitInfo(2, ("b", "default")), "y": LimitInfo(1, ("a", "z"))}
    cache.remove(SWARM_QUEUE, ("b", "default"), 2)
    assert cache.limits()["x"].queue == ("c", "q")
    for number, queue in enumerate(["z", "without"]):
        cache.apply(SWARM_TASK, task(f"t{number}", number + 4, queue=queue, limits={"x": 2}))
    cache.assume(next(one for one in cache.waiting() if one.key[1] == "t0"), "n1", ())
    assert cache.limits()["x"].holders == {("default", "t0"): 2}
    assert (cache.limit_held("x"), cache.limit_held("nobody's")) == (2, 0)


def test_sums_stay_sums_whatever_happens() -> None:
    rng = random.Random(7)
    cache = Cache()
    cache.apply(SWARM_QUEUE, queue_of("q", {"model/x": 4}))
    for version in range(1, 3001):
        name = f"t{rng.randrange(12)}"
        key = ("default", name)
        match rng.randrange(6):
            case 0 | 1:
                limits = {"model/x": rng.randint(1, 2)} if rng.randrange(2) else {}
                queue = rng.choice(["default", "q"])
                cache.apply(SWARM_TASK, task(name, version, cpu=str(rng.randint(1, 3)), queue=queue, limits=limits))
            case 2:
                gpus = tuple(rng.sample(range(4), rng.randint(0, 2)))
                running = task(name, version, phase="Running", node=rng.choice(["n1", "n2"]), cpu=str(rng.randint(1, 3)), gpus=gpus)
                running["status"]["attempts"][0]["requested"] |= {"queue": rng.choice(["", "q"]), "limits": {"model/x": 3}}
                cache.apply(SWARM_TASK, running)
            case 3:
                cache.remove(SWARM_TASK, key, version)
            case 4:
                waiting = list(cache.waiting())
                if waiting:
                    cache.assume(rng.choice(waiting), rng.choice(["n1", "n2"]), tuple(rng.sample(range(4), rng.randint(0, 2))))
            case _:
                cache.drop_assumption(key)
        assert_sums(cache)


def assert_sums(cache: Cache) -> None:
    requested: dict[str, Amounts] = {}
    by_queue: dict[tuple[str, str], Amounts] = {}
    tasks: Counter[str] = Counter()
    running: Counter[tuple[str, str]] = Counter()
    slots: dict[tuple[str, str], int] = {}
    queue_tasks: dict[str, Counter[tuple[str, str]]] = {"n1": Counter(), "n2": Counter()}
    gpus: dict[str, set[int]] = {"n1": set(), "n2": set()}
    for key, entry in cache.tasks.items():
        assumption = cache.assumption(key)
        if entry.holding is not None:
            node, amounts, queue = entry.holding.node, entry.holding.amounts, entry.holding.queue
            limits = entry.holding.limits
            gpus[node] |= set(entry.holding.gpus)
        elif assumption is not None:
            assert entry.pending is not None
            node, indices = assumption
            gpus[node] |= set(indices)
            amounts, queue, limits = entry.pending.shape.request, entry.pending.queue, entry.pending.shape.limits
        else:
            continue
        requested[node] = requested.get(node, Amounts()) + amounts
        tasks[node] += 1
        running[queue] += 1
        by_queue[queue] = by_queue.get(queue, Amounts()) + amounts
        if limits:
            slots[key] = dict(limits)["model/x"]
        queue_tasks[node][queue] += 1
    for name in ("n1", "n2"):
        assert cache.requested(name) == requested.get(name, Amounts())
        assert cache.tasks_on(name) == tasks[name]
        assert cache.gpus_held(name) == {(index, "") for index in gpus[name]}
        assert cache.queue_tasks_on(name) == queue_tasks[name]
    for queue in (("default", "default"), ("default", "q")):
        assert cache.running(queue) == running[queue]
        assert cache.queue_requested(queue) == by_queue.get(queue, Amounts())
    assert cache.limit_held("model/x") == sum(slots.values())
    assert cache.limits() == {"model/x": LimitInfo(4, ("default", "q"), slots)}
    waiting = {key for key, entry in cache.tasks.items() if entry.pending is not None and cache.assumption(key) is None}
    assert {item.key for item in cache.waiting()} == waiting
    assert dict(cache.namespaces) == dict(Counter(key[0] for key in cache.tasks))


def succeeded(name: str, version: int, *, seconds: int = 30, **spec: Any) -> Object:
    body = task(name, version, phase="Succeeded", node="n1", **spec)
    attempt = body["status"]["attempts"][0]
    attempt |= {"state": "Succeeded", "boundAt": "2026-01-01T00:00:00Z", "finishedAt": f"2026-01-01T00:00:{seconds:02}Z"}
    return body


def test_waiting_tasks_hear_how_long_their_kind_runs_a_few_at_a_time_and_oldest_first() -> None:
    cache = Cache()
    for number in range(5):
        cache.apply(SWARM_TASK, task(f"t{number}", number + 1))
    cache.apply(SWARM_TASK, task("other", 6, cpu="2"))
    cache.apply(SWARM_TASK, succeeded("done", 7))
    cache.apply(SWARM_TASK, task("late", 8))

    def known() -> dict[str, float | None]:
        return {pending.key[1]: pending.duration_s for pending in cache.waiting()}

    assert {name for name, duration_s in known().items() if duration_s} == {"late"}
    cache.refresh_durations(2)
    assert {name for name, duration_s in known().items() if duration_s} == {"t0", "t1", "late"}
    cache.apply(SWARM_TASK, task("t2", 9, phase="Running", node="n1"))
    cache.refresh_durations()
    assert known() == {"t0": 30, "t1": 30, "t3": 30, "t4": 30, "late": 30, "other": None}
    assert {pending.key for pending in cache.waiting()} == {entry.task.key for entry in cache.tasks.values() if entry.pending}


def test_a_duration_that_hardly_moves_is_told_to_nobody_and_one_that_moves_is() -> None:
    cache = Cache()
    cache.apply(SWARM_TASK, task("waits", 1))
    told = []
    for number, seconds in enumerate((30, 31, 32, 59, 59, 59, 59), start=2):
        cache.apply(SWARM_TASK, succeeded(f"done{number}", number, seconds=seconds))
        cache.refresh_durations()
        told.append(next(iter(cache.waiting())).duration_s)
    assert told == [30, 30, 30, 30, 30, 45.5, 59]


def test_learning_does_not_make_an_assumed_task_another_one() -> None:
    cache = Cache()
    cache.apply(SWARM_TASK, task("a", 1))
    (chosen,) = cache.waiting()
    cache.apply(SWARM_TASK, succeeded("done", 2))
    cache.refresh_durations()
    assert cache.assume(chosen, "n1")
    assert cache.assumption(KEY) == ("n1", ())


def test_the_same_success_is_learned_once_and_a_deleted_one_is_not_forgotten() -> None:
    cache = Cache()
    cache.apply(SWARM_TASK, task("waits", 1))
    for version in (2, 3, 4):
        cache.apply(SWARM_TASK, succeeded("quick", version, seconds=10))
    cache.apply(SWARM_TASK, succeeded("slow", 5, seconds=40))
    cache.remove(SWARM_TASK, ("default", "slow"), 6)
    cache.refresh_durations()
    assert next(iter(cache.waiting())).duration_s == 25


def test_what_runs_is_listed_with_its_expected_end_and_is_the_same_object_until_it_changes() -> None:
    cache = Cache()
    cache.apply(SWARM_TASK, task("a", 1, phase="Running", node="n1"))
    cache.apply(SWARM_TASK, task("waits", 2))
    (pending,) = cache.waiting()
    assert cache.assume(pending, "n2")

    def seen(now: float) -> list[RunningTask]:
        return cache.with_ends(cache.running_tasks(now), now)

    running, assumed = seen(100.0)
    assert (running.node, running.attempt, running.ends_at) == ("n1", 1, None)
    assert (assumed.node, assumed.attempt, assumed.bound_at) == ("n2", 0, 100.0)
    cache.apply(SWARM_TASK, succeeded("done", 3))
    known = seen(110.0)
    assert [one.ends_at for one in known] == [130.0, 130.0], "a start that is not recorded counts as now, once"
    assert [one is other for one, other in zip(known, seen(120.0), strict=True)] == [True, True]
    assert [one.ends_at for one in seen(140.0)] == [144.0, 144.0], "overdue: a tenth more of what it has taken"
    cache.drop_assumption(pending.key)
    assert [one.key[1] for one in seen(140.0)] == ["a"]
    cache.remove(SWARM_TASK, KEY, 9)
    assert seen(140.0) == []


def moved(version: int, at: str, **facts: Any) -> Object:
    one = task("a", version, **facts)
    one["metadata"]["annotations"] = {"swarmtask.io/front": at}
    return one


def fronts(cache: Cache) -> list[float | None]:
    return [pending.front_at for pending in cache.waiting()]


def test_a_move_to_the_front_counts_when_its_time_has_come_and_not_before() -> None:
    cache, begin = Cache(), datetime(2026, 1, 1, tzinfo=UTC).timestamp()
    cache.apply(SWARM_TASK, moved(5, "2026-01-01T01:00:00Z"))
    cache.settle_fronts(begin)
    assert (fronts(cache), cache.next_front_at) == ([None], begin + 3300)
    changes: list[Change] = []
    cache.listeners.append(changes.append)
    cache.apply(SWARM_TASK, moved(6, "2026-01-01T01:00:00Z"))
    assert fronts(cache) == [None]
    assert not changes[0].placement, "the same as before: no cycle need look at it"
    (pending,) = cache.waiting()
    assert cache.assume(pending, "n1")
    cache.settle_fronts(begin + 10)
    assert cache.drop_assumption(KEY), "the placement was not stored"
    cache.settle_fronts(begin + 3300)
    assert (fronts(cache), cache.next_front_at) == ([begin + 3600], None)
    cache.apply(SWARM_TASK, moved(7, "2026-01-01T03:00:00Z"))
    cache.settle_fronts(begin + 3300)
    assert cache.next_front_at == begin + 3 * 3600 - 300
    cache.apply(SWARM_TASK, task("a", 8))
    cache.settle_fronts(begin + 4 * 3600)
    assert (fronts(cache), cache.next_front_at) == ([None], None), "the move was taken back"
    cache.apply(SWARM_TASK, moved(9, "2027-01-01T00:00:00Z"))
    cache.settle_fronts(begin)
    cache.remove(SWARM_TASK, KEY)
    cache.settle_fronts(begin)
    assert cache.next_front_at is None


def test_a_move_in_the_second_of_the_placement_is_used_up_by_it() -> None:
    """When an attempt was bound is stored in whole seconds."""
    cache = Cache()
    for version, (at, counts) in enumerate([("00:00:04.9", False), ("00:00:05.7", False), ("00:00:06", True)]):
        one = moved(version, f"2026-01-01T{at}+00:00")
        one["status"] |= {"attempt": 1}
        one["status"]["attempts"] = [
            {"number": 1, "id": "st-a-1", "node": "n1", "engine": "swarm", "state": "Failed", "boundAt": "2026-01-01T00:00:05Z"}
        ]
        cache.apply(SWARM_TASK, one)
        (front_at,) = fronts(cache)
        assert (front_at is not None) == counts
