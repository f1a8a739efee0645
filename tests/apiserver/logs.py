"""What tests of the output of attempts need: records, and tasks that are known or not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from typing import Any

from swarmtask.apiserver.attempt_logs import AttemptLogs
from swarmtask.resources.log_records import Kind, LogRecord, encode

UID = "11111111-2222-4333-8444-000000000001"


def line(number: int, kind: Kind = "o", text: bytes | None = None) -> bytes:
    """A record; its time grows with its number, a second each."""
    return encode(LogRecord(number * 10**9, kind, b"line %d" % number if text is None else text))


def body(first: int, end: int) -> bytes:
    """The records of these numbers."""
    return b"".join(line(number) for number in range(first, end))


END = line(999, "z", b"")


@dataclass
class KnownTasks:
    """Satisfies `Tasks`."""

    namespaces: dict[str, str] = field(default_factory=lambda: {UID: "default"})
    ended: set[tuple[str, int]] = field(default_factory=set)

    def namespace_of(self, task_uid: str) -> str | None:
        return self.namespaces.get(task_uid)

    def over(self, task_uid: str, attempt: int) -> bool:
        return task_uid not in self.namespaces or (task_uid, attempt) in self.ended


async def until(holds: Callable[[], bool]) -> None:
    """Others are at work: give them so much real time to bring a state about."""
    async with asyncio.timeout(20):
        while True:
            if holds():
                return
            await asyncio.sleep(0.005)


async def records(logs: AttemptLogs, uid: str = UID, attempt: int = 1, **asked: Any) -> AsyncGenerator[LogRecord, None]:
    """What a reader is given, one by one; `asked` as of `AttemptLogs.reader`."""
    batches = logs.reader("default", uid, attempt, **asked).batches()
    try:
        async for batch in batches:
            for record in batch:
                yield record
    finally:
        await batches.aclose()


def in_brackets(record: LogRecord) -> str:
    """Its text; that of a note in brackets."""
    text = record.text.decode("utf-8", "replace")
    return f"[{text}]" if record.kind == "n" else text


async def texts(logs: AttemptLogs, uid: str = UID, attempt: int = 1, *, tail: int | None = None) -> list[str]:
    """All that is there; notes in brackets."""
    return [in_brackets(record) async for record in records(logs, uid, attempt, tail=tail)]
