"""`swarmtask cancel` and `swarmtask retry`: both set an annotation, and the operator does the rest (ADR 0003)."""

from __future__ import annotations

import getpass
from collections.abc import Awaitable, Callable
from datetime import UTC
from typing import Annotated

import typer

from swarmtask.cli import terminal
from swarmtask.cli.command import command
from swarmtask.cli.exits import ExitCode, combined, exit_code_of
from swarmtask.cli.options import ClientDataDir, Context, Kubeconfig, Namespace, Selector
from swarmtask.cli.session import Session, Target, connect
from swarmtask.cli.tables import reference
from swarmtask.errors import Invalid, SwarmTaskError
from swarmtask.kube import Object
from swarmtask.resources.kinds import SWARM_TASK
from swarmtask.resources.task import ANNOTATION_CANCEL, ANNOTATION_RETRY, TERMINAL_PHASES, Phase

Names = Annotated[list[str] | None, typer.Argument(metavar="TASK", show_default=False)]
Step = Callable[[Session, Object], Awaitable[str]]


def register(app: typer.Typer, panel: str) -> None:
    command(app, "cancel", panel)(cancel)
    command(app, "retry", panel)(retry)


async def cancel(
    names: Names = None,
    selector: Selector = "",
    reason: Annotated[str, typer.Option("--reason", help="Kept with the task.", show_default=False)] = "",
    namespace: Namespace = None,
    data_dir: ClientDataDir = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """End tasks that wait or run. They become Cancelled and stay readable.

    A running container gets SIGTERM, and SIGKILL after its grace period.
    """

    async def step(session: Session, task: Object) -> str:
        phase = _phase(task)
        if phase is Phase.CANCELLED:
            return "is cancelled already"
        if phase in TERMINAL_PHASES:
            raise Invalid(f"{task['metadata']['name']} has ended already ({phase}): there is nothing to cancel")
        # Unlike every earlier text: after a retry the operator ignores the cancel that it has acted on already.
        moment = session.clock.now().astimezone(UTC).isoformat(timespec="milliseconds")
        await _annotate(session, task, {ANNOTATION_CANCEL: f"{reason or f'by {_who()}'} at {moment}"})
        return "cancel requested"

    await _for_each(Target(data_dir, kubeconfig, context, namespace), names, selector, step, skip_finished=True)


async def retry(
    names: Names = None,
    selector: Selector = "",
    namespace: Namespace = None,
    data_dir: ClientDataDir = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """Give tasks that ended otherwise than Succeeded a new budget of attempts."""

    async def step(session: Session, task: Object) -> str:
        phase, name = _phase(task), task["metadata"]["name"]
        array = _array_of(task)
        if array is not None:
            raise Invalid(f"{name} is a run of the array {array}: `swarmtask retry {array}` runs again what failed")
        if phase is Phase.SUCCEEDED:
            raise Invalid(f"{name} has succeeded: to run it again, apply it under another name")
        if phase not in TERMINAL_PHASES:
            raise Invalid(f"{name} has not ended ({phase}): only a finished task can be retried")
        moment = session.clock.now().astimezone(UTC).isoformat()
        # A cancelled task would be cancelled again at once if its mark stayed.
        await _annotate(session, task, {ANNOTATION_RETRY: moment, ANNOTATION_CANCEL: None})
        return "retry requested"

    await _for_each(Target(data_dir, kubeconfig, context, namespace), names, selector, step, skip_finished=False)


async def _for_each(target: Target, names: list[str] | None, selector: str, step: Step, *, skip_finished: bool) -> None:
    if bool(names) == bool(selector):
        raise typer.BadParameter("give task names, or --selector, and not both", param_hint="TASK")
    codes: list[ExitCode] = []
    async with connect(target) as session:
        for task in await _selected(session, names, selector, codes, skip_finished=skip_finished):
            try:
                outcome = await step(session, task)
            except SwarmTaskError as error:
                terminal.complain(error)
                codes.append(exit_code_of(error))
                continue
            terminal.emit(f"{reference(SWARM_TASK, task)} {outcome}")
    code = combined(codes)
    if code is not ExitCode.OK:
        raise typer.Exit(code)


async def _selected(
    session: Session, names: list[str] | None, selector: str, codes: list[ExitCode], *, skip_finished: bool
) -> list[Object]:
    """The tasks that are meant. A selector silently leaves out those for which the step makes no sense."""
    if not names:
        found = (await session.api.list(SWARM_TASK, session.namespace, label_selector=selector)).items
        unfit = TERMINAL_PHASES if skip_finished else frozenset(Phase) - TERMINAL_PHASES | {Phase.SUCCEEDED}
        fit = [task for task in found if _phase(task) not in unfit]
        if not fit:
            terminal.say(f"{len(found)} tasks match, none of them can be acted on." if found else "No task matches.")
        return fit
    tasks = []
    for name in names:
        try:
            tasks.append(await session.api.get(SWARM_TASK, name.rpartition("/")[2], session.namespace))
        except SwarmTaskError as error:
            terminal.complain(error)
            codes.append(exit_code_of(error))
    return tasks


async def _annotate(session: Session, task: Object, annotations: dict[str, str | None]) -> None:
    metadata = task["metadata"]
    await session.api.patch(
        SWARM_TASK, metadata["name"], {"metadata": {"annotations": annotations}}, metadata.get("namespace")
    )  # fmt: skip


def _phase(task: Object) -> Phase:
    text = task.get("status", {}).get("phase") or Phase.PENDING
    return Phase(text) if text in set(Phase) else Phase.UNKNOWN


def _array_of(task: Object) -> str | None:
    """The array whose run this is."""
    owners = task["metadata"].get("ownerReferences") or ()
    return next((owner["name"] for owner in owners if owner.get("controller") and owner.get("kind") == SWARM_TASK.kind), None)


def _who() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # no passwd entry, for example in a container
        return "an unnamed user"
