"""The course of one run: births and happenings, then peace, then the verdict. `simulate` is the one way in.

Called by the tests, by the proof with planted bugs and by the command line.
"""

from __future__ import annotations

import asyncio
import gc
import random
from collections import Counter
from collections.abc import Callable, Collection
from contextvars import Context
from dataclasses import dataclass, field

from swarmtask.resources.kinds import SWARM_TASK
from tests.simulation.chances import KINDS, PER_MINUTE
from tests.simulation.expectations import broken
from tests.simulation.happenings import Happenings
from tests.simulation.loop import Livelock, Stalled
from tests.simulation.verdict import wrongs
from tests.simulation.workload import SMALL_HASTE, Scope, draw, draw_scope, load, small
from tests.simulation.world import World

LOOK_S = 0.5
PATIENCE_S = 600.0
"""Virtual seconds after the last fault in which everything must come to rest."""


@dataclass(frozen=True)
class Result:
    """What one run came to.

    Attributes:
        failures: what was wrong, oldest first; empty: the run is clean.
        fingerprint: equal for equal runs.
        faults: kind -> how often it struck.
        died_at: crash point -> how often an operator was killed there.
        asked: the scope, where it was not left to the seed.
    """

    seed: int
    workload: str
    failures: tuple[str, ...]
    fingerprint: str
    steps: int
    virtual_s: float
    commits: int
    operators: int
    faults: Counter[str] = field(default_factory=Counter)
    died_at: Counter[str] = field(default_factory=Counter)
    asked: Scope | None = None

    @property
    def replay(self) -> str:
        chosen = f" --scope {self.asked}" if self.asked else ""
        return f"python -m tests.simulation --seed {self.seed} --workload {self.workload}{chosen}"


def simulate(
    seed: int,
    workload: str,
    *,
    without: Collection[str] = (),
    scope: Scope | None = None,
    trace: Callable[[str], None] | None = None,
) -> Result:
    """Run one seed.

    Args:
        without: kinds of faults (or first words of kinds) that are off; every other draw stays the same.
        scope: how much of the workload; None lets the seed decide.
        trace: takes a line for everything that happens.
    """

    def source(purpose: str) -> random.Random:
        return random.Random(f"{workload}/{seed}/{purpose}")

    rng = source("scope")
    drawn = draw_scope(rng)
    chosen = scope or drawn
    plan = small(load(workload), rng) if chosen == "small" else load(workload)
    absent = KINDS if chosen == "calm" else without
    collecting = gc.isenabled()
    gc.disable()  # when garbage is collected must not matter, and it costs a fifth of a run
    try:
        world = World(
            seed,
            plan,
            draw(plan, source("births")),
            source,
            without=absent,
            haste=SMALL_HASTE if chosen == "small" else 1.0,
            trace=trace,
        )
        world.note(f"{workload} seed {seed}, {chosen}; faults: {world.chances}")
        try:
            world.run(lambda: _story(world, calm=chosen == "calm"))
        except (Livelock, Stalled) as error:
            world.failures.append(f"BUG the run does not end: {error}")
    finally:
        if collecting:
            gc.enable()
    return Result(
        seed,
        workload,
        tuple(world.failures),
        world.fingerprint,
        steps=world.loop.steps,
        virtual_s=world.loop.time(),
        commits=world.commits,
        operators=world.operators,
        faults=+world.chances.struck,
        died_at=world.died_at,
        asked=scope,
    )


async def _story(world: World, *, calm: bool) -> None:
    happenings = Happenings(world, world.source("happenings"))
    moments = [(birth.at_s, f"birth of {birth.name}", lambda birth=birth: world.create_task(birth)) for birth in world.births]
    moments += happenings.plan()
    moments.sort(key=lambda moment: moment[:2])
    world.start_operator()
    for at_s, kind, act in moments:
        await _pass_until(world, at_s)
        world.note(f"-- {kind}")
        world.chances.struck[kind] += kind in PER_MINUTE
        act()
        world.look_closely()
    await _pass_until(world, world.workload.chaos_s)
    _make_peace(world)
    if await _come_to_rest(world) and calm:
        for line in broken(world):
            world.fail("EXPECT", "in the end", line)


async def _pass_until(world: World, at_s: float) -> None:
    while world.loop.time() < at_s:
        await asyncio.sleep(min(LOOK_S, at_s - world.loop.time()))
        world.look_closely()


def _make_peace(world: World) -> None:
    """All faults end; what people wished (a stopped queue, a suspended task) stays. So does the crash point that is armed: removing
    and deleting happen mostly when all is quiet."""
    world.note("-- peace")
    world.chances.active = False
    world.peace_at = world.loop.time()
    later = world.source("late returns")
    for name in list(world.restores):
        if world.agents and name.startswith(("node ", "agent ")):  # it may stay away for longer than everything else
            world.loop.call_later(later.uniform(0, world.workload.losses.late_s), world.restores[name], context=Context())
            continue
        world.restores.pop(name)() if name == "nodes" else world.restores[name]()
    if world.operator is None:
        world.start_operator()


async def _come_to_rest(world: World) -> bool:
    end_s = world.loop.time() + PATIENCE_S
    while world.loop.time() < end_s:
        await asyncio.sleep(1.0)
        world.look_closely()
        if next(wrongs(world), None) is None:
            world.checker.tasks_listed(world.kube.all(SWARM_TASK), world.true_clock.now())
            world.look_closely()
            return True
    for line in wrongs(world):
        world.fail("REST", "in the end", line)
    return False
