"""News on their way from kopf's thread: the newest of each object, all of them, in bounded room."""

from __future__ import annotations

import asyncio
import threading

from swarmtask.controllers.intake import MAIL_AT_ONCE, Mail
from swarmtask.kube import Object, ObjectList
from swarmtask.resources.kinds import SWARM_NODE, SWARM_TASK, Kind


class Reader:
    """A sink that remembers, and fails on a name that says so."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, str, bool]] = []

    def replaced(self, kind: Kind, objects: ObjectList) -> None:
        raise AssertionError("mail brings no lists")

    def changed(self, kind: Kind, obj: Object, *, gone: bool) -> None:
        metadata = obj["metadata"]
        self.seen.append((kind.plural, metadata["uid"], metadata["resourceVersion"], gone))
        if metadata["uid"] == "breaks":
            raise RuntimeError("as asked")


def news(uid: str, version: int) -> Object:
    return {"metadata": {"name": "a", "namespace": "default", "uid": uid, "resourceVersion": str(version)}}


async def settled() -> None:
    for _ in range(100):
        await asyncio.sleep(0)


async def test_only_the_newest_of_each_object_is_delivered() -> None:
    reader = Reader()
    mail = Mail(reader, asyncio.get_running_loop())
    for version in range(1, 4):
        mail.post(SWARM_TASK, news("u", version), gone=False)
        mail.post(SWARM_NODE, news("u", version), gone=False)
    mail.post(SWARM_TASK, news("v", 4), gone=False)
    mail.post(SWARM_TASK, news("u", 5), gone=True)
    await settled()
    assert reader.seen == [("swarmtasks", "u", "5", True), ("swarmnodes", "u", "3", False), ("swarmtasks", "v", "4", False)]
    mail.post(SWARM_TASK, news("v", 6), gone=False)
    await settled()
    assert reader.seen[3:] == [("swarmtasks", "v", "6", False)]


async def test_a_flood_from_another_thread_arrives_and_lets_others_have_their_turn() -> None:
    reader = Reader()
    mail = Mail(reader, asyncio.get_running_loop())
    count = 20 * MAIL_AT_ONCE
    thread = threading.Thread(target=lambda: [mail.post(SWARM_TASK, news(f"u{n}", n), gone=False) for n in range(count)])
    thread.start()
    thread.join()
    most, before = 0, 0
    while len(reader.seen) < count:
        await asyncio.sleep(0)
        most, before = max(most, len(reader.seen) - before), len(reader.seen)
    assert most <= MAIL_AT_ONCE
    assert [uid for _, uid, _, _ in reader.seen] == [f"u{n}" for n in range(count)]


async def test_one_that_cannot_be_taken_does_not_hold_up_the_others() -> None:
    reader, told = Reader(), []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: told.append(str(context["exception"])))
    mail = Mail(reader, loop)
    for uid in ("a", "breaks", "b"):
        mail.post(SWARM_TASK, news(uid, 1), gone=False)
    await settled()
    assert [uid for _, uid, _, _ in reader.seen] == ["a", "breaks", "b"]
    assert told == ["as asked"]


async def test_nobody_is_told_when_the_loop_has_ended() -> None:
    loop = asyncio.new_event_loop()
    loop.close()
    Mail(Reader(), loop).post(SWARM_TASK, news("u", 1), gone=False)
