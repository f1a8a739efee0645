"""The same step on many tasks at once: which ones, a question before many, bounded concurrency, one line each, one exit code.

Called by `cancel`, `retry` and `queue drain`. Knows none of them.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import typer

from swarmtask.cli import terminal
from swarmtask.cli.exits import ExitCode, combined, exit_code_of
from swarmtask.cli.kindnames import name_of
from swarmtask.cli.session import Session, Target, connect
from swarmtask.cli.tables import reference, value_at
from swarmtask.errors import NotFound, SwarmTaskError
from swarmtask.kube import Object
from swarmtask.resources.kinds import SWARM_QUEUE, SWARM_TASK
from swarmtask.resources.task import Phase

IN_FLIGHT = 16
"""Requests at the same time."""

Step = Callable[[Session, Object], Awaitable[str]]
"""Acts on one task and returns what was done; raises SwarmTaskError where it cannot be done."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Which tasks are meant: names, or all that match.

    Attributes:
        everything: match without a selector.
        queue: only those of this queue; empty means any.
        fits: of a choice that is not by name, only those are acted on; the others are left out without a word.
    """

    names: Sequence[str]
    selector: str
    everything: bool
    queue: str
    fits: Callable[[Object], bool]

    def check(self, everything: str) -> None:
        """Raises typer.BadParameter when it names nothing, or both. `everything`: the option that means all."""
        if self.queue and not (self.names or self.selector or self.everything):
            raise typer.BadParameter(f"add {everything} to mean all of that queue, or --selector for some", param_hint="--queue")
        if bool(self.names) == bool(self.selector or self.everything):
            raise typer.BadParameter(f"give task names, or --selector or {everything}, and not both", param_hint="TASK")
        if self.names and self.queue:
            raise typer.BadParameter(f"goes with --selector or {everything}, not with task names", param_hint="--queue")


async def for_each(target: Target, choice: Choice, step: Step, *, verb: str, dry_run: bool, yes: bool) -> None:
    """Act on every task that is meant; one that fails does not keep the others from it.

    Args:
        verb: for the question and the sum, for example "retry".
        dry_run: whether the step only tries; said on each line.
        yes: do not ask, whatever the number.

    Raises:
        typer.Exit: something could not be done.
    """
    codes: list[ExitCode] = []
    async with connect(target) as session:
        tasks = await _by_name(session, choice, codes) if choice.names else await _matching(session, choice)
        if not choice.names and not dry_run and not yes and not _agreed(len(tasks), verb):
            terminal.say("Nothing was done.")
            return
        await act(session, tasks, step, codes, " (dry run)" if dry_run else "")
    failed = sum(code is not ExitCode.OK for code in codes)
    if len(codes) > 1:
        terminal.say(
            f"{verb}: {len(codes) - failed} of {len(codes)} tasks{f', {failed} failed' if failed else ''}"
            f"{' (dry run)' if dry_run else ''}"
        )
    code = combined(codes)
    if code is not ExitCode.OK:
        raise typer.Exit(code)


async def act(session: Session, tasks: Sequence[Object], step: Step, codes: list[ExitCode], note: str = "") -> None:
    """Do it, at most IN_FLIGHT at a time; told in the order of the tasks.

    Args:
        codes: one is added for each task.
        note: put after each line.
    """
    gate = asyncio.Semaphore(IN_FLIGHT)

    async def one(task: Object) -> str | SwarmTaskError:
        async with gate:
            try:
                return await step(session, task)
            except SwarmTaskError as error:
                return error

    doing = [asyncio.ensure_future(one(task)) for task in tasks]
    try:
        for task, outcome in zip(tasks, doing, strict=True):
            result = await outcome
            if isinstance(result, SwarmTaskError):
                terminal.complain(result)
                codes.append(exit_code_of(result))
            else:
                terminal.emit(f"{reference(SWARM_TASK, task)} {result}{note}")
                codes.append(ExitCode.OK)
    finally:
        for begun in doing:
            begun.cancel()
        await asyncio.gather(*doing, return_exceptions=True)


async def _matching(session: Session, choice: Choice) -> list[Object]:
    found = list((await session.api.list(SWARM_TASK, session.namespace, label_selector=choice.selector)).items)
    if choice.queue:
        found = [task for task in found if value_at(task, ".spec.queue") == choice.queue]
        if not found:
            await _known_queue(session, choice.queue)
    fit = [task for task in found if choice.fits(task)]
    if not fit:
        terminal.say(f"{len(found)} tasks match, none of them can be acted on." if found else "No task matches.")
    return fit


async def _known_queue(session: Session, name: str) -> None:
    """A slip of the pen must not look as if there were nothing to do. Raises NotFound when there is no such queue."""
    try:
        await session.api.get(SWARM_QUEUE, name, session.namespace)
    except NotFound:
        raise NotFound(no_queue(session, name)) from None


def no_queue(session: Session, name: str) -> str:
    """The words for a queue that does not exist."""
    return f"there is no queue {name} in namespace {session.namespace}: `swarmtask queue list -A` shows all there are"


async def _by_name(session: Session, choice: Choice, codes: list[ExitCode]) -> list[Object]:
    tasks = []
    for name in dict.fromkeys(choice.names):
        try:
            tasks.append(await session.api.get(SWARM_TASK, name_of(SWARM_TASK, name), session.namespace))
        except SwarmTaskError as error:
            terminal.complain(error)
            codes.append(exit_code_of(error))
    return tasks


def _agreed(count: int, verb: str) -> bool:
    """Ask before several tasks, where somebody is there to answer."""
    if count < 2 or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return True
    return typer.confirm(f"{verb} {count} tasks?", err=True)


def phase_of(task: Object) -> Phase:
    """Where a task is; a word of a newer version counts as Unknown."""
    text = value_at(task, ".status.phase") or Phase.PENDING
    return Phase(text) if text in set(Phase) else Phase.UNKNOWN


async def annotate(session: Session, task: Object, annotations: dict[str, str | None], *, dry_run: bool = False) -> None:
    """Set annotations (None takes one away) of the very object that was read.

    Raises:
        NotFound: it has gone. Conflict: another one has its name now.
    """
    metadata = task["metadata"]
    try:
        await session.api.patch(
            SWARM_TASK, metadata["name"], {"metadata": {"uid": metadata["uid"], "annotations": annotations}},
            metadata.get("namespace"), dry_run=dry_run,
        )  # fmt: skip
    except NotFound:
        raise NotFound(f"{metadata['name']} was deleted meanwhile") from None
