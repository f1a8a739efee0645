"""`swarmtask demo`: start a private control plane, run real work on it, show it, judge it, and leave the machine as it was.

Exit code 0 means: everything came out as it must, the task that fails at first included.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import secrets
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from swarmtask import wiring
from swarmtask.cli import dockerhost, tables, terminal
from swarmtask.cli.changes import changes, watching
from swarmtask.cli.command import command
from swarmtask.cli.controlplane import ControlPlane
from swarmtask.cli.demo import image
from swarmtask.cli.demo.progress import Progress
from swarmtask.cli.demo.workload import (
    SCRIPTS,
    SECRET_KEY,
    SECRET_NAME,
    SIGNING_TASK,
    TASKS,
    Place,
    find_sources,
    manifests,
)
from swarmtask.cli.exits import ExitCode
from swarmtask.cli.logs import TaskLogs
from swarmtask.cli.options import EngineChoice
from swarmtask.cli.session import Session
from swarmtask.clock import SystemClock
from swarmtask.errors import AlreadyExists, ConfigurationError, EngineUnavailable, Expired, NotFound, SwarmTaskError, Timeout
from swarmtask.kube import Object
from swarmtask.resources.kinds import SECRET, SWARM_NODE, SWARM_TASK
from swarmtask.resources.task import Phase, SwarmTask
from swarmtask.settings import ApiServerSettings, Settings

NAMESPACE = "default"
LONGEST_S = 180.0
CLEARING_S = 20.0


def register(app: typer.Typer, panel: str) -> None:
    command(app, "demo", panel)(demo)


async def demo(
    engine: Annotated[EngineChoice, typer.Option("--engine", help="What runs the work.")] = EngineChoice.AUTO,
) -> None:
    """Show SwarmTask at work: analyse its own sources on a control plane that lives as long as the demo.

    Uses Docker Swarm where it can, local processes otherwise. Needs no image registry, and leaves nothing behind.
    """
    with tempfile.TemporaryDirectory(prefix="swarmtask-demo-") as folder:
        settings = Settings(data_dir=Path(folder), apiserver=ApiServerSettings(host="127.0.0.1", port=0), log_level="info")
        with _cancelled_by_sigterm():
            async with _place(settings, engine) as place:
                good = await _show(settings, place)
    if not good:
        raise typer.Exit(ExitCode.FAILED)


async def _show(settings: Settings, place: Place) -> bool:
    plane = ControlPlane(settings, place.engine, SystemClock())
    where = "Docker Swarm" if place.engine == "swarm" else "local processes"
    terminal.say(f"Starting a control plane on {where} ...", style="dim")
    async with plane.running() as keeper:
        terminal.say(f"Ready at {plane.url}. Submitting {len(TASKS)} tasks that analyse {find_sources()}:", style="dim")
        api = await wiring.kube_client(plane.kubeconfig)
        session = Session(api, settings, SystemClock(), plane.kubeconfig, NAMESPACE, plane.url)
        work = asyncio.create_task(_work(session, place))
        try:
            await asyncio.wait([work, keeper], return_when=asyncio.FIRST_COMPLETED)
            if keeper.done():
                await keeper
            return await work
        finally:
            # Interrupted: the work still removes its tasks, and needs the client for that.
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            await api.aclose()


async def _work(session: Session, place: Place) -> bool:
    begun = session.clock.monotonic()
    try:
        if place.node:
            place = await _with_node_name(session, place)
        for manifest in manifests(place):
            await session.api.create(SWARM_TASK, manifest, NAMESPACE)
        try:
            async with asyncio.timeout(LONGEST_S):
                ended = await _follow(session)
        except TimeoutError:
            raise Timeout(f"the demo did not end within {LONGEST_S:.0f} s") from None
        outputs = await _outputs(session, ended)
    finally:
        await _clear_in_time(session)
    _print_results(ended, outputs)
    return _judge(ended, outputs, session.clock.monotonic() - begun)


async def _with_node_name(session: Session, place: Place) -> Place:
    """The SwarmNode that the engine knows by this ID, once the operator has reported it."""
    async with asyncio.timeout(30):
        async with contextlib.aclosing(changes(session, SWARM_NODE, None)) as events:
            async for event in events:
                engines = tables.value_at(event.object, ".status.engines") or []
                if any(item.get("id") == place.node for item in engines):
                    return dataclasses.replace(place, node=str(event.object["metadata"]["name"]))
    raise EngineUnavailable("the operator does not report this machine as a node")


async def _follow(session: Session) -> Mapping[str, SwarmTask]:
    """Show every change until all tasks have ended; create the missing Secret when its task has failed for the first time."""
    tasks: dict[str, SwarmTask] = {}
    helped = False
    with Progress(session.clock) as progress:
        async with contextlib.aclosing(changes(session, SWARM_TASK, NAMESPACE)) as events:
            async for event in events:
                task = SwarmTask.model_validate(event.object)
                tasks[task.metadata.name] = task
                progress.update(task)
                if task.metadata.name == SIGNING_TASK and task.status.failures and not helped:
                    helped = True
                    await _create_secret(session)
                    progress.note(f"{SIGNING_TASK} lacked its Secret; it exists now, and the next attempt will find it.")
                if len(tasks) == len(TASKS) and all(item.finished for item in tasks.values()):
                    return tasks
    raise Timeout("the watch ended before the tasks did")


async def _create_secret(session: Session) -> None:
    value = base64.b64encode(secrets.token_hex(16).encode()).decode()
    secret: Object = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": SECRET_NAME}, "data": {SECRET_KEY: value}}
    with contextlib.suppress(AlreadyExists):
        await session.api.create(SECRET, secret, NAMESPACE)


async def _outputs(session: Session, ended: Mapping[str, SwarmTask]) -> Mapping[str, list[str]]:
    """The output of the last attempt of every task."""
    outputs = {}
    async with TaskLogs(session) as reader:
        for name, task in ended.items():
            attempt = task.status.current
            chunks = [chunk async for chunk in reader.stream(name, attempt, follow=False)] if attempt else []
            outputs[name] = b"".join(chunks).decode("utf-8", "replace").splitlines()
    return outputs


async def _clear_in_time(session: Session) -> None:
    try:
        async with asyncio.timeout(CLEARING_S):
            await _clear(session)
    except (SwarmTaskError, TimeoutError) as error:
        terminal.warn(f"the demo's tasks could not be removed: {error or 'it took too long'}")


async def _clear(session: Session) -> None:
    """Delete the tasks and wait until the operator has removed what was theirs from the engine."""
    for task in (await session.api.list(SWARM_TASK, NAMESPACE)).items:
        with contextlib.suppress(NotFound):
            await session.api.delete(SWARM_TASK, task["metadata"]["name"], NAMESPACE)
    while (found := await session.api.list(SWARM_TASK, NAMESPACE)).items:
        left = {task["metadata"]["name"] for task in found.items}
        with contextlib.suppress(Expired):
            async with watching(session, SWARM_TASK, NAMESPACE, found.resource_version) as events:
                async for event in events:
                    if event.type == "DELETED":
                        left.discard(event.object["metadata"]["name"])
                    if not left:
                        break


def _print_results(ended: Mapping[str, SwarmTask], outputs: Mapping[str, list[str]]) -> None:
    console = terminal.stdout()
    for wish in TASKS:
        console.print(Text(f"\n{wish.name}", style="bold"))
        for line in outputs.get(wish.name, []):
            console.print(Text(f"  {terminal.clean(line)}"))
    rows = [["TASK", "PRIORITY", "PHASE", "ATTEMPTS", "NODE", "ENGINE", "SECONDS"]]
    for wish in TASKS:
        status = ended[wish.name].status
        attempt = status.current
        rows.append([
            wish.name, wish.priority, str(status.phase), str(status.attempt), status.node_name or (attempt.node if attempt else ""),
            status.engine or (attempt.engine if attempt else ""), _seconds(ended[wish.name]),
        ])  # fmt: skip
    console.print()
    tables.print_lines(tables.plain_table(rows))


def _seconds(task: SwarmTask) -> str:
    created, completed = task.metadata.creation_timestamp, task.status.completion_time
    return f"{(completed - created).total_seconds():.0f}" if created and completed else ""


def _judge(ended: Mapping[str, SwarmTask], outputs: Mapping[str, list[str]], elapsed_s: float) -> bool:
    """Say whether everything came out as it must."""
    wrong = []
    for wish in TASKS:
        task = ended[wish.name]
        if task.status.phase is not Phase.SUCCEEDED:
            wrong.append(f"{wish.name} is {task.status.phase}: {task.status.message or task.status.reason or 'no reason given'}")
        elif not outputs.get(wish.name):
            wrong.append(f"{wish.name} has written nothing")
        elif wish.fails_first and task.status.attempt < 2:
            wrong.append(f"{wish.name} should have failed once")
        elif not wish.fails_first and task.status.attempt != 1:
            wrong.append(f"{wish.name} needed {task.status.attempt} attempts instead of 1")
    terminal.say()
    for line in wrong:
        terminal.complain(line)
    if not wrong:
        terminal.say(f"All {len(TASKS)} tasks succeeded in {elapsed_s:.1f} s, one of them after a retry.", style="green")
    return not wrong


@contextlib.asynccontextmanager
async def _place(settings: Settings, choice: EngineChoice) -> AsyncIterator[Place]:
    """The best place that this machine has; what was made for it (image, swarm) is taken away at the end."""
    if choice is not EngineChoice.LOCAL:
        try:
            async with _swarm_place(settings.swarm.docker_host) as place:
                yield place
                return
        except _NoSwarm as error:
            if choice is EngineChoice.SWARM:
                raise EngineUnavailable(str(error)) from error
            terminal.say(f"Not on Docker Swarm: {error}.", style="dim")
    yield Place("local", "local/python", sys.executable, str(SCRIPTS), str(find_sources()))


class _NoSwarm(Exception):
    """Swarm cannot be used for the demo on this machine."""


@contextlib.asynccontextmanager
async def _swarm_place(docker_host: str | None) -> AsyncIterator[Place]:
    async with contextlib.AsyncExitStack() as stack:
        try:
            state = await asyncio.to_thread(dockerhost.inspect, docker_host)
            dockerhost.require_usable(state)
            terminal.say("Making an image from this machine's Python (no registry is needed) ...", style="dim")
            identifier = await asyncio.to_thread(image.build, docker_host, find_sources())
            stack.push_async_callback(asyncio.to_thread, image.remove, docker_host, identifier)
            await asyncio.to_thread(image.probe, docker_host, identifier)
            if state.swarm != "active":
                await asyncio.to_thread(dockerhost.make_swarm, docker_host, "127.0.0.1")
                stack.push_async_callback(_leave, docker_host)
                terminal.say("Docker was not in a swarm: made one for the demo; it is left again at the end.", style="dim")
                state = await asyncio.to_thread(dockerhost.inspect, docker_host)
        except (EngineUnavailable, ConfigurationError) as error:
            raise _NoSwarm(error.message) from error
        yield Place(
            "swarm", identifier, image.python_in_image(), image.SCRIPTS_IN_IMAGE, image.SOURCES_IN_IMAGE, node=state.node_id
        )  # fmt: skip


async def _leave(docker_host: str | None) -> None:
    if not await asyncio.to_thread(dockerhost.leave_swarm, docker_host):
        terminal.warn("the swarm made for the demo is in use by now, so it stays; `docker swarm leave --force` ends it")


@contextlib.contextmanager
def _cancelled_by_sigterm() -> Iterator[None]:
    """SIGTERM ends the demo as Ctrl-C does: everything that was started is stopped on the way out."""
    task = asyncio.current_task()
    loop = asyncio.get_running_loop()
    assert task is not None  # noqa: S101 - called from a coroutine
    loop.add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        yield
    except asyncio.CancelledError:
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    finally:
        loop.remove_signal_handler(signal.SIGTERM)
