"""`swarmtask get`: list, show and watch tasks, nodes and queues."""

from __future__ import annotations

from contextlib import aclosing
from datetime import datetime
from typing import Annotated

import typer

from swarmtask.cli import tables, terminal
from swarmtask.cli.changes import changes
from swarmtask.cli.command import command
from swarmtask.cli.kindnames import kind_of_word, words
from swarmtask.cli.options import ClientDataDir, Context, Kubeconfig, Namespace, Output, Selector
from swarmtask.cli.session import Session, Target, connect
from swarmtask.clock import Clock
from swarmtask.kube import WatchEvent
from swarmtask.resources.kinds import Kind


def register(app: typer.Typer, panel: str) -> None:
    command(app, "get", panel)(get)


async def get(
    resource: Annotated[str, typer.Argument(metavar="tasks|nodes|queues", autocompletion=words, show_default=False)] = "tasks",
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME", show_default=False)] = None,
    output: Annotated[Output, typer.Option("--output", "-o", help="Format of the answer.")] = Output.TABLE,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Go on and show every change.")] = False,
    selector: Selector = "",
    all_namespaces: Annotated[bool, typer.Option("--all-namespaces", "-A", help="Of every namespace.")] = False,
    namespace: Namespace = None,
    data_dir: ClientDataDir = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """Show tasks, nodes or queues.

    The columns are those of `kubectl get`; -o wide shows more of them. A resource and a name may also be written as tasks/NAME.
    """
    wanted = list(names or [])
    if "/" in resource:
        resource, _, name = resource.partition("/")
        wanted.insert(0, name)
    kind = kind_of_word(resource)
    if wanted and selector:
        raise typer.BadParameter("a name and a selector exclude each other", param_hint="--selector")
    if wanted and all_namespaces and kind.namespaced:
        raise typer.BadParameter("a name needs one namespace: use -n NAME instead of -A", param_hint="--all-namespaces")
    if watch and len(wanted) > 1:
        raise typer.BadParameter("only one object, or all of them, can be watched", param_hint="--watch")
    async with connect(Target(data_dir, kubeconfig, context, namespace)) as session:
        scope = session.namespace if kind.namespaced and not all_namespaces else None
        if watch:
            await _watch(session, kind, scope, wanted[0] if wanted else "", selector, output, all_namespaces)
        elif wanted:
            objects = [await session.api.get(kind, name, scope) for name in wanted]
            tables.print_objects(kind, objects, output, now=session.clock.now(), single=len(wanted) == 1)
        else:
            await _list(session, kind, scope, selector, output, all_namespaces)


async def _list(session: Session, kind: Kind, scope: str | None, selector: str, output: Output, namespaces: bool) -> None:
    found = await session.api.list(kind, scope, label_selector=selector)
    if not found.items and output in (Output.TABLE, Output.WIDE, Output.NAME):
        where = f" in namespace {scope}" if scope else ""
        terminal.say(f"No {kind.plural} found{where}.")
        return
    tables.print_objects(kind, found.items, output, now=session.clock.now(), namespaces=namespaces)


async def _watch(
    session: Session, kind: Kind, scope: str | None, name: str, selector: str, output: Output, namespaces: bool
) -> None:
    printer = _EventPrinter(kind, output, session.clock, namespaces=namespaces)
    if name:
        await session.api.get(kind, name, scope)  # says NotFound at once instead of watching for ever
    async with aclosing(changes(session, kind, scope, name=name, selector=selector)) as events:
        async for event in events:
            printer.show(event)


class _EventPrinter:
    """One line, or one document, per change."""

    def __init__(self, kind: Kind, output: Output, clock: Clock, *, namespaces: bool) -> None:
        self._kind = kind
        self._output = output
        self._clock = clock
        self._documents = 0
        self._table = tables.Table(kind, wide=output is Output.WIDE, namespaces=namespaces, now=clock.now())

    def show(self, event: WatchEvent) -> None:
        now: datetime = self._clock.now()
        deleted = event.type == "DELETED"
        match self._output:
            case Output.TABLE | Output.WIDE:
                tables.print_lines(self._table.rows([event.object], now, note="(deleted)" if deleted else ""))
            case Output.NAME:
                terminal.emit(tables.reference(self._kind, event.object))
            case Output.JSON:
                terminal.emit(tables.to_json(tables.tidy(event.object)))
            case Output.YAML:
                terminal.emit(("---\n" if self._documents else "") + tables.to_yaml(tables.tidy(event.object)))
        self._documents += 1
