"""`swarmtask explain`: why a task waits or runs where it does, node by node."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from swarmtask import wiring
from swarmtask.cli import tables, terminal
from swarmtask.cli.command import command
from swarmtask.cli.options import ClientDataDir, Context, Kubeconfig, Namespace
from swarmtask.cli.session import Target, connect
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
    async with connect(Target(data_dir, kubeconfig, context, namespace)) as session:
        found = await wiring.explain_task(session.api, session.namespace, name, session.clock)
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
        terminal.emit("Assuming: that it were queued now, and that it held nothing")
    if "node" in outcome:
        terminal.emit(terminal.clean_line(f"Outcome: starts on {outcome['node']} (engine {outcome['engine']})"))
    else:
        terminal.emit(terminal.clean_line(f"Outcome: waits, {outcome['reason']}: {outcome['message']}"))
        terminal.emit(f"Position: {outcome['position']}")
    if found.explanation.level != spec.effective_priority:
        terminal.emit(f"Priority: {spec.effective_priority}, counts as {found.explanation.level} (aging, or moved to the front)")
    nodes = _ranked(found)
    if not nodes:
        return
    scores, filters = list(nodes[0].scores), list(nodes[0].filters)
    rows = [["NODE", "VERDICT", "TOTAL", *map(str.upper, scores), *map(str.upper, filters)]]
    for node in nodes:
        rows.append([
            terminal.clean_line(node.node),
            _verdict(node, outcome.get("node")),
            f"{node.score:.4f}",
            *(f"{node.scores[score]:.4f}" for score in scores),
            *("yes" if node.filters[name] else "NO" for name in filters),
        ])  # fmt: skip
    terminal.emit("")
    tables.print_lines(tables.plain_table(rows))


def _ranked(found: ExplainedTask) -> Sequence[NodeVerdict]:
    """Where it fits, best first, as the scheduler compares them; then where it does not, by name."""
    fits = [node for node in found.explanation.nodes if node.refused_by is None]
    refused = [node for node in found.explanation.nodes if node.refused_by is not None]
    return [*sorted(fits, key=lambda node: (-node.score, node.node)), *refused]


def _verdict(node: NodeVerdict, chosen: str | None) -> str:
    if node.refused_by is not None:
        return f"refused by {node.refused_by}"
    return "chosen" if node.node == chosen else "fits"


def _outcome(found: ExplainedTask) -> dict[str, Any]:
    outcome = found.explanation.outcome
    if isinstance(outcome, Binding):
        return {"node": outcome.node, "engine": outcome.engine, "score": outcome.score}
    return {"position": outcome.position, "reason": outcome.reason, "message": outcome.message, "counts": dict(outcome.counts)}


def _document(found: ExplainedTask) -> dict[str, Any]:
    return {
        "namespace": found.task.key[0],
        "name": found.task.key[1],
        "phase": str(found.task.status.phase),
        "waits": found.waits,
        "priority": found.task.spec.effective_priority,
        "level": found.explanation.level,
        "outcome": _outcome(found),
        "nodes": [
            {
                "node": node.node,
                "refusedBy": node.refused_by,
                "score": node.score,
                "scores": dict(node.scores),
                "filters": dict(node.filters),
            }
            for node in _ranked(found)
        ],
    }
