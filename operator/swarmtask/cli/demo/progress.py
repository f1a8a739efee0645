"""What a person sees while the demo runs: a live table on a terminal, one line per change elsewhere. Always stderr.

Called by `demo.command` with every change of a task. Knows nothing of the API.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

from rich.live import Live
from rich.table import Table
from rich.text import Text

from swarmtask.cli import terminal
from swarmtask.cli.demo.workload import TASKS
from swarmtask.clock import Clock
from swarmtask.resources.task import SwarmTask


class Progress:
    """The state of all tasks, shown as it changes."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._begun = clock.monotonic()
        self._tasks: dict[str, SwarmTask] = {}
        console = terminal.stderr()
        self._live = Live(console=console, refresh_per_second=8, transient=True) if console.is_terminal else None

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, task: SwarmTask) -> None:
        """Show the new state of one task; a state that looks the same is not shown twice."""
        name = task.metadata.name
        before = self._tasks.get(name)
        self._tasks[name] = task
        if self._live is not None:
            self._live.update(progress_table(self._tasks))
        elif before is None or _story(before) != _story(task):
            elapsed_s = self._clock.monotonic() - self._begun
            terminal.say(f"  {elapsed_s:5.1f} s  {name:<18} {_story(task)}")

    def note(self, text: str) -> None:
        """Say something without disturbing the live table."""
        if self._live is not None:
            self._live.console.print(Text(f"  {terminal.clean(text)}", style="dim"))
        else:
            terminal.say(f"  {text}", style="dim")


def _story(task: SwarmTask) -> str:
    """`Running (attempt 2 on desk)`."""
    status = task.status
    attempt = f" (attempt {status.attempt} on {status.node_name})" if status.attempt and status.node_name else ""
    reason = f": {status.reason}" if status.phase in ("Backoff", "Failed", "Expired") and status.reason else ""
    return f"{status.phase}{reason}{attempt}"


def progress_table(tasks: Mapping[str, SwarmTask]) -> Table:
    """All tasks of the demo, in the order of submission."""
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    for heading in ("TASK", "PRIORITY", "CPU", "MEMORY", "PHASE", "ATTEMPT", "NODE"):
        table.add_column(heading, justify="right" if heading in ("CPU", "MEMORY", "ATTEMPT") else "left")
    for wish in TASKS:
        task = tasks.get(wish.name)
        phase = str(task.status.phase) if task else "Pending"
        table.add_row(
            wish.name, wish.priority, wish.cpu, wish.memory, Text(phase, style=terminal.PHASE_STYLES.get(phase, "")),
            str(task.status.attempt) if task and task.status.attempt else "", (task.status.node_name or "") if task else "",
        )  # fmt: skip
    return table
