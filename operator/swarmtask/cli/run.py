"""`swarmtask run`: one task from the command line."""

from __future__ import annotations

import re
import secrets
from contextlib import aclosing
from typing import Annotated, Any

import typer

from swarmtask.cli import tables, terminal
from swarmtask.cli.changes import changes
from swarmtask.cli.command import command
from swarmtask.cli.exits import ExitCode
from swarmtask.cli.logs import TaskLogs, follow_task, why
from swarmtask.cli.options import ClientDataDir, Context, EngineChoice, Kubeconfig, Namespace, Output, parse_pairs
from swarmtask.cli.session import Session, Target, connect
from swarmtask.errors import NotFound
from swarmtask.kube import Object
from swarmtask.resources.kinds import SWARM_TASK
from swarmtask.resources.meta import API_VERSION
from swarmtask.resources.task import PRIORITY_CLASSES, Phase, SwarmTask

_SUFFIX_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"  # no vowels, no look-alikes


def register(app: typer.Typer, panel: str) -> None:
    command(app, "run", panel)(run)


async def run(
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="Image; the local engine ignores it.", show_default=False)],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="-- CMD", help="What to run instead of the image's own command.", show_default=False),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="Name of the task. (default: made from the image)", show_default=False)
    ] = None,
    cpu: Annotated[str | None, typer.Option("--cpu", help="Cores to set aside, for example 500m or 2.", show_default=False)] = None,
    memory: Annotated[
        str | None,
        typer.Option("--memory", help="Memory to set aside, and the limit, for example 512Mi or auto.", show_default=False),
    ] = None,
    gpu: Annotated[int | None, typer.Option("--gpu", min=0, help="Whole GPUs.", show_default=False)] = None,
    queue: Annotated[str | None, typer.Option("--queue", help="Queue to wait in. (default: default)", show_default=False)] = None,
    priority: Annotated[
        str | None, typer.Option("--priority", metavar="high|normal|low|N", help="Higher starts first.", show_default=False)
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option("--env", "-e", metavar="NAME=VALUE", help="Environment variable; repeatable.", show_default=False),
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option("--label", metavar="NAME=VALUE", help="Label of the task; repeatable.", show_default=False)
    ] = None,
    node: Annotated[str | None, typer.Option("--node", help="Only on this node.", show_default=False)] = None,
    engine: Annotated[EngineChoice | None, typer.Option("--engine", help="Only by this engine.", show_default=False)] = None,
    backoff_limit: Annotated[
        int | None, typer.Option("--backoff-limit", min=0, help="Retries after the first attempt. (default: 3)", show_default=False)
    ] = None,
    completions: Annotated[
        int | None,
        typer.Option(
            "--completions", metavar="N", min=1, help="An array: N runs, each with its SWARMTASK_INDEX.", show_default=False
        ),
    ] = None,
    parallelism: Annotated[
        int | None,
        typer.Option("--parallelism", metavar="N", min=1, help="Runs of the array at the same time.", show_default=False),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the end; exit code 1 unless it succeeds.")] = False,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="The same, and show its output.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Let the server check everything and store nothing.")] = False,
    output: Annotated[Output | None, typer.Option("--output", "-o", help="Show the created object.", show_default=False)] = None,
    namespace: Namespace = None,
    data_dir: ClientDataDir = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """Queue one task: swarmtask run python:3.12 -- python -c 'print(42)'

    What follows -- is run exactly as written, without a shell, and replaces the image's entry point.
    """
    if completions is not None and follow:
        raise typer.BadParameter(
            "an array has many outputs: use --wait, and `swarmtask logs NAME --index N`", param_hint="--follow"
        )
    if parallelism is not None and completions is None:
        raise typer.BadParameter("only an array has runs at the same time: give --completions too", param_hint="--parallelism")
    requests = {key: value for key, value in (("cpu", cpu), ("memory", memory), ("gpu", gpu)) if value is not None}
    container: dict[str, Any] = {"image": image}
    if arguments:
        container["command"] = arguments
    if env:
        container["env"] = [{"name": key, "value": value} for key, value in parse_pairs(env, "--env").items()]
    if requests:
        container["resources"] = {"requests": requests}
    spec: dict[str, Any] = {"container": container, **_priority(priority)}
    plain = {"queue": queue, "engine": engine.value if engine else None, "backoffLimit": backoff_limit}
    for key, value in (plain | {"completions": completions, "parallelism": parallelism}).items():
        if value is not None:
            spec[key] = value
    if node:
        spec["placement"] = {"nodeName": node}
    labels = parse_pairs(label or [], "--label")
    metadata = {"name": name or generated_name(image), **({"labels": labels} if labels else {})}
    task = {"apiVersion": API_VERSION, "kind": "SwarmTask", "metadata": metadata, "spec": spec}
    async with connect(Target(data_dir, kubeconfig, context, namespace)) as session:
        await _submit(session, task, output, wait=wait and not dry_run, follow=follow and not dry_run, dry_run=dry_run)


async def _submit(session: Session, task: Object, output: Output | None, *, wait: bool, follow: bool, dry_run: bool) -> None:
    created = await session.api.create(SWARM_TASK, task, session.namespace, dry_run=dry_run)
    line = f"{tables.reference(SWARM_TASK, created)} created{' (dry run)' if dry_run else ''}"
    if output is not None:
        tables.print_objects(SWARM_TASK, [created], output, now=session.clock.now(), single=True)
    elif follow:
        terminal.say(line, style="dim")  # stdout belongs to the task's output
    else:
        terminal.emit(line)
    if not (wait or follow):
        return
    name = str(created["metadata"]["name"])
    finished = False
    try:
        if follow:
            async with TaskLogs(session) as reader:
                ended = await follow_task(session, reader, name)
        else:
            ended = await wait_for(session, name)
        finished = True
    finally:
        if not finished:
            terminal.say(f"{name} goes on: `swarmtask logs -f {name}` shows it, `swarmtask cancel {name}` ends it")
    if ended.status.phase is not Phase.SUCCEEDED:
        detail = ended.status.message or ended.status.reason or ""
        terminal.complain(f"{name}: {ended.status.phase}{': ' + detail if detail else ''}")
        raise typer.Exit(ExitCode.FAILED)
    if not follow:
        terminal.say(f"{name}: {ended.status.phase}")


async def wait_for(session: Session, name: str) -> SwarmTask:
    """The task once it has reached a terminal phase; meanwhile it is told why it does not start. Raises NotFound when it is deleted
    meanwhile."""
    told = ""
    async with aclosing(changes(session, SWARM_TASK, session.namespace, name=name)) as events:
        async for event in events:
            if event.type == "DELETED":
                break
            task = SwarmTask.model_validate(event.object)
            if task.finished:
                return task
            begun = task.is_array or (task.status.current is not None and task.status.current.live)
            if (task.status.message or task.status.reason) and not begun and told != (told := why(task)):
                terminal.say(f"waiting for {name}: {told}", style="dim")
    raise NotFound(f"{name} was deleted")


def generated_name(image: str) -> str:
    """`ghcr.io/acme/lint:1.4` -> `lint-x7k2p`; `task-...` where the image has no name."""
    base = image.rpartition("/")[2].partition("@")[0].partition(":")[0].lower()
    if base == "sha256":  # an image by its ID says nothing
        base = ""
    stem = re.sub(r"[^a-z0-9]+", "-", base).strip("-")[:40].rstrip("-") or "task"
    return f"{stem}-{''.join(secrets.choice(_SUFFIX_ALPHABET) for _ in range(5))}"


def _priority(text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    if text in PRIORITY_CLASSES:
        return {"priorityClass": text}
    try:
        return {"priority": int(text)}
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is neither {', '.join(PRIORITY_CLASSES)} nor a whole number", param_hint="--priority"
        ) from None
