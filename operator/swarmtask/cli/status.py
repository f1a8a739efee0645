"""`swarmtask status`: the whole installation on one screen."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any

import typer
from rich.text import Text

from swarmtask.cli import tables, terminal
from swarmtask.cli.command import command
from swarmtask.cli.options import AnswerOutput, ClientDataDir, Context, Kubeconfig
from swarmtask.cli.places import may_start, scheduled_words
from swarmtask.cli.session import Session, Target, connect
from swarmtask.clock import parse_time
from swarmtask.kube import Object
from swarmtask.resources import units
from swarmtask.resources.kinds import SWARM_NODE, SWARM_QUEUE, SWARM_TASK
from swarmtask.resources.task import TERMINAL_PHASES, Phase

_WAITING_SHOWN = 5


def register(app: typer.Typer, panel: str) -> None:
    command(app, "status", panel)(status)


async def status(
    output: Annotated[AnswerOutput, typer.Option("--output", "-o", help="Format of the answer.")] = AnswerOutput.TEXT,
    data_dir: ClientDataDir = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """Show control plane, nodes, queues and tasks by phase, in every namespace."""
    async with connect(Target(data_dir, kubeconfig, context)) as session:
        version, nodes, queues, tasks = await asyncio.gather(
            session.api.version(), session.api.list(SWARM_NODE), session.api.list(SWARM_QUEUE), session.api.list(SWARM_TASK)
        )
        if output is AnswerOutput.JSON:
            terminal.emit(tables.to_json(_document(session, version, nodes.items, queues.items, tasks.items)))
            return
        lines = [*_control_plane(session, version), Text()]
        lines += [*_section("Nodes", _nodes(nodes.items)), Text()]
        lines += [*_section("Queues", _queues(queues.items, session.clock.now())), Text()]
        lines += _tasks(tasks.items, session.clock.now())
        tables.print_lines(lines)


def _control_plane(session: Session, version: Any) -> list[Text]:
    git_version = terminal.clean_line(str(version.get("gitVersion", "unknown")))
    return [
        Text("Control plane", style="bold"),
        Text.assemble("  API          ", (session.server, "cyan"), f"  ({git_version})"),
        Text(f"  kubeconfig   {session.kubeconfig}"),
    ]


def _section(title: str, body: list[Text]) -> list[Text]:
    return [Text(title, style="bold"), *(Text.assemble("  ", line) for line in body)]


def _nodes(nodes: Sequence[Object]) -> list[Text]:
    if not nodes:
        return [Text("none yet: the operator has not reported any", style="yellow")]
    rows = [["NAME", "PHASE", "TASKS", "CPU", "MEMORY", "GPU"]]
    for node in sorted(nodes, key=lambda item: str(item["metadata"]["name"])):
        allocatable = tables.value_at(node, ".status.allocatable") or {}
        requested = tables.value_at(node, ".status.requested") or {}
        phase = str(tables.value_at(node, ".status.phase") or "")
        if tables.value_at(node, ".spec.unschedulable"):
            phase += ", cordoned"
        rows.append([
            terminal.clean_line(str(node["metadata"]["name"])),
            terminal.clean_line(phase),
            str(tables.value_at(node, ".status.tasks") or 0),
            f"{requested.get('cpu', '0')} of {allocatable.get('cpu', '0')}",
            f"{_memory(requested.get('memory', '0'))} of {_memory(allocatable.get('memory', '0'))}",
            f"{requested.get('gpu', 0)} of {allocatable.get('gpu', 0)}" if allocatable.get("gpu") else "-",
        ])  # fmt: skip
    return tables.plain_table(rows)


def _memory(quantity: Any) -> str:
    try:
        return units.humanize_memory(units.memory_bytes(quantity))
    except ValueError:
        return terminal.clean_line(str(quantity))


def _queues(queues: Sequence[Object], now: datetime) -> list[Text]:
    if not queues:
        return [Text("none yet: `default` appears with the first task")]
    rows = [["NAME", "QUEUED", "RUNNING", "MAX-RUNNING", "DEAD", "OLDEST", "PER-MINUTE"]]
    several = len({str(queue["metadata"].get("namespace")) for queue in queues}) > 1
    for queue in sorted(queues, key=lambda item: (str(item["metadata"].get("namespace")), str(item["metadata"]["name"]))):
        name = str(queue["metadata"]["name"])
        oldest = tables.value_at(queue, ".status.oldestQueuedTime")
        limit = tables.value_at(queue, ".spec.maxRunning")
        rows.append([
            terminal.clean_line(f"{queue['metadata'].get('namespace')}/{name}" if several else name)
            + (" (stopped)" if tables.value_at(queue, ".spec.stopped") else ""),
            str(tables.value_at(queue, ".status.queued") or 0),
            str(tables.value_at(queue, ".status.running") or 0),
            "-" if limit is None else str(limit),
            str(tables.value_at(queue, ".status.deadLetters") or 0),
            tables.age(parse_time(str(oldest)), now) if oldest else "-",
            terminal.clean_line(str(tables.value_at(queue, ".status.throughputPerMinute") or 0)),
        ])  # fmt: skip
    return tables.plain_table(rows)


def _count(tasks: Sequence[Object]) -> Counter[str]:
    """By phase. The runs of an array are counted, the array is not."""
    return Counter(str(tables.value_at(task, ".status.phase") or Phase.PENDING.value) for task in tasks if not _is_array(task))


def _is_array(task: Object) -> bool:
    return tables.value_at(task, ".spec.completions") is not None or tables.value_at(task, ".status.array") is not None


def _tasks(tasks: Sequence[Object], now: datetime) -> list[Text]:
    lines = [Text("Tasks", style="bold")]
    if not tasks:
        return [*lines, Text("  none yet: try `swarmtask run IMAGE -- CMD`, or `swarmtask demo`")]
    counts = _count(tasks)
    order = [phase.value for phase in Phase]
    summary = Text("  ")
    for phase in sorted(counts, key=lambda item: order.index(item) if item in order else len(order)):
        summary.append(f"{counts[phase]} ")
        summary.append(terminal.clean_line(phase), style=terminal.PHASE_STYLES.get(phase, ""))
        summary.append("   ")
    summary.rstrip()
    lines.append(summary)
    unfinished = [task for task in tasks if tables.value_at(task, ".status.phase") not in TERMINAL_PHASES]
    for task in [task for task in unfinished if _is_array(task)][:_WAITING_SHOWN]:
        name, words = task["metadata"]["name"], tables.value_at(task, ".status.message") or "not begun yet"
        lines.append(Text(f"  {terminal.clean_line(f'array {name}: {words}')}", style="dim"))
    stuck = [task for task in unfinished if not _is_array(task) and _waits(task)]
    stuck.sort(key=lambda task: (tables.value_at(task, ".status.queuePosition") or float("inf"), task["metadata"]["name"]))
    for task in stuck[:_WAITING_SHOWN]:
        name = terminal.clean_line(str(task["metadata"]["name"]))
        estimated = tables.value_at(task, ".status.estimatedStartTime")
        when = f"; {may_start(parse_time(str(estimated)), now)}" if estimated else ""
        lines.append(Text(f"  {name} waits: {_waits(task)}{when}", style="dim"))
    if len(stuck) > _WAITING_SHOWN:
        lines.append(Text(f"  and {len(stuck) - _WAITING_SHOWN} more wait", style="dim"))
    return lines


def _waits(task: Object) -> str:
    """Why a queued task does not start, in the operator's words; empty when it does not wait."""
    if tables.value_at(task, ".status.phase") not in (Phase.QUEUED, Phase.PENDING):
        return ""
    if tables.value_at(task, ".spec.suspend"):
        return ""  # a wish, not a wait: the count of Pending tells it
    return terminal.clean_line(scheduled_words(task))


def _document(
    session: Session, version: Any, nodes: Sequence[Object], queues: Sequence[Object], tasks: Sequence[Object]
) -> dict[str, Any]:
    return {
        "api": {"url": session.server, "version": version.get("gitVersion"), "kubeconfig": str(session.kubeconfig)},
        "nodes": [{"name": node["metadata"]["name"], **(node.get("status") or {})} for node in nodes],
        "queues": [
            {"name": queue["metadata"]["name"], "namespace": queue["metadata"].get("namespace"), **(queue.get("status") or {})}
            for queue in queues
        ],
        "tasks": {phase.value: _count(tasks)[phase.value] for phase in Phase},
    }
