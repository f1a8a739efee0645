"""A recording engine for tests and the simulator: runs nothing, remembers everything, fails on the unexpected.

It follows what real Swarm was measured to do (docs/engines.md): an accepted workload becomes visible on its node a moment later; a
removed workload is not listed any more, and ends within its grace; a lost node turns Down only after a while and its workloads then
say nothing that proves anything; work that ended during a partition is reported after healing; work that still runs on a node that
had been Down is ended by Swarm when the node is back (NodeLost); a power cycle ends work as NodeRestarted; a frozen node (a closed
lid) goes on where it stopped when it is back before it is Down.

How a test uses it:

    clock = ManualClock()
    engine = FakeEngine(clock, nodes=("n1", "n2"))
    engine.script("lint", Outcome(exit_code=1, duration_s=5))        # by task name; the last of several repeats for ever
    engine.fail("submit", EngineUnavailable("gone"), nth=2)          # the 2nd submit from now on raises, and does nothing
    engine.fail("submit", EngineUnavailable("slow"), after=True)     # the next submit is performed, and raises all the same
    engine.delay("workloads", 30)                                    # every `workloads` takes 30 s of the clock
    engine.disconnect("n1"); clock.advance(15)                       # partition: work goes on there, unseen
    assert engine.acting() == {...}                                  # what truly runs now, seen or not
    engine.check()                                                   # nothing unexpected was asked

Time is the clock's alone and everything is computed when asked for, so that the same calls at the same times give the same answers.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from swarmtask.clock import Clock
from swarmtask.engines.base import (
    FINAL_WORKLOAD_STATES,
    Availability,
    EngineCapabilities,
    EngineNode,
    Hint,
    NodeState,
    Observation,
    Workload,
    WorkloadState,
)
from swarmtask.errors import EngineRejected, EngineUnavailable, SwarmTaskError, WorkloadNotFound
from swarmtask.lifecycle.messages import Reason

GIB = 2**30
LITTLE = 64 * 2**20
"""The peak of programs that do not say theirs."""


class UnexpectedCall(AssertionError):
    """The code under test asked for something that no engine should ever be asked for."""


@dataclass(frozen=True)
class Outcome:
    """What happens to one workload once its node has it.

    Attributes:
        exit_code: of the program when it ends by itself.
        duration_s: from running to its end; None runs until it is stopped.
        prepare_s: pulling and creating, before it runs; None uses the engine's timing, infinity hangs there for ever.
        honours_term: ends on SIGTERM with `term_exit_code`; otherwise SIGKILL ends it with 137 when the grace is over.
        pull_error: the engine's words when the image cannot be had; it then never runs.
        refused: the engine's words when `submit` itself is refused.
        oom: ends because it met its own memory limit.
        peak_bytes: the most memory that it uses at once; more than its limit allows ends it as `oom` does. None: little.
        output: lines that `logs` shows once it runs.
    """

    exit_code: int = 0
    duration_s: float | None = 1.0
    prepare_s: float | None = None
    honours_term: bool = True
    term_exit_code: int = 143
    pull_error: str = ""
    refused: str = ""
    oom: bool = False
    peak_bytes: int | None = None
    output: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class Timings:
    """Seconds, as measured on Swarm (docs/engines.md)."""

    visible_s: float = 0.2
    prepare_s: float = 0.3
    term_s: float = 0.1
    node_down_s: float = 12.0
    node_ready_s: float = 3.0


@dataclass(frozen=True)
class Call:
    """One call as it arrived, whether or not it succeeded."""

    at: datetime
    method: str
    name: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Interval:
    """When one workload's program truly ran; `ended` is None while it does, and `exit_code` is what it ended with. `peak_bytes`:
    what it will have used when it ends by itself."""

    name: str
    task_uid: str
    node_id: str
    started: datetime
    ended: datetime | None
    exit_code: int | None = None
    peak_bytes: int = 0


@dataclass
class _Node:
    info: EngineNode
    lost_at: float | None = None  # when it stopped answering the engine
    ready_at: float = 0.0  # after healing: when the engine says Ready again
    frozen_at: float | None = None
    powered: bool = True
    removed: bool = False
    boot: int = 1

    @property
    def connected(self) -> bool:
        return self.lost_at is None

    @property
    def runs(self) -> bool:
        return self.powered and self.frozen_at is None and not self.removed


@dataclass
class _Run:
    workload: Workload
    outcome: Outcome
    accepted_at: float
    state: WorkloadState = WorkloadState.PENDING  # the truth on the node
    due: float | None = None  # when the next step happens by itself
    started_at: float | None = None
    ended_at: float | None = None
    exit_code: int | None = None
    reason: Reason | None = None
    message: str = ""
    stop_grace_s: int | None = None  # asked to stop
    stopping: bool = False  # SIGTERM has reached the program
    lost: bool = False  # the engine has given it up because its node was Down
    next_exit: int = 0
    reported: Observation | None = None  # what the engine knows
    reported_of: tuple[Any, ...] = ()  # the truth from which that was made

    @property
    def truth(self) -> tuple[Any, ...]:
        """Everything that an observation tells."""
        return (self.state, self.exit_code, self.reason, self.message, self.started_at, self.ended_at)


@dataclass
class _Fault:
    method: str
    error: SwarmTaskError
    nth: int
    times: int
    after: bool


def _attempt_of(workload: Workload) -> tuple[str, int]:
    return workload.task_uid, workload.attempt


def _bound(workload: Workload) -> tuple[Any, ...]:
    """What follows from the record of the attempt alone: no edit of the task can change it."""
    return workload.node_id, workload.cpu_request_milli, workload.memory_request_bytes, workload.gpus, workload.grace_s


class FakeEngine:
    """See the module's text. Satisfies `swarmtask.engines.base.Engine`."""

    def __init__(
        self,
        clock: Clock,
        *,
        nodes: Iterable[str | EngineNode] = (),
        name: str = "swarm",
        timings: Timings | None = None,
        default: Outcome | None = None,
    ) -> None:
        self.clock = clock
        self.timings = timings or Timings()
        self.default = default or Outcome()
        self.calls: list[Call] = []
        self.unexpected: list[str] = []
        self.edited: set[str] = set()
        """Names that were submitted again with another spec; right only if their task was edited after they had been bound."""
        self.started = False
        self.unavailable = False
        """True: every call raises EngineUnavailable, as with a dead daemon; what runs goes on."""
        self.on_run: list[Callable[[Interval], None]] = []
        """Told of every program that has started or ended, in the order in which it truly happened; for checkers."""
        self.on_sleep: list[Callable[[str, bool], None]] = []
        """Told of every node that falls asleep (True), and of every node that is back, however it was lost (False): before anything
        there goes on."""
        self._name = name
        self._nodes: dict[str, _Node] = {}
        self._runs: dict[str, _Run] = {}
        self._refused: dict[str, str] = {}
        self._ghosts: list[_Run] = []
        self._told_to_end: set[str] = set()  # also of what has been removed since
        self._cut_short: set[str] = set()
        self._ended: list[Interval] = []
        self._scripts: dict[str, list[Outcome]] = {}
        self._faults: list[_Fault] = []
        self._delays: dict[str, float] = {}
        self._watchers: list[asyncio.Queue[Hint]] = []
        for node in nodes:
            self.add_node(node)

    # --- for tests: the world ---------------------------------------------------------------------------------------------

    def script(self, task_name: str, *outcomes: Outcome) -> None:
        """What the attempts of a task do, in the order of their submission; the last one repeats."""
        if not outcomes:
            raise ValueError("script needs at least one Outcome")
        self._scripts[task_name] = list(outcomes)

    def fail(self, method: str, error: SwarmTaskError, *, nth: int = 1, times: int = 1, after: bool = False) -> None:
        """Make the nth call of `method` from now on raise, and the `times` - 1 calls after it too.

        after: the call takes effect and raises all the same, like an answer lost on its way.
        """
        self._faults.append(_Fault(method, error, nth, times, after))

    def delay(self, method: str, delay_s: float) -> None:
        """Every further call of `method` takes `delay_s` seconds of the clock; 0 ends it."""
        self._delays[method] = delay_s

    def add_node(self, node: str | EngineNode) -> None:
        """A new node, or a new description of a known one. A bare name gets 4 cores and 8 GiB."""
        if isinstance(node, str):
            node = EngineNode(
                id=node, hostname=node, state=NodeState.READY, cpu_milli=4000, memory_bytes=8 * GIB, arch="x86_64", os="linux",
                engine_version="fake",
            )  # fmt: skip
        known = self._nodes.get(node.id)
        if known is None or known.removed:
            self._nodes[node.id] = _Node(node)
        else:
            known.info = node
        self._hint(Hint("node", node.id))

    def disconnect(self, node_id: str) -> None:
        """A partition: the node's work goes on, unseen; `stop` and `remove` reach it after `reconnect`."""
        self._lose(node_id)

    def freeze(self, node_id: str) -> None:
        """A closed lid: nothing happens there until `reconnect`, then it goes on where it stopped."""
        node = self._lose(node_id)
        if node.frozen_at is None:
            node.frozen_at = self.clock.monotonic()
            for told in self.on_sleep:
                told(node_id, True)

    def power_off(self, node_id: str) -> None:
        """The plug is pulled: what ran there is dead, though nobody can know until `reconnect`."""
        node = self._lose(node_id)
        node.boot += node.powered
        node.powered = False
        now = self.clock.monotonic()
        for run in self._there(node_id):
            if run.state is WorkloadState.RUNNING:
                self._end(run, now, 255, Reason.NODE_RESTARTED, "task: non-zero exit (255)")
            run.due = None

    def reconnect(self, node_id: str) -> None:
        """The node is back, however it was lost; the engine believes it `node_ready_s` later."""
        self._settle()
        node, now = self._node(node_id), self.clock.monotonic()
        if node.frozen_at is not None:
            for run in self._there(node_id):
                if run.due is not None:
                    run.due += now - max(node.frozen_at, run.accepted_at)
            node.frozen_at = None
        was_down = node.lost_at is not None and now - node.lost_at >= self.timings.node_down_s
        node.lost_at, node.powered = None, True
        for told in self.on_sleep:
            told(node_id, False)
        node.ready_at = now + self.timings.node_ready_s if was_down else now
        for run in self._there(node_id):
            if run.state in (WorkloadState.PENDING, WorkloadState.PREPARING) and run.due is None:
                run.due = node.ready_at
            if run.stop_grace_s is not None:
                self._deliver_stop(run, now, run.stop_grace_s)
            elif was_down and run.state in (WorkloadState.PREPARING, WorkloadState.RUNNING):
                run.lost = True
                self._deliver_stop(run, now, run.workload.grace_s)
        self._settle()
        self._hint(Hint("node", node_id))

    def remove_node(self, node_id: str) -> None:
        """The node was taken out of the engine for good (`docker node rm --force`); its programs are killed when it left."""
        self._settle()
        node, now = self._node(node_id), self.clock.monotonic()
        for run in self._there(node_id):
            if run.state is WorkloadState.RUNNING:
                self._end(run, now, 137, None, "node left")
        node.removed = True
        node.lost_at = node.lost_at if node.lost_at is not None else now
        self._hint(Hint("node", node_id))

    def finish(self, name: str, exit_code: int = 0) -> None:
        """End a running workload by hand, now."""
        self._settle()
        run = self._runs[name]
        if run.state is not WorkloadState.RUNNING:
            raise UnexpectedCall(f"{name} is {run.state}, only a running workload can finish")
        self._end(run, self.clock.monotonic(), exit_code, None, "")
        self._report()
        self._hint(Hint("workload", name))

    def lose(self, name: str) -> None:
        """Somebody else removed the workload behind our back (`docker service rm`)."""
        self._settle()
        self._drop(name)
        self._hint(Hint("workload", name))

    def kill(self, name: str, grace_s: float = 0.0) -> None:
        """Something on the node itself stops a running program: SIGTERM, SIGKILL `grace_s` later. The engine sees only its end."""
        self._settle()
        ghost = next((ghost for ghost in self._ghosts if ghost.workload.name == name), None)
        run, now = self._runs.get(name) or ghost, self.clock.monotonic()
        if run is None or run.state is not WorkloadState.RUNNING:
            return
        if grace_s > 0:
            self._deliver_stop(run, now, grace_s)
        else:
            self._end(run, now, 137, None, "killed on its node")
        self._report()

    def interrupt_watch(self) -> None:
        """The event stream broke and came back: every watcher gets `resync`."""
        self._hint(Hint("resync"))

    def adopt(self, workload: Workload, outcome: Outcome | None = None) -> None:
        """Put a workload there that this process never submitted: an orphan, or one from before a restart."""
        self._settle()
        self._accept(workload, outcome)

    # --- for tests: what happened -----------------------------------------------------------------------------------------

    def called(self, method: str) -> list[Call]:
        return [call for call in self.calls if call.method == method]

    def boot(self, node_id: str) -> int:
        """How often the machine was started."""
        return self._node(node_id).boot

    def awake(self, node_id: str) -> bool:
        """Its programs run."""
        return self._node(node_id).runs

    def stopping(self, name: str) -> bool:
        """Its program was told to end."""
        run = self._runs.get(name)
        return run is not None and run.stopping and run.state is WorkloadState.RUNNING

    def told_to_end(self, name: str) -> bool:
        """A signal to end had reached its program before it ended."""
        return name in self._told_to_end

    def cut_short(self, name: str) -> bool:
        """Its program ended because of such a signal, before it had come to its own end."""
        return name in self._cut_short

    def connected(self, node_id: str) -> bool:
        return self._node(node_id).connected and not self._node(node_id).removed

    def containers(self, node_id: str) -> list[tuple[Workload, Interval]]:
        """What has run on a node, as its own Docker shows it."""
        self._settle()
        return [(run.workload, self._interval(run)) for run in self._there(node_id) if run.started_at is not None]

    def names(self) -> set[str]:
        """Names that the engine holds now."""
        return set(self._runs)

    def workload(self, name: str) -> Workload:
        """What was submitted under this name."""
        return self._runs[name].workload

    def acting(self) -> dict[str, str]:
        """Name -> task UID of every program that can act now, also where the engine cannot see it or does not list it any more; not
        on a frozen node."""
        self._settle()
        return {
            run.workload.name: run.workload.task_uid
            for run in [*self._runs.values(), *self._ghosts]
            if run.state is WorkloadState.RUNNING and self._nodes[run.workload.node_id].frozen_at is None
        }

    def intervals(self) -> list[Interval]:
        """Every time a program truly ran: what a checker needs to prove that no two attempts of a task overlapped."""
        self._settle()
        live = [self._interval(run) for run in [*self._runs.values(), *self._ghosts] if run.state is WorkloadState.RUNNING]
        return [*self._ended, *live]

    def check(self) -> None:
        """Raises UnexpectedCall when anything unexpected was asked."""
        if self.unexpected:
            raise UnexpectedCall("; ".join(self.unexpected))

    # --- the engine contract ----------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        return self._name

    @property
    def capabilities(self) -> EngineCapabilities:
        return EngineCapabilities(isolates=True, pulls_images=True, keeps_logs_after_exit=True, remote_nodes=True)

    async def start(self) -> None:
        async with self._call("start"):
            self.started = True

    async def aclose(self) -> None:
        self.calls.append(Call(self.clock.now(), "aclose"))
        self.started = False

    async def nodes(self) -> tuple[EngineNode, ...]:
        async with self._call("nodes"):
            return tuple(self._show(node) for node in self._nodes.values() if not node.removed)

    async def submit(self, workload: Workload) -> None:
        async with self._call("submit", workload.name, workload=workload):
            if workload.node_id not in self._nodes:
                self._surprise(f"submit of {workload.name} to the node {workload.node_id!r}, which never existed")
            present = self._runs.get(workload.name)
            if present is not None:
                if _attempt_of(present.workload) != _attempt_of(workload):
                    self.unexpected.append(f"submit of {workload.name}, which is another attempt already")
                    raise EngineRejected(f"{workload.name} exists already and is not this attempt")
                if _bound(present.workload) != _bound(workload):
                    self.unexpected.append(f"submit of {workload.name} with something else than what was written down at binding")
                if present.workload.spec_hash != workload.spec_hash:
                    self.edited.add(workload.name)
                return
            self._accept(workload, None)

    async def stop(self, name: str, grace_s: int) -> None:
        async with self._call("stop", name, grace_s=grace_s):
            run = self._runs.get(name)
            if run is None or run.state in FINAL_WORKLOAD_STATES:
                return
            if run.stop_grace_s is None:
                run.stop_grace_s = grace_s
                node = self._nodes[run.workload.node_id]
                if run.reported is None or run.reported.state is WorkloadState.PENDING:
                    self._end_unstarted(run)
                elif node.connected and node.runs:
                    self._deliver_stop(run, self.clock.monotonic(), grace_s)
            self._report()
            self._hint(Hint("workload", name))

    async def remove(self, name: str) -> None:
        async with self._call("remove", name):
            self._drop(name)
            self._hint(Hint("workload", name))

    async def workloads(self) -> tuple[Observation, ...]:
        async with self._call("workloads"):
            return tuple(self._observe(run) for run in self._runs.values())

    async def watch(self) -> AsyncIterator[Hint]:
        """Hints of every call and of everything that happens by itself, the latter when the clock gets there."""
        queue: asyncio.Queue[Hint] = asyncio.Queue()
        self._watchers.append(queue)
        try:
            while True:
                yield await self._next_hint(queue)
        finally:
            self._watchers.remove(queue)

    async def logs(
        self, name: str, *, follow: bool = False, tail: int | None = None, timestamps: bool = False
    ) -> AsyncIterator[bytes]:
        async with self._call("logs", name, follow=follow, tail=tail):
            run = self._runs.get(name)
            if run is None:
                raise WorkloadNotFound(f"the engine has no workload {name}")
            if not self._nodes[run.workload.node_id].connected:
                raise EngineUnavailable(f"the node of {name} does not answer: its logs cannot be read now")
        while follow and run.state in (WorkloadState.PENDING, WorkloadState.PREPARING) and name in self._runs:
            await self._until(run)
        lines = run.outcome.output if run.started_at is not None else ()
        stamp = (self._when(run.started_at) or self.clock.now()).strftime("%Y-%m-%dT%H:%M:%S.%fZ ").encode()
        for line in lines if tail is None else lines[max(0, len(lines) - tail) :]:
            yield (stamp if timestamps else b"") + line
        while follow and run.state is WorkloadState.RUNNING and name in self._runs:
            await self._until(run)

    async def label_node(self, node_id: str, labels: Mapping[str, str | None]) -> None:
        async with self._call("label_node", node_id, labels=dict(labels)):
            node = self._known(node_id)
            merged = {**node.info.labels, **labels}
            node.info = replace(node.info, labels={key: value for key, value in merged.items() if value is not None})
            self._hint(Hint("node", node_id))

    async def set_availability(self, node_id: str, availability: Availability) -> None:
        async with self._call("set_availability", node_id, availability=availability):
            node = self._known(node_id)
            node.info = replace(node.info, available=availability is Availability.ACTIVE)
            self._hint(Hint("node", node_id))

    # --- inside: calls and faults -----------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _call(self, method: str, name: str = "", **arguments: Any) -> AsyncIterator[None]:
        """Record, wait, fail before or after as told. Not around a `yield` of a generator."""
        self.calls.append(Call(self.clock.now(), method, name, arguments))
        if delay_s := self._delays.get(method, 0):
            await self.clock.sleep(delay_s)
        if self.unavailable:
            raise EngineUnavailable("the engine does not answer")
        fault = self._due_fault(method)
        if fault is not None and not fault.after:
            raise fault.error
        self._settle()
        yield
        if fault is not None:
            raise fault.error

    def _due_fault(self, method: str) -> _Fault | None:
        for fault in [fault for fault in self._faults if fault.method == method]:
            fault.nth -= 1
            if fault.nth <= 0:
                fault.times -= 1
                if fault.times <= 0:
                    self._faults.remove(fault)
                return fault
        return None

    def _surprise(self, message: str) -> None:
        self.unexpected.append(message)
        raise UnexpectedCall(message)

    def _known(self, node_id: str) -> _Node:
        node = self._nodes.get(node_id)
        if node is None or node.removed:
            raise EngineRejected(f"the engine has no node {node_id}")
        return node

    def _node(self, node_id: str) -> _Node:
        if node_id not in self._nodes:
            raise UnexpectedCall(f"there is no node {node_id!r}; known: {', '.join(self._nodes)}")
        return self._nodes[node_id]

    def _lose(self, node_id: str) -> _Node:
        self._settle()
        node = self._node(node_id)
        if node.lost_at is None:
            node.lost_at = self.clock.monotonic()
        return node

    # --- inside: hints ----------------------------------------------------------------------------------------------------

    def _hint(self, hint: Hint) -> None:
        for queue in self._watchers:
            queue.put_nowait(hint)

    async def _next_hint(self, queue: asyncio.Queue[Hint]) -> Hint:
        while True:
            now = self.clock.monotonic()
            moments = [run.due for run in self._runs.values() if run.due is not None]
            moments += [node.ready_at for node in self._nodes.values()]
            ahead = [moment for moment in moments if now < moment < float("inf")]
            arrival = asyncio.ensure_future(queue.get())
            waits: list[asyncio.Future[Any]] = [arrival]
            if ahead:
                waits.append(asyncio.ensure_future(self.clock.sleep(min(ahead) - now)))
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                if arrival.done():
                    return arrival.result()
                self._settle()
            finally:
                for wait in waits:
                    wait.cancel()

    async def _until(self, run: _Run) -> None:
        """Wait for the next step of one workload."""
        remaining_s = 0.5 if run.due is None or run.due == float("inf") else max(0.01, run.due - self.clock.monotonic())
        await self.clock.sleep(remaining_s)
        self._settle()

    # --- inside: the world ------------------------------------------------------------------------------------------------

    def _accept(self, workload: Workload, outcome: Outcome | None) -> None:
        if workload.name in self._refused:  # what was wrong with it still is
            raise EngineRejected(self._refused[workload.name])
        if outcome is None:
            scripted = self._scripts.get(workload.task_name)
            outcome = self.default
            if scripted:
                outcome = scripted.pop(0) if len(scripted) > 1 else scripted[0]
        if outcome.refused:
            self._refused[workload.name] = outcome.refused
            raise EngineRejected(outcome.refused)
        now = self.clock.monotonic()
        self._runs[workload.name] = _Run(workload, outcome, now, due=now + self.timings.visible_s)
        self._hint(Hint("workload", workload.name))

    def _drop(self, name: str) -> None:
        run = self._runs.pop(name, None)
        if run is None or run.state is not WorkloadState.RUNNING:
            return
        node = self._nodes[run.workload.node_id]
        if node.removed:
            return
        self._ghosts.append(run)  # it has its grace, and longer where its node does not hear of it
        if run.stop_grace_s is None:
            run.stop_grace_s = run.workload.grace_s
        if node.connected and node.runs:
            self._deliver_stop(run, self.clock.monotonic(), run.stop_grace_s)

    def _on(self, node_id: str) -> list[_Run]:
        return [run for run in self._runs.values() if run.workload.node_id == node_id]

    def _there(self, node_id: str) -> list[_Run]:
        """The same, after those whose workload was removed."""
        return [*(ghost for ghost in self._ghosts if ghost.workload.node_id == node_id), *self._on(node_id)]

    def _settle(self) -> None:
        """Do everything that has come due, in the order of time."""
        now = self.clock.monotonic()
        while True:
            ripe = [run for run in [*self._runs.values(), *self._ghosts] if self._ripe(run, now)]
            if not ripe:
                break
            self._step(min(ripe, key=lambda run: run.due or 0.0))
        self._report()

    def _ripe(self, run: _Run, now: float) -> bool:
        if run.due is None or run.due > now:
            return False
        node = self._nodes[run.workload.node_id]
        # a node takes new work only while the engine reaches it and says Ready; what it has, it goes on with
        return node.runs and (run.state is not WorkloadState.PENDING or (node.connected and now >= node.ready_at))

    def _step(self, run: _Run) -> None:
        assert run.due is not None
        at = run.due
        if run.state is WorkloadState.PENDING:
            run.state = WorkloadState.PREPARING
            prepare_s = self.timings.prepare_s if run.outcome.prepare_s is None else run.outcome.prepare_s
            run.due = max(at, self._nodes[run.workload.node_id].ready_at) + prepare_s
        elif run.state is WorkloadState.PREPARING and run.outcome.pull_error:
            run.state, run.reason, run.message = WorkloadState.REJECTED, Reason.IMAGE_PULL_FAILED, run.outcome.pull_error
            run.ended_at, run.due = at, None
        elif run.state is WorkloadState.PREPARING:
            run.state, run.started_at, run.next_exit = WorkloadState.RUNNING, at, run.outcome.exit_code
            run.due = None if run.outcome.duration_s is None else at + run.outcome.duration_s
            self._tell(run)
        else:
            limit = run.workload.memory_limit_bytes
            over = limit is not None and (run.outcome.peak_bytes or 0) > limit
            oom = (run.outcome.oom or over) and not run.stopping
            reason = Reason.OOM_KILLED if oom else Reason.NODE_LOST if run.lost and run.stopping else None
            self._end(run, at, 137 if oom else run.next_exit, reason, "")
        self._hint(Hint("workload", run.workload.name))

    def _deliver_stop(self, run: _Run, now: float, grace_s: float) -> None:
        """SIGTERM arrives on the node."""
        if run.state is WorkloadState.RUNNING and run.stopping:
            return  # it has the signal; a node that is back does not get it again
        if run.state is WorkloadState.RUNNING:
            run.stopping = True
            self._told_to_end.add(run.workload.name)
            own_end = run.due if run.due is not None else float("inf")
            wait_s = self.timings.term_s if run.outcome.honours_term else float(grace_s)
            if now + wait_s <= own_end:
                self._cut_short.add(run.workload.name)
                run.next_exit, run.due = (run.outcome.term_exit_code if run.outcome.honours_term else 137), now + wait_s
        elif run.state not in FINAL_WORKLOAD_STATES:
            self._end_unstarted(run)

    def _end_unstarted(self, run: _Run) -> None:
        run.state, run.ended_at, run.due = WorkloadState.STOPPED, self.clock.monotonic(), None
        run.reason = Reason.NODE_LOST if run.lost else None

    def _end(self, run: _Run, at: float, exit_code: int, reason: Reason | None, message: str) -> None:
        run.state, run.ended_at, run.due = WorkloadState.EXITED, at, None
        run.exit_code, run.reason, run.message = exit_code, reason, message
        self._ended.append(self._interval(run))
        self._tell(run)

    def _tell(self, run: _Run) -> None:
        interval = self._interval(run) if self.on_run else None
        for told in self.on_run:
            assert interval is not None
            told(interval)

    def _interval(self, run: _Run) -> Interval:
        started = self._when(run.started_at)
        assert started is not None
        work = run.workload
        peak = LITTLE if run.outcome.peak_bytes is None else run.outcome.peak_bytes
        peak = min(peak, work.memory_limit_bytes or peak)
        return Interval(work.name, work.task_uid, work.node_id, started, self._when(run.ended_at), run.exit_code, peak)

    # --- inside: what the engine shows ------------------------------------------------------------------------------------

    def _report(self) -> None:
        """Let the engine know what the reachable nodes know."""
        now = self.clock.monotonic()
        for run in self._runs.values():
            node = self._nodes[run.workload.node_id]
            heard = node.connected and now >= node.ready_at
            if (run.reported is None or heard or run.state is WorkloadState.STOPPED) and run.reported_of != run.truth:
                run.reported, run.reported_of = self._describe(run), run.truth

    def _describe(self, run: _Run) -> Observation:
        work = run.workload
        return Observation(
            name=work.name, engine=self._name, task_uid=work.task_uid, namespace=work.namespace, task_name=work.task_name,
            attempt=work.attempt, state=run.state, node_id="" if run.state is WorkloadState.PENDING else work.node_id,
            exit_code=run.exit_code, reason=run.reason, message=run.message, started_at=self._when(run.started_at),
            finished_at=self._when(run.ended_at), fence=work.fence,
        )  # fmt: skip

    def _observe(self, run: _Run) -> Observation:
        shown = run.reported or self._describe(run)
        node = self._nodes[run.workload.node_id]
        lost = node.removed or self._show(node).state is not NodeState.READY
        if lost and shown.state not in FINAL_WORKLOAD_STATES and shown.state is not WorkloadState.PENDING:
            word = "was removed" if node.removed else "does not answer"
            return replace(shown, state=WorkloadState.UNKNOWN, message=f"node {node.info.hostname} {word}")
        return shown

    def _show(self, node: _Node) -> EngineNode:
        now = self.clock.monotonic()
        down = node.lost_at is not None and now - node.lost_at >= self.timings.node_down_s
        if down or now < node.ready_at:
            return replace(node.info, state=NodeState.DOWN, message="heartbeat failure")
        return node.info

    def _when(self, moment: float | None) -> datetime | None:
        if moment is None:
            return None
        return self.clock.now() - timedelta(seconds=self.clock.monotonic() - moment)
