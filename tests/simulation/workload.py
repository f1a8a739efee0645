"""What a run works on: nodes, tasks and their programs, read from `workloads/*.yaml` and drawn with the run's own random source.

A file says ranges and weights; `draw` makes a list of births of them. Field by field: docs/simulation.md.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

from swarmtask.resources.units import memory_bytes
from tests.fakes.engine import Outcome

FOLDER = Path(__file__).parent / "workloads"

Scope = Literal["small", "whole", "calm"]
"""Of one run: a small part of the workload, all of it, or all of it with nothing going wrong (then `expect` holds)."""
WHOLE_SHARE = 0.06
CALM_SHARE = 0.5
"""Of the whole ones."""
SMALL_CHAOS_S = (6.0, 20.0)
SMALL_NODES = (1, 2, 2, 2)
SMALL_TASKS = (2, 6)
SMALL_ARRAY = (2, 3)
SMALL_DURATION_S = 10.0
SMALL_HASTE = 2.0
"""So much more often faults strike in a small run."""

Program = Literal["good", "bad", "flaky", "oom", "stubborn", "polite", "no_image", "refused", "endless", "stuck", "hungry"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Duration(_Part):
    """Seconds that a program runs: evenly between `min` and `max`, or with `tail` (Pareto's alpha) mostly near `min`."""

    min: float = 1.0
    max: float = 5.0
    tail: float | None = None

    def draw(self, rng: random.Random) -> float:
        if self.tail is None:
            return rng.uniform(self.min, self.max)
        return min(self.max, self.min * rng.paretovariate(self.tail))


class Group(_Part):
    """Tasks of one sort. Of each list (`cpu` to `gpu`; `dedupe` gives the dedupeKey) each task gets one of the values, and each
    hungry program one of `peak`."""

    count: Annotated[int, Field(ge=1)]
    from_s: float = 0.0
    to_s: float = 0.0
    cpu: list[str] = ["500m"]
    memory: list[str] = ["512Mi"]
    priority: list[int] = [0]
    queue: list[str] = ["default"]
    limits: list[dict[str, int]] = [{}]
    dedupe: list[str] = [""]
    gpu: list[int] = [0]
    peak: list[str] = ["64Mi"]
    image: str = "busybox"
    duration: Duration = Duration()
    programs: dict[Program, float] = {"good": 1.0}
    spec: dict[str, Any] = {}


class NodeGroup(_Part):
    count: Annotated[int, Field(ge=1)]
    cpu_milli: int = 4000
    memory_gib: int = 8
    gpus: int = 0


class Expect(_Part):
    """What holds of a whole run in which nothing goes wrong, beyond the invariants and beyond the dead letters that are planned.

    Attributes:
        start_s: number of a group -> so many seconds after its birth each task of it runs at the latest.
        shares: while all queues of a cohort have tasks that wait, what each holds differs from its due by less than this part.
        sized: number of a group of `memory: auto` -> what was learned suffices: each task of it succeeds at its first attempt,
            which requests no more than this.
    """

    start_s: dict[int, float] = {}
    shares: Annotated[float, Field(gt=0, lt=1)] | None = None
    sized: dict[int, str] = {}


class Moves(_Part):
    """Something that happens so many times between two moments."""

    count: Annotated[int, Field(ge=0)] = 0
    from_s: float = 0.0
    to_s: float = 0.0


Way = Literal["disconnect", "freeze", "power_off"]


class Losses(_Part):
    """How nodes are lost, and for how long: one of the ways, and a time from one of the ranges, seconds.

    Attributes:
        late_s: those with agents are back at most so long after all other faults are over.
    """

    ways: Annotated[list[Way], Field(min_length=1)] = ["disconnect", "freeze", "power_off"]
    for_s: Annotated[list[tuple[float, float]], Field(min_length=1)] = [(0.5, 5), (5, 30)]
    late_s: float = 70.0


class Workload(_Part):
    """One file.

    Attributes:
        front: people move a waiting task to the front of its queue. hogs: some machine runs out of memory for a while.
        agents: every node has one, or none has; None leaves it to the seed.
    """

    about: str
    chaos_s: Annotated[float, Field(gt=0)] = 60.0
    nodes: list[NodeGroup]
    queues: dict[str, dict[str, Any]] = {}
    tasks: list[Group]
    front: Moves = Moves()
    hogs: Moves = Moves()
    agents: bool | None = None
    losses: Losses = Losses()
    faults: dict[str, float] = {}
    expect: Expect = Expect()


@dataclass(frozen=True)
class Birth:
    """One task that will be created, and what its attempts do."""

    at_s: float
    name: str
    spec: dict[str, Any]
    outcomes: tuple[Outcome, ...]
    group: int
    members: tuple[tuple[Outcome, ...], ...] = ()
    """Of an array: the same for each index."""


def names() -> list[str]:
    """Every workload that there is."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


@cache
def load(name: str) -> Workload:
    """Raises FileNotFoundError, or ValueError naming the field."""
    return Workload.model_validate(yaml.safe_load((FOLDER / f"{name}.yaml").read_text()))


def draw_scope(rng: random.Random) -> Scope:
    """How much of its workload a run takes where nobody says."""
    if rng.random() >= WHOLE_SHARE:
        return "small"
    return "calm" if rng.random() < CALM_SHARE else "whole"


def small(workload: Workload, rng: random.Random) -> Workload:
    """A small part of a workload that is over soon.

    What goes wrong can nearly always be shown with a few tasks on two nodes (the small-scope hypothesis), and one whole world costs
    as much as five to ten small ones. In a small one everything happens faster: less time between births, more faults a minute.
    """
    chaos_s = rng.uniform(*SMALL_CHAOS_S)
    pace = chaos_s / workload.chaos_s
    return workload.model_copy(update={
        "chaos_s": chaos_s, "nodes": _few_nodes(workload.nodes, rng), "tasks": _few_tasks(workload.tasks, pace, rng),
        "front": _sooner(workload.front, pace), "hogs": _sooner(workload.hogs, pace),
        "expect": Expect(),
    })  # fmt: skip


def _sooner(moves: Moves, pace: float) -> Moves:
    return moves.model_copy(update={"from_s": moves.from_s * pace, "to_s": moves.to_s * pace})


def _few_nodes(groups: list[NodeGroup], rng: random.Random) -> list[NodeGroup]:
    single = [group.model_copy(update={"count": 1}) for group in groups for _ in range(group.count)]
    return rng.sample(single, min(len(single), rng.choice(SMALL_NODES)))


def _few_tasks(groups: list[Group], pace: float, rng: random.Random) -> list[Group]:
    """Of every group at least one, so that what makes the workload is there."""
    left = max(rng.randint(*SMALL_TASKS) - len(groups), 0)
    total = sum(group.count - 1 for group in groups)
    few = []
    for group in groups:
        share = min(group.count - 1, round(left * (group.count - 1) / total)) if total else 0
        duration = group.duration.model_copy(update={"max": max(group.duration.min, min(group.duration.max, SMALL_DURATION_S))})
        spec = dict(group.spec)
        if "completions" in spec:
            spec["completions"] = min(spec["completions"], rng.choice(SMALL_ARRAY))
        few.append(group.model_copy(update={
            "count": 1 + share, "from_s": group.from_s * pace, "to_s": group.to_s * pace, "duration": duration, "spec": spec,
        }))  # fmt: skip
    return few


def draw(workload: Workload, rng: random.Random) -> list[Birth]:
    """Every task of a run, by time."""
    births = []
    for number, group in enumerate(workload.tasks):
        for index in range(group.count):
            outcomes, extra = _program(group, rng)
            members = tuple(_program(group, rng) for _ in range(group.spec.get("completions", 0)))
            if any(needed for _, needed in members):
                raise ValueError(f"group {number}: the programs of an array must end without a deadline")
            spec = {
                "queue": rng.choice(group.queue),
                "priority": rng.choice(group.priority),
                "container": {
                    "image": group.image,
                    "resources": {"requests": _requests(group, rng)},
                },
                "limits": rng.choice(group.limits),
                "dedupeKey": rng.choice(group.dedupe),
                "backoff": {"initialSeconds": rng.choice((0, 1, 2)), "maxSeconds": 5},
                "backoffLimit": rng.choice((0, 1, 2, 3)),
                "terminationGracePeriodSeconds": rng.choice((0, 1, 5)),
                "startDeadlineSeconds": rng.choice((5, 30, 60)),
                "ttlSecondsAfterFinished": rng.choice((5, 30, 3600, 3600, 3600)),
            }
            whole = tuple(each for each, _ in members)
            births.append(
                Birth(
                    rng.uniform(group.from_s, group.to_s), f"t{number}-{index}", spec | group.spec | extra, outcomes, number, whole
                )
            )
    return sorted(births, key=lambda birth: (birth.at_s, birth.name))


def _requests(group: Group, rng: random.Random) -> dict[str, Any]:
    gpus = rng.choice(group.gpu)
    return {"cpu": rng.choice(group.cpu), "memory": rng.choice(group.memory)} | ({"gpu": gpus} if gpus else {})


def _program(group: Group, rng: random.Random) -> tuple[tuple[Outcome, ...], dict[str, Any]]:
    program = rng.choices(list(group.programs), list(group.programs.values()))[0]
    return _outcomes(program, group, rng)


def _outcomes(program: Program, group: Group, rng: random.Random) -> tuple[tuple[Outcome, ...], dict[str, Any]]:
    """What the attempts do, one after another, the last for ever; and what the spec needs so that the task can end."""
    duration_s = group.duration.draw(rng)
    good = Outcome(duration_s=duration_s)
    match program:
        case "good":
            return (good,), {}
        case "bad":
            return (Outcome(duration_s=duration_s, exit_code=3),), {}
        case "flaky":
            return (Outcome(duration_s=duration_s / 2, exit_code=1), good), {}
        case "oom":
            return (Outcome(duration_s=duration_s, oom=True), good), {}
        case "stubborn":
            return (Outcome(duration_s=duration_s, honours_term=False),), {}
        case "polite":
            return (Outcome(duration_s=duration_s, term_exit_code=0),), {}
        case "no_image":
            return (Outcome(pull_error="no such image"), good), {}
        case "refused":
            return (Outcome(refused="the engine does not want it"), good), {}
        case "endless":
            return (Outcome(duration_s=None, honours_term=rng.random() < 0.7),), {"activeDeadlineSeconds": rng.choice((3, 8))}
        case "hungry":
            return (replace(good, peak_bytes=memory_bytes(rng.choice(group.peak))),), {}
        case "stuck":
            return (Outcome(prepare_s=float("inf")), good), {"startDeadlineSeconds": rng.choice((3, 8))}
