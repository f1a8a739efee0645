"""`swarmtask explain`: why a task waits or runs where it does, node by node."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from swarmtask import wiring
from swarmtask.cli import tables, terminal
from swarmtask.cli.command import command
from swarmtask.cli.kindnames import name_of
from swarmtask.cli.options import ClientDataDir, Context, Kubeconfig, Namespace
from swarmtask.cli.session import Target, connect
from swarmtask.resources import units
from swarmtask.resources.kinds import SWARM_TASK
from swarmtask.resources.task import MemoryPlan
from swarmtask.scheduler.model import Binding

if TYPE_CHECKING:
    from swarmtask.controllers.explaining import ExplainedTask
    from swarmtask.scheduler.cycle import NodeVerdict


class ExplainOutput(StrEnum):
    """How the explanation is written to stdout."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


def register(app: typer.Typer, panel: str) -> None:
    command(app, "explain", panel)(explain)


async def explain(
    name: Annotated[str, typer.Argument(metavar="TASK", show_default=False)],
    output: Annotated[ExplainOutput, typer.Option("--output", "-o", help="Format of the answer.")] = ExplainOutput.TABLE,
    namespace: Namespace = None,
    data_dir: ClientDataDir = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """Show every node's verdict about a task: what each filter says, and what each score adds to the total.

    For a task that does not wait it shows what would happen if it were queued now, without what it holds.
    """
    name = name_of(SWARM_TASK, name)
    async with connect(Target(data_dir, kubeconfig, context, namespace)) as session:
        found = await wiring.explain_task(session.api, session.namespace, name, session.settings, session.clock)
    match output:
        case ExplainOutput.TABLE:
            _print_table(found)
        case ExplainOutput.JSON:
            terminal.emit(tables.to_json(_document(found)))
        case ExplainOutput.YAML:
            terminal.emit(tables.to_yaml(_document(found)))


def _print_table(found: ExplainedTask) -> None:
    outcome, spec = _outcome(found), found.task.spec
    terminal.emit(terminal.clean_line(f"Task: {'/'.join(found.task.key)} ({found.task.status.phase}, queue {spec.queue})"))
    if not found.waits:
        if found.task.status.message:
            terminal.emit(terminal.clean_line(f"Now: {found.task.status.message}"))
        terminal.emit("Assuming: that it were queued now, and that it held nothing")
    if "node" in outcome:
        gpus = outcome["gpuIndices"]
        with_gpus = f", GPU{'' if len(gpus) == 1 else 's'} {', '.join(map(str, gpus))}" if gpus else ""
        terminal.emit(terminal.clean_line(f"Outcome: starts on {outcome['node']} (engine {outcome['engine']}{with_gpus})"))
    else:
        terminal.emit(terminal.clean_line(f"Outcome: waits, {outcome['reason']}: {outcome['message']}"))
        terminal.emit(f"Position: {outcome['position']}")
    if found.explanation.level != spec.effective_priority:
        terminal.emit(f"Priority: {spec.effective_priority}, counts as {found.explanation.level} (aging, or moved to the front)")
    if found.memory is not None:
        terminal.emit(terminal.clean_line(f"Memory: {_memory(found.memory)}"))
    nodes = _ranked(found)
    if not nodes:
        return
    chosen = outcome.get("node")
    for group in _groups(nodes, terminal.width()):
        terminal.emit("")
        tables.print_lines(tables.plain_table(_rows(group, chosen)))


def _memory(plan: MemoryPlan) -> str:
    """Why so much: "1.2Gi (auto: p95 of 12 attempts + 20 %)"."""
    amount = units.humanize_memory(units.memory_bytes(plan.request))
    return f"{amount} ({'ladder' if plan.basis == 'Ladder' else 'auto'}: {plan.message})"


def _rows(nodes: Sequence[NodeVerdict], chosen: str | None) -> list[list[str]]:
    """One column per node: its name, the verdict, what each score adds, what each filter says."""
    first = nodes[0]
    rows = [
        ["NODE", *(terminal.clean_line(node.node) for node in nodes)],
        ["VERDICT", *(_verdict(node, chosen) for node in nodes)],
    ]
    if any(node.last_resort for node in nodes):
        rows.append(["LAST RESORT", *(", ".join(node.last_resort) or "-" for node in nodes)])
    rows.append(["TOTAL", *(_share(node, node.score) for node in nodes)])
    rows += [[f"  {name}", *(_share(node, node.scores[name]) for node in nodes)] for name in first.scores]
    rows.append(["REFUSED BY", *(node.refused_by or "-" for node in nodes)])
    rows += [[f"  {name}", *("yes" if node.filters[name] else "NO" for node in nodes)] for name in first.filters]
    return rows


def _groups(nodes: Sequence[NodeVerdict], width: int) -> Iterator[Sequence[NodeVerdict]]:
    """As many nodes beside each other as fit into a line, and at least one."""
    group: list[NodeVerdict] = []
    for node in nodes:
        if group and max(len(line) for line in tables.plain_table(_rows([*group, node], node.node))) > width:
            yield group
            group = []
        group.append(node)
    yield group


def _share(node: NodeVerdict, value: float) -> str:
    """A part of the total. On a last resort it is next to nothing, and only its order of magnitude can be told."""
    return f"{value:.0e}" if node.last_resort and value else f"{value:.4f}"


def _ranked(found: ExplainedTask) -> Sequence[NodeVerdict]:
    """Where it fits, best first, as the scheduler compares them; then where it does not, by name."""
    fits = [node for node in found.explanation.nodes if node.refused_by is None]
    refused = [node for node in found.explanation.nodes if node.refused_by is not None]
    return [*sorted(fits, key=lambda node: (-node.score, node.node)), *refused]


def _verdict(node: NodeVerdict, chosen: str | None) -> str:
    if node.refused_by is not None:
        return "refused"
    return "chosen" if node.node == chosen else "fits"


def _outcome(found: ExplainedTask) -> dict[str, Any]:
    outcome = found.explanation.outcome
    if isinstance(outcome, Binding):
        return {"node": outcome.node, "engine": outcome.engine, "score": outcome.score, "gpuIndices": list(outcome.gpus)}
    return {"position": outcome.position, "reason": outcome.reason, "message": outcome.message, "counts": dict(outcome.counts)}


def _document(found: ExplainedTask) -> dict[str, Any]:
    return {
        "namespace": found.task.key[0],
        "name": found.task.key[1],
        "phase": str(found.task.status.phase),
        "waits": found.waits,
        "priority": found.task.spec.effective_priority,
        "level": found.explanation.level,
        "memory": None if found.memory is None else found.memory.to_dict(),
        "outcome": _outcome(found),
        "nodes": [
            {
                "node": node.node,
                "refusedBy": node.refused_by,
                "score": node.score,
                "scores": dict(node.scores),
                "lastResort": list(node.last_resort),
                "filters": dict(node.filters),
            }
            for node in _ranked(found)
        ],
    }
