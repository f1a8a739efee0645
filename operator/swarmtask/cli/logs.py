"""`swarmtask logs`: the output of a task's attempts, read from the API where nodes send it, else from the engine that runs them."""

from __future__ import annotations

import codecs
import os
import re
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from swarmtask import wiring
from swarmtask.cli import terminal
from swarmtask.cli.changes import changes
from swarmtask.cli.command import command
from swarmtask.cli.kindnames import name_of
from swarmtask.cli.options import ClientDataDir, Context, Kubeconfig, Namespace
from swarmtask.cli.session import Session, Target, connect
from swarmtask.clock import format_micro_time, parse_time
from swarmtask.engines.base import Engine
from swarmtask.errors import Invalid, NotFound, WorkloadNotFound
from swarmtask.lifecycle.intervals import parse
from swarmtask.lifecycle.members import array_label, member_name
from swarmtask.resources.kinds import SWARM_TASK
from swarmtask.resources.task import LABEL_ARRAY, MAX_ATTEMPT_RECORDS, ArrayStatus, Attempt, AttemptState, SwarmTask

LOCAL = "local"
"""Its attempts are no containers: no agent sends their output."""
WAIT_S = 3
_AGO = re.compile(r"([0-9]{1,9})([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_NOT_BEGUN = frozenset({AttemptState.STARTING})


def register(app: typer.Typer, panel: str) -> None:
    command(app, "logs", panel)(logs)


async def logs(
    task: Annotated[str, typer.Argument(metavar="TASK", show_default=False)],
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Wait until it runs, go on until it has ended, retries included.")
    ] = False,
    attempt: Annotated[
        int | None,
        typer.Option("--attempt", metavar="N", min=1, help="Of this attempt only. (default: the newest)", show_default=False),
    ] = None,
    index: Annotated[
        int | None, typer.Option("--index", metavar="N", min=0, help="Of this run of an array.", show_default=False)
    ] = None,
    tail: Annotated[
        int | None, typer.Option("--tail", metavar="N", min=0, help="Only the last N lines.", show_default=False)
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            "--since",
            metavar="TIME",
            help="Only lines from then on: 90s, 10m, 2h, 1d ago, or a time as RFC 3339.",
            show_default=False,
        ),
    ] = None,
    timestamps: Annotated[bool, typer.Option("--timestamps", help="Put the time before each line.")] = False,
    namespace: Namespace = None,
    data_dir: ClientDataDir = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """Show what a task has written, stdout and stderr together. Works after its node has gone, where nodes run the node agent."""
    async with connect(Target(data_dir, kubeconfig, context, namespace)) as session, TaskLogs(session) as reader:
        shown = Shown(tail, None if since is None else _moment(since, session.clock.now()), timestamps)
        name = await _meant(session, name_of(SWARM_TASK, task), index)
        if follow:
            await follow_task(session, reader, name, attempt=attempt, shown=shown)
        else:
            await _show(session, reader, name, attempt=attempt, shown=shown)


async def _meant(session: Session, name: str, index: int | None) -> str:
    """The task whose output is meant: this one, or one run of this array.

    Raises:
        NotFound: there is no such run (any more); says what became of it. Invalid: only one of array and index is given.
    """
    task = SwarmTask.model_validate(await session.api.get(SWARM_TASK, name, session.namespace))
    if not task.is_array:
        if index is not None:
            raise Invalid(f"{name} is no array: leave --index out")
        return name
    if index is None:
        label = f"{LABEL_ARRAY}={array_label(name)}"
        raise Invalid(f"{name} is an array: give --index N, or list its runs with `swarmtask get st -l {label}`")
    run = member_name(name, index)
    try:
        stored = SwarmTask.model_validate(await session.api.get(SWARM_TASK, run, session.namespace))
        owner = stored.array_owner
    except NotFound:
        owner = None
    if owner is None or owner.uid != task.metadata.uid:
        raise NotFound(f"there is no output of index {index} of {name}: {_without_task(task, index)}")
    return run


def _without_task(array: SwarmTask, index: int) -> str:
    """Why an index has no task."""
    status, total = array.status.array or ArrayStatus(), array.spec.completions or 0
    if index in parse(status.completed_indexes):
        return "it succeeded; only the newest operator.keep_array_members runs that succeeded stay with their output"
    if index in parse(status.failed_indexes):
        why = next((text for text in status.failures if text.startswith(f"{index}: ")), "")
        return f"it did not succeed ({why.partition(': ')[2] or 'only the first ten that failed stay with their output'})"
    if index >= total:
        return f"its indices are 0 to {total - 1}"
    return "it was not run" if array.finished else "it has not been begun yet"


@dataclass(frozen=True, slots=True)
class Shown:
    """Which part of an output is shown, and how. `tail`: so many lines of its end; `since`: from then on."""

    tail: int | None = None
    since: datetime | None = None
    timestamps: bool = False


ALL = Shown()


class TaskLogs:
    """Reads output from the API, which has what node agents sent, also when the node has gone; else from whichever engine ran the
    attempt. Engines are connected when first needed."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._engines: dict[str, Engine] = {}

    async def __aenter__(self) -> TaskLogs:
        return self

    async def __aexit__(self, *_: object) -> None:
        for engine in self._engines.values():
            await engine.aclose()

    async def stream(self, name: str, attempt: Attempt, *, follow: bool, shown: Shown = ALL) -> AsyncGenerator[bytes]:
        """The output of one attempt of a task. Raises WorkloadNotFound: nobody has it (any more)."""
        try:
            async with aclosing(self._from_api(name, attempt, follow=follow, shown=shown)) as chunks:
                async for chunk in chunks:
                    yield chunk
        except NotFound:
            async with aclosing(self._from_engine(attempt, follow=follow, shown=shown)) as chunks:
                async for chunk in chunks:
                    yield chunk

    async def _from_api(self, name: str, attempt: Attempt, *, follow: bool, shown: Shown) -> AsyncGenerator[bytes]:
        """Raises NotFound: it has nothing; before anything was given."""
        params = {"attempt": str(attempt.number)}
        if follow:
            params["follow"] = "true"
        if shown.tail is not None:
            params["tailLines"] = str(shown.tail)
        if shown.since is not None:
            params["sinceTime"] = format_micro_time(shown.since)
        if shown.timestamps:
            params["timestamps"] = "true"
        if attempt.boot_id is not None and attempt.engine != LOCAL:
            params["waitSeconds"] = str(WAIT_S)  # the node has an agent: what it has to say may be on its way
        async with aclosing(self._session.api.text(SWARM_TASK, name, self._session.namespace, "log", params)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def _from_engine(self, attempt: Attempt, *, follow: bool, shown: Shown) -> AsyncGenerator[bytes]:
        engine = self._engines.get(attempt.engine)
        if engine is None:
            cluster = await self._session.cluster_id()
            engine = wiring.engine(attempt.engine, self._session.settings, cluster, self._session.clock)
            await engine.start()
            self._engines[attempt.engine] = engine
        stamped = shown.timestamps or shown.since is not None
        chunks = engine.logs(attempt.id, follow=follow, tail=shown.tail, timestamps=stamped)
        if shown.since is not None:
            chunks = _from(chunks, shown.since, timestamps=shown.timestamps)
        async for chunk in chunks:
            yield chunk


async def _from(chunks: AsyncIterator[bytes], since: datetime, *, timestamps: bool) -> AsyncIterator[bytes]:
    """The lines that were written from then on, of lines with their time in front."""
    rest, begun = b"", False
    async for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        kept = []
        for line in lines:
            stamp, _, text = line.partition(b" ")
            try:
                begun = parse_time(stamp.decode("ascii", "replace")) >= since
            except ValueError:
                text = line  # a note, or the rest of a line: shown with the line before it
            if begun:
                kept.append((line if timestamps else text) + b"\n")
        if kept:
            yield b"".join(kept)
    if rest and begun:
        yield rest


def _moment(text: str, now: datetime) -> datetime:
    """When `--since` means. Raises typer.BadParameter."""
    if match := _AGO.fullmatch(text):
        try:
            return now - timedelta(seconds=int(match[1]) * _SECONDS[match[2]])
        except OverflowError:
            return datetime(1970, 1, 1, tzinfo=UTC)
    try:
        return parse_time(text)
    except ValueError as error:
        raise typer.BadParameter(
            f"{text!r} is neither a time ago (90s, 10m, 2h, 1d) nor a time with its zone (2026-01-31T12:00:00Z)",
            param_hint="--since",
        ) from error


async def _show(session: Session, reader: TaskLogs, name: str, *, attempt: int | None, shown: Shown) -> None:
    task = SwarmTask.model_validate(await session.api.get(SWARM_TASK, name, session.namespace))
    chosen = _attempt(task, attempt)
    if chosen is None:
        if task.finished:
            raise NotFound(f"{name} has ended without running: {why(task)}")
        raise NotFound(f"{name} has not run yet ({why(task)}): use `swarmtask logs -f {name}` to wait for it")
    writer = LogWriter()
    try:
        async for chunk in reader.stream(name, chosen, follow=False, shown=shown):
            writer.write(chunk)
    except WorkloadNotFound:
        if chosen.state in _NOT_BEGUN:
            raise NotFound(f"attempt {chosen.number} of {name} is starting: use -f to wait for it") from None
        raise _gone(name, chosen) from None
    finally:
        writer.close()


async def follow_task(
    session: Session, reader: TaskLogs, name: str, *, attempt: int | None = None, shown: Shown = ALL
) -> SwarmTask:
    """Write the output of the task to stdout as it comes, attempt after attempt, until the task has ended.

    Args:
        attempt: only this attempt; then it ends with that attempt.

    Returns:
        The task as it was seen last.
    """
    newest = 0
    said = ""
    await session.api.get(SWARM_TASK, name, session.namespace)  # says NotFound at once
    async with aclosing(_tasks(session, name)) as versions:
        async for task in versions:
            for record in task.status.attempts:
                wanted = record.number == attempt if attempt is not None else record.number > newest
                if not wanted or record.state in _NOT_BEGUN:
                    continue
                # Earlier attempts are history when a person comes late; only the newest is followed then.
                if attempt is None and newest == 0 and record is not task.status.attempts[-1]:
                    continue
                if newest or record.number > 1:
                    terminal.say(f"attempt {record.number} on {record.node}", style="dim")
                await _follow_attempt(reader, name, record, shown)
                newest = record.number
                if attempt is not None:
                    return task
            if task.finished:
                if attempt is not None or not newest:
                    terminal.say(f"{name} has ended without {'attempt ' + str(attempt) if attempt else 'running'}: {why(task)}")
                return task
            begun = any(record.number > newest and record.live for record in task.status.attempts)
            if why(task) != said and (task.status.message or task.status.reason) and not begun:
                said = why(task)
                terminal.say(f"waiting for {name}: {said}", style="dim")
    raise NotFound(f"{name} was deleted")


async def _follow_attempt(reader: TaskLogs, name: str, record: Attempt, shown: Shown) -> None:
    writer = LogWriter()
    try:
        async for chunk in reader.stream(name, record, follow=True, shown=shown):
            writer.write(chunk)
    except WorkloadNotFound:
        terminal.warn(_gone(name, record).message)
    finally:
        writer.close()


async def _tasks(session: Session, name: str) -> AsyncGenerator[SwarmTask]:
    async with aclosing(changes(session, SWARM_TASK, session.namespace, name=name)) as events:
        async for event in events:
            if event.type == "DELETED":
                return
            yield SwarmTask.model_validate(event.object)


def _attempt(task: SwarmTask, number: int | None) -> Attempt | None:
    if number is None:
        return task.status.current
    for record in task.status.attempts:
        if record.number == number:
            return record
    kept = f"the newest {MAX_ATTEMPT_RECORDS} are kept" if number <= task.status.attempt else f"there are {task.status.attempt}"
    raise NotFound(f"{task.metadata.name} has no attempt {number}: {kept}")


def why(task: SwarmTask) -> str:
    """Its phase, and what its status says of it."""
    status = task.status
    detail = status.message or status.reason or ""
    return f"{status.phase}{': ' if detail else ''}{detail}"


def _gone(name: str, record: Attempt) -> NotFound:
    return NotFound(
        f"the output of attempt {record.number} of {name} is gone: engine {record.engine} has removed it "
        "(operator.keep_finished_workloads says how many finished attempts keep theirs)"
    )


class LogWriter:
    """Writes log bytes to stdout: as they are into files and pipes, without what steers a terminal to a terminal."""

    def __init__(self) -> None:
        self._terminal = sys.stdout.isatty()
        self._colours = not os.environ.get("NO_COLOR")
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._pending = ""
        self._coloured = False

    def write(self, chunk: bytes) -> None:
        if not self._terminal:
            sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()
            return
        # Whole lines only: an escape sequence cut in two would slip through the filter.
        text = self._pending + self._decoder.decode(chunk)
        whole, separator, self._pending = text.rpartition("\n")
        if len(self._pending) > 65536:
            whole, separator, self._pending = text, "", ""
        self._put(whole + separator)

    def close(self) -> None:
        """Write what is left; a colour that the task left on ends here."""
        if not self._terminal:
            return
        self._put(self._pending + self._decoder.decode(b"", final=True))
        self._pending = ""
        if self._coloured:
            sys.stdout.write("\x1b[0m")
            sys.stdout.flush()

    def _put(self, text: str) -> None:
        cleaned = terminal.clean_log(text, colours=self._colours)
        self._coloured = self._coloured or "\x1b" in cleaned
        sys.stdout.write(cleaned)
        sys.stdout.flush()
