"""`swarmtask cordon`, `uncordon`, `drain` and `undrain`: what a person wants of a node. The operator does the rest.

All of them set fields of the SwarmNode's spec, as `kubectl patch` would; `drain --wait` then watches until the node says that it
is empty.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from typing import Annotated, Any

import typer

from swarmtask.cli import terminal
from swarmtask.cli.changes import changes
from swarmtask.cli.command import command
from swarmtask.cli.exits import ExitCode, combined, exit_code_of
from swarmtask.cli.kindnames import name_of
from swarmtask.cli.options import ClientDataDir, Context, Kubeconfig
from swarmtask.cli.session import Session, Target, connect
from swarmtask.cli.tables import reference, value_at
from swarmtask.errors import Conflict, NotFound, SwarmTaskError
from swarmtask.kube import Object
from swarmtask.resources.kinds import SWARM_NODE

Names = Annotated[list[str], typer.Argument(metavar="NODE", show_default=False)]
Wish = Mapping[str, bool]
"""Fields of the spec, and what they are to be."""


def register(app: typer.Typer, panel: str) -> None:
    command(app, "cordon", panel)(cordon)
    command(app, "uncordon", panel)(uncordon)
    command(app, "drain", panel)(drain)
    command(app, "undrain", panel)(undrain)


async def cordon(names: Names, data_dir: ClientDataDir = None, kubeconfig: Kubeconfig = None, context: Context = None) -> None:
    """Start nothing more on these nodes. What runs there goes on."""
    await _wish(Target(data_dir, kubeconfig, context), names, {"unschedulable": True}, "cordoned")


async def uncordon(names: Names, data_dir: ClientDataDir = None, kubeconfig: Kubeconfig = None, context: Context = None) -> None:
    """Let tasks start on these nodes again, whether they were cordoned or drained."""
    await _wish(Target(data_dir, kubeconfig, context), names, {"unschedulable": False, "drain": False}, "uncordoned")


async def undrain(names: Names, data_dir: ClientDataDir = None, kubeconfig: Kubeconfig = None, context: Context = None) -> None:
    """Take back a drain. A node that was cordoned besides stays so."""
    await _wish(Target(data_dir, kubeconfig, context), names, {"drain": False}, "undrained")


async def drain(
    names: Names,
    wait: Annotated[bool, typer.Option("--wait", help="Stay until nothing runs there any more.")] = False,
    timeout: Annotated[
        float | None,
        typer.Option("--timeout", metavar="SECONDS", min=0, help="With --wait: give up after this.", show_default=False),
    ] = None,
    data_dir: ClientDataDir = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """Empty these nodes: nothing more starts there, and what runs is stopped with its grace period and queued again.

    Tasks keep their place in the queue and pay nothing for it. The nodes stay drained, also when the wait was cut short:
    `swarmtask undrain` opens them again.
    """
    if timeout is not None and not wait:
        raise typer.BadParameter("goes with --wait", param_hint="--timeout")
    target = Target(data_dir, kubeconfig, context)
    if not wait:
        await _wish(target, names, {"drain": True}, "draining")
        return
    codes: list[ExitCode] = []
    async with connect(target) as session:
        nodes = await _set_all(session, names, {"drain": True}, "draining", codes)
        waits = [_Wait(session, node) for node in nodes]
        try:
            async with asyncio.timeout(timeout):
                codes += await asyncio.gather(*(one.until_empty() for one in waits))
        except TimeoutError:
            for one in waits:
                one.complain_if_left(f" after {timeout:g}s")
            raise typer.Exit(ExitCode.FAILED) from None
        except asyncio.CancelledError:  # Ctrl-C
            for one in waits:
                one.complain_if_left("")
            raise
    _exit(codes)


class _Wait:
    """Waits until a node that was drained says that it is empty.

    A status that the operator wrote before it had seen the drain does not count.
    """

    def __init__(self, session: Session, node: Object) -> None:
        self._session, self._name = session, str(node["metadata"]["name"])
        self._generation = int(node["metadata"].get("generation") or 0)
        self._stands = "the operator has not seen the drain yet"
        self._done = False

    async def until_empty(self) -> ExitCode:
        """The exit code for this node; says how it ended."""
        try:
            node = await self._watch()
        except SwarmTaskError as error:
            self._done = True
            terminal.complain(error)
            return exit_code_of(error)
        self._done = True
        terminal.emit(f"{reference(SWARM_NODE, node)} drained")
        return ExitCode.OK

    async def _watch(self) -> Object:
        async with aclosing(changes(self._session, SWARM_NODE, None, name=self._name)) as events:
            async for event in events:
                if event.type == "DELETED":
                    break
                if not value_at(event.object, ".spec.drain"):
                    raise Conflict(f"node {self._name} was undrained meanwhile, so it does not become empty")
                condition = _drained(event.object, self._generation)
                if condition is None:
                    continue
                if condition.get("status") == "True":
                    return event.object
                if self._stands != (words := str(condition.get("message") or "not empty yet")):
                    self._stands = words
                    terminal.say(f"{self._name}: {terminal.clean_line(words)}.", style="dim")
        raise NotFound(f"node {self._name} was deleted")

    def complain_if_left(self, when: str) -> None:
        """What stays, for somebody who does not wait any longer."""
        if not self._done:
            terminal.complain(
                f"node {self._name} is not empty{when}: {terminal.clean_line(self._stands)}. "
                f"It stays drained: `swarmtask undrain {self._name}` opens it again."
            )


def _drained(node: Object, generation: int) -> dict[str, Any] | None:
    """The condition Drained, where it is about this generation of the spec or a later one."""
    for condition in value_at(node, ".status.conditions") or []:
        if condition.get("type") == "Drained" and int(condition.get("observedGeneration") or 0) >= generation:
            return dict(condition)
    return None


async def _wish(target: Target, names: Sequence[str], wish: Wish, word: str) -> None:
    codes: list[ExitCode] = []
    async with connect(target) as session:
        await _set_all(session, names, wish, word, codes)
    _exit(codes)


async def _set_all(session: Session, names: Sequence[str], wish: Wish, word: str, codes: list[ExitCode]) -> list[Object]:
    """Make it so on every node, one after the other, and say it. Returns the nodes where that worked; `codes` gets the others'."""
    done = []
    for given in dict.fromkeys(names):
        try:
            changed, node = await _set(session, name_of(SWARM_NODE, given), wish)
        except SwarmTaskError as error:
            terminal.complain(error)
            codes.append(exit_code_of(error))
            continue
        terminal.emit(f"{reference(SWARM_NODE, node)} {word if changed else f'was {word} already'}")
        done.append(node)
    return done


async def _set(session: Session, name: str, wish: Wish) -> tuple[bool, Object]:
    """Whether something had to be changed, and the node as it is then.

    Raises:
        NotFound: there is no such node.
    """
    try:
        node = await session.api.get(SWARM_NODE, name)
        spec = node.get("spec") or {}
        change = {field: value for field, value in wish.items() if bool(spec.get(field)) != value}
        return bool(change), await session.api.patch(SWARM_NODE, name, {"spec": change}) if change else node
    except NotFound:
        raise NotFound(f"there is no node {name}: `swarmtask get nodes` shows all there are") from None


def _exit(codes: Sequence[ExitCode]) -> None:
    code = combined([code for code in codes if code is not ExitCode.OK])
    if code is not ExitCode.OK:
        raise typer.Exit(code)
