"""`swarmtask queue position` and `queue front`: where one task stands, and how to move it before the others.

Called by `queues`, which holds the group of commands. Everything shown was found out by the operator (`status`).
"""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any

import typer

from swarmtask.cli import tables, terminal
from swarmtask.cli.bulk import annotate, phase_of
from swarmtask.cli.changes import changes
from swarmtask.cli.command import command
from swarmtask.cli.exits import ExitCode, combined, exit_code_of
from swarmtask.cli.kindnames import name_of
from swarmtask.cli.options import ClientDataDir, Context, Kubeconfig, Namespace
from swarmtask.cli.session import Session, Target, connect
from swarmtask.cli.tables import reference, value_at
from swarmtask.clock import format_time, parse_time
from swarmtask.errors import Invalid, NotFound, SwarmTaskError
from swarmtask.kube import Object
from swarmtask.resources.kinds import SWARM_QUEUE, SWARM_TASK
from swarmtask.resources.task import ANNOTATION_FRONT, BOUND_PHASES, LABEL_ARRAY, TERMINAL_PHASES, Phase
from swarmtask.resources.units import human_duration


class PositionOutput(StrEnum):
    """How a place in a queue is written to stdout."""

    TEXT = "text"
    JSON = "json"


def register(group: typer.Typer, panel: str) -> None:
    command(group, "position", panel)(position)
    command(group, "front", panel)(front)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a task stands, as its status and its queue's say.

    Attributes:
        position: 1-based; None where it does not wait, or has not been looked at yet.
        queued: tasks that wait in the queue, at least `position`; None where there is no position.
        words: why it waits, or what it does instead, for a person.
    """

    task: Object
    phase: Phase
    position: int | None
    queued: int | None
    estimated_start: datetime | None
    words: str

    @property
    def queue(self) -> str:
        return str(value_at(self.task, ".spec.queue") or "default")


async def position(
    name: Annotated[str, typer.Argument(metavar="TASK", show_default=False)],
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Go on and show every change until it starts.")] = False,
    output: Annotated[PositionOutput, typer.Option("--output", "-o", help="Format of the answer.")] = PositionOutput.TEXT,
    namespace: Namespace = None,
    data_dir: ClientDataDir = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """Show a task's place in its queue, why it waits, and when it may start.

    The estimate is made of how long tasks of its kind, and those before it, took so far. With --watch the exit code is 1 when the
    task ends without having started.
    """
    name = name_of(SWARM_TASK, name)
    async with connect(Target(data_dir, kubeconfig, context, namespace)) as session:
        if not watch:
            _show(await _place(session, await session.api.get(SWARM_TASK, name, session.namespace)), session, output)
            return
        await session.api.get(SWARM_TASK, name, session.namespace)  # says NotFound at once instead of watching for ever
        await _watch(session, name, output)


async def _watch(session: Session, name: str, output: PositionOutput) -> None:
    shown: tuple[Any, ...] | None = None
    async with aclosing(changes(session, SWARM_TASK, session.namespace, name=name)) as events:
        async for event in events:
            if event.type == "DELETED":
                break
            place = await _place(session, event.object)
            told = (place.phase, place.position, place.estimated_start, place.words)
            if told != shown:
                _show(place, session, output)
                shown = told
            if place.phase in TERMINAL_PHASES and value_at(place.task, ".status.startTime") is None:
                raise typer.Exit(ExitCode.FAILED)
            if place.phase in BOUND_PHASES | TERMINAL_PHASES:
                return
    raise NotFound(f"{name} was deleted")


async def _place(session: Session, task: Object) -> Place:
    phase, status = phase_of(task), task.get("status") or {}
    number, estimated = status.get("queuePosition"), status.get("estimatedStartTime")
    queued = None
    if isinstance(number, int):
        try:
            queue = await session.api.get(SWARM_QUEUE, str(value_at(task, ".spec.queue") or "default"), session.namespace)
            queued = max(number, int(value_at(queue, ".status.queued") or 0))
        except NotFound:
            queued = number
    return Place(
        task, phase, number if isinstance(number, int) else None, queued,
        parse_time(str(estimated)) if estimated else None, _words(task, phase),
    )  # fmt: skip


def _words(task: Object, phase: Phase) -> str:
    node = value_at(task, ".status.nodeName")
    if phase in BOUND_PHASES and node:  # an array is on no node: its message says how far it is
        return f"{phase} on {node}"
    if phase is Phase.QUEUED:
        return scheduled_words(task) or str(value_at(task, ".status.message") or "waiting for the next scheduling cycle")
    message = value_at(task, ".status.message") or value_at(task, ".status.reason") or ""
    return f"{phase}: {message}" if message else str(phase)


def scheduled_words(task: Object) -> str:
    """What the condition Scheduled=False says; empty where there is none."""
    for condition in value_at(task, ".status.conditions") or []:
        if isinstance(condition, dict) and condition.get("type") == "Scheduled" and condition.get("status") == "False":
            return str(condition.get("message") or value_at(task, ".status.message") or condition.get("reason") or "")
    return ""


def may_start(moment: datetime, now: datetime) -> str:
    """ "may start in 4m10s (12:34:56Z)"; an estimate that has passed is not taken for a promise."""
    ahead_s = (moment - now).total_seconds()
    return "may start any moment" if ahead_s < 1 else f"may start in {human_duration(ahead_s)} ({format_time(moment)})"


def _show(place: Place, session: Session, output: PositionOutput) -> None:
    name = str(place.task["metadata"]["name"])
    if output is PositionOutput.JSON:
        terminal.emit(tables.to_json({
            "namespace": place.task["metadata"].get("namespace"), "name": name, "queue": place.queue, "phase": str(place.phase),
            "position": place.position, "queued": place.queued, "reason": value_at(place.task, ".status.reason"),
            "message": place.words,
            "estimatedStartTime": None if place.estimated_start is None else format_time(place.estimated_start),
        }))  # fmt: skip
        return
    if place.position is None:
        terminal.emit(terminal.clean_line(f"{name}: {place.words}"))
        return
    parts = [f"{name}: place {place.position} of {place.queued} in queue {place.queue}"]
    if place.estimated_start is not None:
        parts.append(may_start(place.estimated_start, session.clock.now()))
    terminal.emit(terminal.clean_line("; ".join([*parts, place.words])))


async def front(
    names: Annotated[list[str], typer.Argument(metavar="TASK", show_default=False)],
    namespace: Namespace = None,
    data_dir: ClientDataDir = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """Move tasks that wait to the front of their queue, in the order given.

    They start before all others of their queue; other queues and their priorities are not affected. Who is moved later stands
    before who was moved earlier. Of an array its runs are moved, by their names.
    """
    codes: list[ExitCode] = []
    async with connect(Target(data_dir, kubeconfig, context, namespace)) as session:
        now = session.clock.now().astimezone(UTC)
        moved = set[str]()
        for number, text in enumerate(names):
            try:
                name = name_of(SWARM_TASK, text)
                if name in moved:
                    continue
                moved.add(name)
                task = await session.api.get(SWARM_TASK, name, session.namespace)
                if value_at(task, ".spec.completions") is not None:
                    raise Invalid(
                        f"{name} is an array: its runs stand in the queue. `swarmtask get st -l {LABEL_ARRAY}={name}` shows "
                        f"them: move those that are Queued, for example {name}-0"
                    )
                if phase_of(task) is not Phase.QUEUED:
                    raise Invalid(f"{name} does not wait in its queue ({phase_of(task)}): there is nothing to move")
                # The first one gets the latest time. All lie in the past, whatever their number.
                moment = now - timedelta(microseconds=number)
                await annotate(session, task, {ANNOTATION_FRONT: moment.isoformat(timespec="microseconds")})
            except SwarmTaskError as error:
                terminal.complain(error)
                codes.append(exit_code_of(error))
                continue
            terminal.emit(f"{reference(SWARM_TASK, task)} moved to the front")
    code = combined(codes)
    if code is not ExitCode.OK:
        raise typer.Exit(code)
