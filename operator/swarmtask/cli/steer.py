"""`swarmtask cancel` and `swarmtask retry`: both set an annotation, and the operator does the rest (ADR 0003)."""

from __future__ import annotations

import getpass
from datetime import UTC
from typing import Annotated

import typer

from swarmtask.cli.bulk import Choice, annotate, for_each, phase_of
from swarmtask.cli.command import command
from swarmtask.cli.options import ClientDataDir, Context, Kubeconfig, Namespace, Selector
from swarmtask.cli.session import Session, Target
from swarmtask.errors import Invalid
from swarmtask.kube import Object
from swarmtask.resources.kinds import SWARM_TASK
from swarmtask.resources.task import ANNOTATION_CANCEL, ANNOTATION_RETRY, TERMINAL_PHASES, Phase

Names = Annotated[list[str] | None, typer.Argument(metavar="TASK", show_default=False)]
OfQueue = Annotated[str, typer.Option("--queue", metavar="NAME", help="Of those, only tasks of this queue.", show_default=False)]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show which tasks are meant, and change nothing.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before several tasks are changed.")]

UNFINISHED = frozenset(Phase) - TERMINAL_PHASES
RETRIABLE = TERMINAL_PHASES - {Phase.SUCCEEDED}


def register(app: typer.Typer, panel: str) -> None:
    command(app, "cancel", panel)(cancel)
    command(app, "retry", panel)(retry)


async def cancel(
    names: Names = None,
    selector: Selector = "",
    all_: Annotated[bool, typer.Option("--all", help="Every task of the namespace that has not ended.")] = False,
    queue: OfQueue = "",
    reason: Annotated[str, typer.Option("--reason", help="Kept with the task.", show_default=False)] = "",
    dry_run: DryRun = False,
    yes: Yes = False,
    namespace: Namespace = None,
    data_dir: ClientDataDir = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """End tasks that wait or run. They become Cancelled and stay readable.

    One that waits ends at once. A running container gets SIGTERM, and SIGKILL after its grace period.
    """
    choice = Choice(names or (), selector, all_, queue, lambda task: phase_of(task) in UNFINISHED)
    choice.check("--all")

    async def step(session: Session, task: Object) -> str:
        phase = phase_of(task)
        if phase is Phase.CANCELLED:
            return "is cancelled already"
        if phase in TERMINAL_PHASES:
            raise Invalid(f"{task['metadata']['name']} has ended already ({phase}): there is nothing to cancel")
        await request_cancel(session, task, reason, dry_run=dry_run)
        return "cancel requested"

    await for_each(Target(data_dir, kubeconfig, context, namespace), choice, step, verb="cancel", dry_run=dry_run, yes=yes)


async def retry(
    names: Names = None,
    selector: Selector = "",
    all_dead: Annotated[bool, typer.Option("--all-dead", help="Every dead letter of the namespace: tasks that Failed.")] = False,
    queue: OfQueue = "",
    dry_run: DryRun = False,
    yes: Yes = False,
    namespace: Namespace = None,
    data_dir: ClientDataDir = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """Give tasks that ended otherwise than Succeeded a new budget of attempts.

    With --all-dead, only those that Failed; --selector and --queue choose among them. The runs of an array are retried with it.
    """
    phases = frozenset({Phase.FAILED}) if all_dead else RETRIABLE
    choice = Choice(names or (), selector, all_dead, queue, lambda task: phase_of(task) in phases and array_of(task) is None)
    choice.check("--all-dead")

    async def step(session: Session, task: Object) -> str:
        phase, name = phase_of(task), task["metadata"]["name"]
        array = array_of(task)
        if array is not None:
            raise Invalid(f"{name} is a run of the array {array}: `swarmtask retry {array}` runs again what failed")
        if phase is Phase.SUCCEEDED:
            raise Invalid(f"{name} has succeeded: to run it again, apply it under another name")
        if phase not in TERMINAL_PHASES:
            raise Invalid(f"{name} has not ended ({phase}): only a finished task can be retried")
        moment = session.clock.now().astimezone(UTC).isoformat()
        # A cancelled task would be cancelled again at once if its mark stayed.
        await annotate(session, task, {ANNOTATION_RETRY: moment, ANNOTATION_CANCEL: None}, dry_run=dry_run)
        return "retry requested"

    await for_each(Target(data_dir, kubeconfig, context, namespace), choice, step, verb="retry", dry_run=dry_run, yes=yes)


async def request_cancel(session: Session, task: Object, reason: str = "", *, dry_run: bool = False) -> None:
    """Ask the operator to end a task. `reason` is kept with it; who asked, where there is none."""
    # Unlike every earlier text: after a retry the operator ignores the cancel that it has acted on already.
    moment = session.clock.now().astimezone(UTC).isoformat(timespec="milliseconds")
    await annotate(session, task, {ANNOTATION_CANCEL: f"{reason or f'by {_who()}'} at {moment}"}, dry_run=dry_run)


def array_of(task: Object) -> str | None:
    """The array whose run this is; None for every other task."""
    owners = task["metadata"].get("ownerReferences") or ()
    return next((owner["name"] for owner in owners if owner.get("controller") and owner.get("kind") == SWARM_TASK.kind), None)


def _who() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # no passwd entry, for example in a container
        return "an unnamed user"
