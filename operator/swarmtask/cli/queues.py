"""`swarmtask queue`: what waits where, and how to hold, release and drain a queue.

`hold` and `release` set `spec.stopped`; `drain` holds and then watches until nothing runs. What concerns one task is in `places`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.text import Text

from swarmtask.cli import places, tables, terminal
from swarmtask.cli.bulk import act, no_queue, phase_of
from swarmtask.cli.changes import changes
from swarmtask.cli.command import command
from swarmtask.cli.exits import ExitCode, combined, exit_code_of
from swarmtask.cli.kindnames import name_of
from swarmtask.cli.options import ClientDataDir, Context, Kubeconfig, Namespace
from swarmtask.cli.queued import Queued, is_array, queued
from swarmtask.cli.session import Session, Target, connect
from swarmtask.cli.steer import request_cancel
from swarmtask.cli.tables import reference, value_at
from swarmtask.clock import parse_time
from swarmtask.errors import Conflict, NotFound, SwarmTaskError
from swarmtask.kube import Object
from swarmtask.resources.kinds import SWARM_QUEUE, SWARM_TASK
from swarmtask.resources.task import BOUND_PHASES
from swarmtask.resources.units import human_duration

Names = Annotated[list[str], typer.Argument(metavar="QUEUE", show_default=False)]

RECOUNT_S = 1.0


class QueuesOutput(StrEnum):
    """How queues are written to stdout."""

    TABLE = "table"
    JSON = "json"


def register(app: typer.Typer, panel: str) -> None:
    group = typer.Typer(help="Show and steer queues.", no_args_is_help=True)
    command(group, "list", "Queues")(list_)
    command(group, "hold", "Queues")(hold)
    command(group, "release", "Queues")(release)
    command(group, "drain", "Queues")(drain)
    places.register(group, "Tasks in queues")
    app.add_typer(group, name="queue", rich_help_panel=panel)


# --- list ---


async def list_(
    output: Annotated[QueuesOutput, typer.Option("--output", "-o", help="Format of the answer.")] = QueuesOutput.TABLE,
    all_namespaces: Annotated[bool, typer.Option("--all-namespaces", "-A", help="Of every namespace.")] = False,
    namespace: Namespace = None,
    data_dir: ClientDataDir = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """Show every queue: what waits and runs, since when, how fast, and which limits are held.

    PER-MINUTE counts tasks that ended, over the last ten minutes; WAIT-P50 and WAIT-P99 are how long those that started in the last
    hour had waited.
    """
    async with connect(Target(data_dir, kubeconfig, context, namespace)) as session:
        scope = None if all_namespaces else session.namespace
        found = sorted((await session.api.list(SWARM_QUEUE, scope)).items, key=_name)
        if output is QueuesOutput.JSON:
            terminal.emit(tables.to_json([_document(queue) for queue in found]))
        elif found:
            tables.print_lines(_table(found, session.clock.now(), namespaces=all_namespaces))
        else:
            where = "" if scope is None else f" in namespace {scope}"
            terminal.say(f"No queues{where} yet: `default` appears with the first task.")


def _name(queue: Object) -> tuple[str, str]:
    return (str(queue["metadata"].get("namespace") or ""), str(queue["metadata"]["name"]))


def _state(queue: Object) -> str:
    return "Held" if value_at(queue, ".spec.stopped") else "Open"


def _limits(queue: Object) -> dict[str, tuple[int, int]]:
    """Name -> (held, how many there are)."""
    held = value_at(queue, ".status.limitsHeld") or {}
    return {name: (int(held.get(name, 0)), int(most)) for name, most in sorted((value_at(queue, ".spec.limits") or {}).items())}


def _document(queue: Object) -> dict[str, Any]:
    namespace, name = _name(queue)
    limits = {limit: {"held": held, "of": most} for limit, (held, most) in _limits(queue).items()}
    return {"namespace": namespace, "name": name, "state": _state(queue), "limits": limits, **(queue.get("status") or {})}


def _table(queues: Sequence[Object], now: datetime, *, namespaces: bool) -> list[Text]:
    heading = ["NAME", "STATE", "QUEUED", "RUNNING", "DEAD", "OLDEST", "PER-MINUTE", "WAIT-P50", "WAIT-P99", "LIMITS"]
    rows = [[*(["NAMESPACE"] if namespaces else []), *heading]]
    for queue in queues:
        namespace, name = _name(queue)
        oldest = value_at(queue, ".status.oldestQueuedTime")
        most = value_at(queue, ".spec.maxRunning")
        running = value_at(queue, ".status.running") or 0
        cells = [
            name,
            _state(queue),
            str(value_at(queue, ".status.queued") or 0),
            f"{running}" if most is None else f"{running}/{most}",
            str(value_at(queue, ".status.deadLetters") or 0),
            tables.age(parse_time(str(oldest)), now) if oldest else "-",
            str(value_at(queue, ".status.throughputPerMinute") or 0),
            _wait(value_at(queue, ".status.waitSecondsP50")),
            _wait(value_at(queue, ".status.waitSecondsP99")),
            " ".join(f"{limit}={held}/{slots}" for limit, (held, slots) in _limits(queue).items()) or "-",
        ]
        rows.append([terminal.clean_line(cell) for cell in ([namespace] if namespaces else []) + cells])
    return tables.plain_table(rows)


def _wait(seconds: Any) -> str:
    return human_duration(seconds) if isinstance(seconds, int) else "-"


# --- hold and release ---


async def hold(
    names: Names,
    namespace: Namespace = None,
    data_dir: ClientDataDir = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """Start nothing more of these queues. What runs goes on, and new tasks may still come."""
    await _set_stopped(Target(data_dir, kubeconfig, context, namespace), names, stopped=True)


async def release(
    names: Names,
    namespace: Namespace = None,
    data_dir: ClientDataDir = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """Let tasks of these queues start again."""
    await _set_stopped(Target(data_dir, kubeconfig, context, namespace), names, stopped=False)


async def _set_stopped(target: Target, names: Sequence[str], *, stopped: bool) -> None:
    codes: list[ExitCode] = []
    async with connect(target) as session:
        for name in dict.fromkeys(names):
            try:
                before, queue = await _stop(session, name_of(SWARM_QUEUE, name), stopped=stopped)
            except SwarmTaskError as error:
                terminal.complain(error)
                codes.append(exit_code_of(error))
                continue
            word = "held" if stopped else "released"
            terminal.emit(f"{reference(SWARM_QUEUE, queue)} {f'was {word} already' if before == stopped else word}")
    code = combined(codes)
    if code is not ExitCode.OK:
        raise typer.Exit(code)


async def _stop(session: Session, name: str, *, stopped: bool) -> tuple[bool, Object]:
    """Set spec.stopped. Returns what it was, and the queue.

    Raises:
        NotFound: there is no such queue.
    """
    try:
        queue = await session.api.get(SWARM_QUEUE, name, session.namespace)
        before = bool(value_at(queue, ".spec.stopped"))
        if before != stopped:
            queue = await session.api.patch(SWARM_QUEUE, name, {"spec": {"stopped": stopped}}, session.namespace)
    except NotFound:
        raise NotFound(no_queue(session, name)) from None
    return before, queue


# --- drain ---


async def drain(
    name: Annotated[str, typer.Argument(metavar="QUEUE", show_default=False)],
    timeout: Annotated[
        float | None, typer.Option("--timeout", metavar="SECONDS", min=0, help="Give up waiting after this.", show_default=False)
    ] = None,
    cancel_queued: Annotated[bool, typer.Option("--cancel-queued", help="Cancel what waits in it, too.")] = False,
    namespace: Namespace = None,
    data_dir: ClientDataDir = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """Hold a queue, and wait until nothing of it runs.

    It stays held afterwards, also when the wait was cut short: `swarmtask queue release` opens it again. With --cancel-queued what
    waits is cancelled, and an array as a whole, once those of its runs that run have ended.
    """
    name, codes = name_of(SWARM_QUEUE, name), list[ExitCode]()
    async with connect(Target(data_dir, kubeconfig, context, namespace)) as session:
        _, queue = await _stop(session, name, stopped=True)
        terminal.say(f"Queue {name} is held.")
        draining = _Drain(session, name, int(queue["metadata"].get("generation") or 0), codes if cancel_queued else None)
        held = f"The queue stays held: `swarmtask queue release {name}` opens it again."
        try:
            async with asyncio.timeout(timeout):
                await draining.until_empty()
        except TimeoutError:
            terminal.complain(f"{draining.describe()} after {timeout:g}s. {held}")
            raise typer.Exit(ExitCode.FAILED) from None
        except Conflict:
            raise
        except (asyncio.CancelledError, SwarmTaskError):  # Ctrl-C, or the API is away
            terminal.say(f"{draining.describe()}. {held}")
            raise
        terminal.emit(f"{reference(SWARM_QUEUE, queue)} drained")
        draining.tell_left()
    code = combined(codes)
    if code is not ExitCode.OK:
        raise typer.Exit(code)


class _Drain:
    """Waits until the operator has seen the hold and nothing of the queue is bound any more.

    Args:
        generation: of the queue once it was held. Before the operator has seen it, tasks may still be started.
        cancelling: what waits is cancelled, too, and the codes of that go here; None: it is left alone.
    """

    def __init__(self, session: Session, name: str, generation: int, cancelling: list[ExitCode] | None) -> None:
        self._session, self._name, self._generation, self._cancelling = session, name, generation, cancelling
        self._seen = False
        self._running = 0
        self._cancelled: set[str] = set()
        self._queued = Queued((), (), {}, {})

    def describe(self) -> str:
        """How it stands, for a person."""
        if not self._seen:
            return f"The operator has not seen yet that queue {self._name} is held"
        if self._running == 1:
            return f"1 task of queue {self._name} still runs"
        return f"{self._running} tasks of queue {self._name} still run"

    def tell_left(self) -> None:
        """What was not cancelled although the queue is drained: arrays that are of two queues, as they were moved meanwhile."""
        for array, running in self._queued.begun.items():
            terminal.say(f"{_runs(running, array, 'runs', 'run')} from another queue, so the array was not cancelled.")
        for array, waiting in self._queued.strays.items():
            terminal.say(f"{_runs(waiting, array, 'waits', 'wait')} here. The array is of another queue now and was not cancelled.")

    async def until_empty(self) -> None:
        """Raises Conflict: somebody has released the queue. NotFound: it was deleted."""
        await self._count()
        told = ""
        async with aclosing(changes(self._session, SWARM_QUEUE, self._session.namespace, name=self._name)) as events:
            async for event in events:
                if event.type == "DELETED":
                    break
                empty = self._read(event.object)
                if self._seen and self._owes and not empty:
                    await self._count()
                while empty:
                    # The queue counts by what tasks say now; one that was moved to another queue while it runs is found here.
                    self._running = await self._count()
                    if not self._running:
                        return
                    await self._session.clock.sleep(RECOUNT_S)
                    empty = self._read(await self._session.api.get(SWARM_QUEUE, self._name, self._session.namespace))
                if told != (told := self.describe()):
                    terminal.say(f"{told}.", style="dim")
        raise NotFound(f"queue {self._name} was deleted")

    def _read(self, queue: Object) -> bool:
        """Whether nothing runs, as far as the queue says."""
        if not value_at(queue, ".spec.stopped"):
            raise Conflict(f"queue {self._name} was released meanwhile, so it does not become empty")
        self._seen = int(value_at(queue, ".status.observedGeneration") or 0) >= self._generation
        self._running = int(value_at(queue, ".status.running") or 0)
        return self._seen and not self._running

    async def _count(self) -> int:
        """Tasks that hold a place for the queue, as the API has them now; what waits is cancelled where that was asked for."""
        tasks = (await self._session.api.list(SWARM_TASK, self._session.namespace)).items
        if self._cancelling is not None:
            await self._cancel_queued(queued(tasks, self._name), self._cancelling)
        return sum(phase_of(task) in BOUND_PHASES and _bound_from(task) == self._name for task in tasks)

    async def _cancel_queued(self, now: Queued, codes: list[ExitCode]) -> None:
        for array, running in now.begun.items():
            if running != self._queued.begun.get(array):
                end = "that one has ended" if running == 1 else "those have ended"
                terminal.say(f"{_runs(running, array, 'still runs', 'still run')}: the array is cancelled when {end}.", style="dim")
        self._queued = now
        # A run may still start until the operator has seen the hold, and would be stopped with its array.
        waiting = now.tasks + (now.arrays if self._seen else ())
        fresh = [task for task in waiting if str(task["metadata"]["uid"]) not in self._cancelled]
        self._cancelled |= {str(task["metadata"]["uid"]) for task in fresh}
        await act(self._session, fresh, self._cancel, codes)

    @property
    def _owes(self) -> bool:
        """Arrays wait to be cancelled."""
        return bool(self._queued.begun) or any(str(one["metadata"]["uid"]) not in self._cancelled for one in self._queued.arrays)

    async def _cancel(self, session: Session, task: Object) -> str:
        await request_cancel(session, task, f"queue {self._name} is drained")
        begun = is_array(task) and value_at(task, ".status.startTime") is not None
        return f"cancel requested; `swarmtask retry {task['metadata']['name']}` runs the rest" if begun else "cancel requested"


def _runs(count: int, array: str, one: str, many: str) -> str:
    return f"1 run of array {array} {one}" if count == 1 else f"{count} runs of array {array} {many}"


def _bound_from(task: Object) -> str:
    """The queue that the live attempt was started from."""
    attempts = value_at(task, ".status.attempts")
    if not attempts:
        return ""  # an array: its runs are tasks of their own
    return str(value_at(attempts[-1], ".requested.queue") or value_at(task, ".spec.queue") or "")
