"""`swarmtask queue`: what it shows, what it writes, and when it stops waiting."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from swarmtask.clock import format_time
from swarmtask.kube import Object
from swarmtask.lifecycle.members import member_object
from swarmtask.resources.kinds import SWARM_QUEUE, SWARM_TASK
from swarmtask.resources.task import ANNOTATION_CANCEL, ANNOTATION_FRONT, SwarmTask
from tests.cli.conftest import Swarmtask
from tests.cli.tasks import add_queue, add_task, attempt
from tests.fakes.kube import FakeKube

WAITS = {"type": "Scheduled", "status": "False", "reason": "NoNodeFits", "lastTransitionTime": "2026-01-01T00:00:00Z"}


def stored(kube: FakeKube, kind: Any, name: str) -> Object:
    found = kube.peek(kind, name, "default")
    assert found is not None
    return found


def on_watch(kube: FakeKube, kind: str, *steps: Callable[[], object]) -> None:
    """Take a step each time a watch of the kind begins; the last one again and again."""
    original, left = kube.watch, list(steps)

    def watch(watched: Any, *arguments: Any, **options: Any) -> Any:
        if watched.kind == kind and left:
            (left.pop(0) if len(left) > 1 else left[0])()
        return original(watched, *arguments, **options)

    kube.watch = watch  # type: ignore[method-assign]


# --- list ---


def test_list_shows_every_figure(swarmtask: Swarmtask, kube: FakeKube) -> None:
    since = format_time(datetime.now(UTC) - timedelta(minutes=5))
    add_queue(
        kube, "models", spec={"limits": {"model/x": 5, "seat": 2}}, deadLetters=1, oldestQueuedTime=since, throughputPerMinute=2.5,
        waitSecondsP50=42, waitSecondsP99=300, limitsHeld={"model/x": 3},
    )  # fmt: skip
    add_queue(kube, "held", spec={"stopped": True, "maxRunning": None})
    result = swarmtask("queue", "list")
    assert result.exit_code == 0, result.stderr
    heading, held, models = (line.split() for line in result.stdout.splitlines())
    assert heading == ["NAME", "STATE", "QUEUED", "RUNNING", "DEAD", "OLDEST", "PER-MINUTE", "WAIT-P50", "WAIT-P99", "LIMITS"]
    assert held == ["held", "Held", "3", "2", "0", "-", "0", "-", "-", "-"]
    assert models == ["models", "Open", "3", "2/5", "1", models[5], "2.5", "42s", "5m", "model/x=3/5", "seat=0/2"]
    assert models[5].startswith("5m")


def test_list_as_json_and_of_every_namespace(swarmtask: Swarmtask, kube: FakeKube) -> None:
    add_queue(kube, spec={"limits": {"seat": 2}}, limitsHeld={"seat": 1})
    kube.add(SWARM_QUEUE, {"metadata": {"name": "default", "namespace": "other"}, "spec": {}})
    (one,) = json.loads(swarmtask("queue", "list", "-o", "json").stdout)
    assert (one["name"], one["state"], one["queued"], one["limits"]) == ("default", "Open", 3, {"seat": {"held": 1, "of": 2}})
    both = json.loads(swarmtask("queue", "list", "-A", "-o", "json").stdout)
    assert [queue["namespace"] for queue in both] == ["default", "other"]
    assert swarmtask("queue", "list", "-A").stdout.splitlines()[2].split()[:2] == ["other", "default"]


def test_list_of_nothing_says_so_and_json_stays_json(swarmtask: Swarmtask, kube: FakeKube) -> None:
    result = swarmtask("queue", "list")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "No queues in namespace default yet" in result.stderr
    assert json.loads(swarmtask("queue", "list", "-o", "json").stdout) == []


# --- position ---


def waiting_task(kube: FakeKube, name: str = "lint", **more: Any) -> Object:
    words = {**WAITS, "message": "0/1 nodes fit: 1 too little CPU; estimated start unknown: no task like this has finished yet"}
    return add_task(
        kube, name, **{"queuePosition": 2, "reason": "NoNodeFits", "message": "0/1 nodes fit", "conditions": [words], **more}
    )


def test_position_says_where_and_why_and_that_nobody_knows_when(swarmtask: Swarmtask, kube: FakeKube) -> None:
    add_queue(kube, queued=17)
    waiting_task(kube)
    result = swarmtask("queue", "position", "lint")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == (
        "lint: place 2 of 17 in queue default; 0/1 nodes fit: 1 too little CPU; "
        "estimated start unknown: no task like this has finished yet\n"
    )


def test_position_says_when(swarmtask: Swarmtask, kube: FakeKube) -> None:
    add_queue(kube, queued=1)  # it lags behind: the place is newer
    moment = datetime.now(UTC) + timedelta(minutes=30)
    waiting_task(kube, estimatedStartTime=format_time(moment))
    waiting_task(kube, "late", estimatedStartTime="2026-01-01T00:00:00Z")
    words = swarmtask("queue", "position", "lint").stdout
    assert "place 2 of 2" in words
    assert "may start in 29m" in words and f"({format_time(moment)})" in words
    assert "may start any moment" in swarmtask("queue", "position", "late").stdout
    document = json.loads(swarmtask("queue", "position", "tasks/lint", "-o", "json").stdout)
    assert (document["position"], document["queued"], document["phase"]) == (2, 2, "Queued")
    assert (document["estimatedStartTime"], document["reason"]) == (format_time(moment), "NoNodeFits")


@pytest.mark.parametrize(
    ("phase", "status", "words"),
    [
        ("Running", {"nodeName": "desk"}, "lint: Running on desk"),
        ("Running", {"message": "50 of 200 succeeded, 20 wait or run"}, "lint: Running: 50 of 200 succeeded, 20 wait or run"),
        ("Succeeded", {}, "lint: Succeeded"),
        ("Expired", {"message": "not started within 60s"}, "lint: Expired: not started within 60s"),
        ("Queued", {}, "lint: waiting for the next scheduling cycle"),
    ],
)
def test_position_of_a_task_that_has_none(
    swarmtask: Swarmtask, kube: FakeKube, phase: str, status: dict[str, str], words: str
) -> None:
    add_task(kube, "lint", phase, **status)
    result = swarmtask("queue", "position", "lint")
    assert (result.exit_code, result.stdout) == (0, f"{words}\n")
    assert swarmtask("queue", "position", "missing").exit_code == 3


def test_position_counts_down_and_ends_when_it_starts(swarmtask: Swarmtask, kube: FakeKube) -> None:
    add_queue(kube, queued=3)
    waiting_task(kube)

    def go_on() -> None:
        for status in (
            {"queuePosition": 1},
            {"queuePosition": 1},  # nothing new to say
            {"phase": "Starting", "queuePosition": None, "nodeName": "desk"},
        ):
            kube.edit(SWARM_TASK, "lint", "default", {"status": status}, status=True)

    on_watch(kube, "SwarmTask", go_on)
    result = swarmtask("queue", "position", "lint", "--watch")
    assert result.exit_code == 0, result.stderr
    assert [line.partition(";")[0] for line in result.stdout.splitlines()] == [
        "lint: place 2 of 3 in queue default", "lint: place 1 of 3 in queue default", "lint: Starting on desk",
    ]  # fmt: skip


def test_watching_a_task_that_never_starts_is_exit_code_1_and_of_one_that_goes_3(swarmtask: Swarmtask, kube: FakeKube) -> None:
    waiting_task(kube)
    on_watch(kube, "SwarmTask", lambda: kube.edit(SWARM_TASK, "lint", "default", {"status": {"phase": "Expired"}}, status=True))
    assert swarmtask("queue", "position", "lint", "-w").exit_code == 1
    waiting_task(kube, "other")
    on_watch(kube, "SwarmTask", lambda: kube.remove(SWARM_TASK, "other", "default"))
    assert swarmtask("queue", "position", "other", "-w").exit_code == 3
    assert swarmtask("queue", "position", "missing", "-w").exit_code == 3


# --- front ---


def test_front_gives_the_first_the_latest_time(swarmtask: Swarmtask, kube: FakeKube) -> None:
    for name in ("a", "b"):
        waiting_task(kube, name)
    before = datetime.now(UTC)
    result = swarmtask("queue", "front", "b", "a", "b")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines() == [
        "swarmtask.swarmtask.io/b moved to the front", "swarmtask.swarmtask.io/a moved to the front",
    ]  # fmt: skip
    moments = {
        name: datetime.fromisoformat(stored(kube, SWARM_TASK, name)["metadata"]["annotations"][ANNOTATION_FRONT])
        for name in ("a", "b")
    }
    assert before - timedelta(milliseconds=1) <= moments["a"] < moments["b"] <= datetime.now(UTC)


@pytest.mark.parametrize("phase", ["Running", "Pending", "Backoff", "Succeeded"])
def test_front_refuses_a_task_that_does_not_wait(swarmtask: Swarmtask, kube: FakeKube, phase: str) -> None:
    add_task(kube, "lint", phase)
    waiting_task(kube, "other")
    result = swarmtask("queue", "front", "lint", "other")
    assert result.exit_code == 6
    assert f"lint does not wait in its queue ({phase})" in result.stderr
    assert "other moved" in result.stdout
    assert ANNOTATION_FRONT not in (stored(kube, SWARM_TASK, "lint")["metadata"].get("annotations") or {})
    assert swarmtask("queue", "front", "missing").exit_code == 3


def test_front_refuses_an_array_whose_runs_would_stay_where_they_are(swarmtask: Swarmtask, kube: FakeKube) -> None:
    add_task(kube, "shards", "Queued", spec={"completions": 3})
    waiting_task(kube, "shards-1")
    result = swarmtask("queue", "front", "shards", "shards-1")
    assert result.exit_code == 6
    assert "shards is an array" in result.stderr
    assert "swarmtask get st -l swarmtask.io/array=shards" in result.stderr
    assert result.stdout == "swarmtask.swarmtask.io/shards-1 moved to the front\n"
    assert ANNOTATION_FRONT not in (stored(kube, SWARM_TASK, "shards")["metadata"].get("annotations") or {})


# --- hold and release ---


def test_hold_and_release_say_what_they_did(swarmtask: Swarmtask, kube: FakeKube) -> None:
    add_queue(kube)
    assert swarmtask("queue", "hold", "default").stdout == "swarmqueue.swarmtask.io/default held\n"
    assert stored(kube, SWARM_QUEUE, "default")["spec"]["stopped"] is True
    assert "was held already" in swarmtask("queue", "hold", "queues/default").stdout
    assert swarmtask("queue", "release", "default").stdout == "swarmqueue.swarmtask.io/default released\n"
    assert stored(kube, SWARM_QUEUE, "default")["spec"]["stopped"] is False


@pytest.mark.parametrize("verb", ["hold", "release", "drain"])
def test_a_queue_that_is_not_there_is_exit_code_3(swarmtask: Swarmtask, kube: FakeKube, verb: str) -> None:
    result = swarmtask("queue", verb, "night")
    assert result.exit_code == 3
    assert "there is no queue night in namespace default: `swarmtask queue list -A` shows all" in result.stderr


def test_hold_goes_on_after_an_error(swarmtask: Swarmtask, kube: FakeKube) -> None:
    add_queue(kube)
    result = swarmtask("queue", "hold", "night", "default")
    assert (result.exit_code, "default held" in result.stdout) == (3, True)


# --- drain ---


def operator_sees(kube: FakeKube, running: int) -> None:
    generation = stored(kube, SWARM_QUEUE, "default")["metadata"]["generation"]
    status = {"running": running, "observedGeneration": generation}
    kube.edit(SWARM_QUEUE, "default", "default", {"status": status}, status=True)


def end(kube: FakeKube, name: str) -> None:
    kube.edit(SWARM_TASK, name, "default", {"status": {"phase": "Succeeded"}}, status=True)


def test_drain_waits_for_the_operator_and_for_what_runs(swarmtask: Swarmtask, kube: FakeKube) -> None:
    add_queue(kube, running=0)  # from before the operator saw the hold: counts for nothing
    add_task(kube, "runs", "Running", attempts=[attempt()])
    add_task(kube, "waits", "Queued")

    def go_on() -> None:
        operator_sees(kube, 1)
        end(kube, "runs")
        operator_sees(kube, 0)

    on_watch(kube, "SwarmQueue", go_on)
    result = swarmtask("queue", "drain", "default")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == "swarmqueue.swarmtask.io/default drained\n"
    talk = result.stderr.splitlines()
    assert talk == [
        "Queue default is held.",
        "The operator has not seen yet that queue default is held.",
        "1 task of queue default still runs.",
    ]
    assert stored(kube, SWARM_QUEUE, "default")["spec"]["stopped"] is True
    assert ANNOTATION_CANCEL not in (stored(kube, SWARM_TASK, "waits")["metadata"].get("annotations") or {})


def test_drain_cancels_what_waits_in_that_queue_only(swarmtask: Swarmtask, kube: FakeKube) -> None:
    add_queue(kube, running=0)
    for name, phase in (("waits", "Queued"), ("retries", "Backoff"), ("done", "Succeeded")):
        add_task(kube, name, phase)
    add_task(kube, "elsewhere", "Queued", queue="other")
    on_watch(kube, "SwarmQueue", lambda: operator_sees(kube, 0))
    result = swarmtask("queue", "drain", "default", "--cancel-queued")
    assert result.exit_code == 0, result.stderr
    assert cancelled(kube) == {"waits", "retries"}
    assert result.stdout.count("cancel requested") == 2
    assert stored(kube, SWARM_TASK, "waits")["metadata"]["annotations"][ANNOTATION_CANCEL].startswith(
        "queue default is drained at "
    )


def cancelled(kube: FakeKube) -> set[str]:
    return {
        task["metadata"]["name"]
        for task in kube.all(SWARM_TASK)
        if ANNOTATION_CANCEL in (task["metadata"].get("annotations") or {})
    }


def add_array(kube: FakeKube, phase: str, *runs: str, queue: str = "default", **status: Any) -> None:
    """The array `many` of twelve runs, of which those from 0 on are in the phases given, in the queue `default`."""
    array = add_task(kube, "many", phase, spec={"completions": 12, "parallelism": 4}, **status)
    for index, run in enumerate(runs):
        attempts = [attempt()] if run in ("Starting", "Running") else []
        kube.add(SWARM_TASK, member_object(SwarmTask.model_validate(array), index), status={"phase": run, "attempts": attempts})
    if queue != "default":
        kube.edit(SWARM_TASK, "many", "default", {"spec": {"queue": queue}})


@pytest.mark.parametrize(("phase", "first"), [("Running", "Running"), ("Queued", "Starting")])
def test_drain_lets_the_runs_of_an_array_end_and_then_cancels_it_as_a_whole(
    swarmtask: Swarmtask, kube: FakeKube, phase: str, first: str
) -> None:
    add_queue(kube, running=1)
    since = {"startTime": "2026-01-01T00:00:00Z"} if phase == "Running" else {}
    add_array(kube, phase, first, "Queued", "Backoff", "Pending", **since)
    add_task(kube, "waits", "Queued")
    steps = []

    def go_on() -> None:
        operator_sees(kube, 1)
        steps.append(cancelled(kube))
        end(kube, "many-0")
        operator_sees(kube, 0)

    on_watch(kube, "SwarmQueue", go_on)
    result = swarmtask("queue", "drain", "default", "--cancel-queued")
    assert result.exit_code == 0, result.stderr
    assert steps[0] == {"waits"}, "while a run of it runs, cancelling the array would stop that run"
    assert cancelled(kube) == {"waits", "many"}, "a run that is cancelled by itself is a failure that nobody asked for"
    assert "1 run of array many still runs: the array is cancelled when that one has ended." in result.stderr
    more = "; `swarmtask retry many` runs the rest" if since else ""
    assert result.stdout.splitlines() == [
        "swarmtask.swarmtask.io/waits cancel requested",
        f"swarmtask.swarmtask.io/many cancel requested{more}",
        "swarmqueue.swarmtask.io/default drained",
    ]


@pytest.mark.slow
def test_drain_cancels_an_array_of_which_nothing_runs_before_the_rest_of_the_queue_has_ended(
    swarmtask: Swarmtask, kube: FakeKube
) -> None:
    add_queue(kube, running=1)
    add_array(kube, "Running", "Queued", "Queued")
    add_task(kube, "runs", "Running", attempts=[attempt()])
    steps: list[set[str]] = []

    def go_on() -> None:
        steps.append(cancelled(kube))
        operator_sees(kube, 1)

    on_watch(kube, "SwarmQueue", go_on)
    result = swarmtask("queue", "drain", "default", "--cancel-queued", "--timeout", "0.5")
    assert result.exit_code == 1
    assert steps[0] == set(), "a run of it may start until the operator has seen the hold"
    assert cancelled(kube) == {"many"}


def test_drain_leaves_an_array_alone_that_has_run(swarmtask: Swarmtask, kube: FakeKube) -> None:
    add_queue(kube, running=0)
    add_array(kube, "Running", "Succeeded", "Failed", array={"completedIndexes": "2-10", "failedIndexes": "11"})
    on_watch(kube, "SwarmQueue", lambda: operator_sees(kube, 0))
    assert swarmtask("queue", "drain", "default", "--cancel-queued").exit_code == 0
    assert cancelled(kube) == set(), "it ends as its runs did, once it has recorded them"


def test_drain_does_not_cancel_an_array_that_was_moved_and_says_so(swarmtask: Swarmtask, kube: FakeKube) -> None:
    add_queue(kube, running=0)
    add_array(kube, "Running", "Succeeded", "Queued", "Queued", queue="other")
    on_watch(kube, "SwarmQueue", lambda: operator_sees(kube, 0))
    result = swarmtask("queue", "drain", "default", "--cancel-queued")
    assert (result.exit_code, result.stdout) == (0, "swarmqueue.swarmtask.io/default drained\n")
    assert "2 runs of array many wait here. The array is of another queue now and was not cancelled." in " ".join(
        result.stderr.split()
    )
    assert cancelled(kube) == set()


def test_drain_says_which_array_goes_on_in_the_queue_it_came_from(swarmtask: Swarmtask, kube: FakeKube) -> None:
    add_queue(kube, running=0)
    add_array(kube, "Running", "Queued")
    elsewhere = attempt(requested={"cpu": "1", "memory": "1Gi", "queue": "other"})
    kube.edit(SWARM_TASK, "many-0", "default", {"status": {"phase": "Running", "attempts": [elsewhere]}}, status=True)
    on_watch(kube, "SwarmQueue", lambda: operator_sees(kube, 0))
    result = swarmtask("queue", "drain", "default", "--cancel-queued")
    assert result.exit_code == 0, result.stderr
    assert "1 run of array many runs from another queue, so the array was not cancelled." in " ".join(result.stderr.split())
    assert cancelled(kube) == set()


def test_drain_cancels_a_run_that_somebody_retried_after_its_array_had_ended(swarmtask: Swarmtask, kube: FakeKube) -> None:
    add_queue(kube, running=0)
    add_array(kube, "Failed", "Queued")
    on_watch(kube, "SwarmQueue", lambda: operator_sees(kube, 0))
    assert swarmtask("queue", "drain", "default", "--cancel-queued").exit_code == 0
    assert cancelled(kube) == {"many-0"}


def test_drain_without_the_option_cancels_nothing_of_an_array(swarmtask: Swarmtask, kube: FakeKube) -> None:
    add_queue(kube, running=0)
    add_array(kube, "Running", "Queued", "Queued")
    on_watch(kube, "SwarmQueue", lambda: operator_sees(kube, 0))
    result = swarmtask("queue", "drain", "default")
    assert (result.exit_code, result.stdout) == (0, "swarmqueue.swarmtask.io/default drained\n")
    assert cancelled(kube) == set()


@pytest.mark.slow
def test_drain_counts_what_was_moved_to_another_queue_while_it_ran(swarmtask: Swarmtask, kube: FakeKube) -> None:
    add_queue(kube, running=0)
    moved = attempt(requested={"cpu": "1", "memory": "1Gi", "queue": "default"})
    add_task(kube, "moved", "Running", queue="other", attempts=[moved])
    lists = []
    original = kube.list

    async def list_(kind: Any, *arguments: Any, **options: Any) -> Any:
        if kind is SWARM_TASK:
            lists.append(kind)
            if len(lists) == 3:
                end(kube, "moved")
        return await original(kind, *arguments, **options)

    kube.list = list_  # type: ignore[method-assign]
    on_watch(kube, "SwarmQueue", lambda: operator_sees(kube, 0))
    result = swarmtask("queue", "drain", "default")
    assert result.exit_code == 0, result.stderr
    assert len(lists) == 3


def test_drain_gives_up_after_its_timeout_and_says_what_stays(swarmtask: Swarmtask, kube: FakeKube) -> None:
    add_queue(kube, running=2)
    on_watch(kube, "SwarmQueue", lambda: operator_sees(kube, 2))
    result = swarmtask("queue", "drain", "default", "--timeout", "0.2")
    assert result.exit_code == 1
    assert "2 tasks of queue default still run after 0.2s. The queue stays held: `swarmtask queue release default`" in result.stderr
    assert stored(kube, SWARM_QUEUE, "default")["spec"]["stopped"] is True


def test_ctrl_c_leaves_the_queue_held_and_says_so(swarmtask: Swarmtask, kube: FakeKube) -> None:
    add_queue(kube, running=2)
    on_watch(kube, "SwarmQueue", lambda: (operator_sees(kube, 2), signal.raise_signal(signal.SIGINT)))
    result = swarmtask("queue", "drain", "default")
    assert result.exit_code == 130
    assert "The queue stays held: `swarmtask queue release default` opens it again." in result.stderr


def test_an_api_that_goes_away_is_said_with_what_stays(swarmtask: Swarmtask, kube: FakeKube) -> None:
    add_queue(kube, running=2)
    kube.fail("watch")
    result = swarmtask("queue", "drain", "default")
    assert result.exit_code == 5
    assert "The queue stays held" in result.stderr


def test_somebody_who_releases_the_queue_ends_the_drain(swarmtask: Swarmtask, kube: FakeKube) -> None:
    add_queue(kube, running=2)
    on_watch(kube, "SwarmQueue", lambda: kube.edit(SWARM_QUEUE, "default", "default", {"spec": {"stopped": False}}))
    result = swarmtask("queue", "drain", "default")
    assert result.exit_code == 4
    assert "was released meanwhile" in result.stderr
    assert "stays held" not in result.stderr


def test_a_queue_that_is_deleted_meanwhile_ends_the_drain(swarmtask: Swarmtask, kube: FakeKube) -> None:
    add_queue(kube, running=2)
    on_watch(kube, "SwarmQueue", lambda: kube.remove(SWARM_QUEUE, "default", "default"))
    assert swarmtask("queue", "drain", "default").exit_code == 3


@pytest.mark.parametrize("arguments", [("position", "lint"), ("list",)])
def test_the_terminal_cannot_be_steered(swarmtask: Swarmtask, kube: FakeKube, arguments: tuple[str, ...]) -> None:
    add_queue(kube, spec={"limits": {"model/x": 1}})
    waiting_task(kube, conditions=[{**WAITS, "message": "evil\x1b[2J\nline"}])
    assert "\x1b" not in swarmtask("queue", *arguments).stdout
