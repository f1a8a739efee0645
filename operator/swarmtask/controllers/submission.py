"""From a bound attempt to a workload on its engine, in waves.

One `Submissions` per engine, owned by its lane. It waits for nothing but its own engine and the API (for secrets), so that a slow
engine holds up only itself. Engines debounce on changes (docs/engines.md), hence short waves with a quiet gap. Secret values exist
here between being read and being handed over; they are never logged, stored or put into an error.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from swarmtask.controllers.crashpoints import write_point
from swarmtask.controllers.keyed_queue import KeyedQueue
from swarmtask.controllers.single_gpus import given
from swarmtask.controllers.surroundings import Surroundings
from swarmtask.engines.base import Engine, GpuDevice, Workload
from swarmtask.errors import EngineRejected, NotFound, SwarmTaskError
from swarmtask.kube import Object
from swarmtask.lifecycle.deadlines import promised_fence, promised_grace_s
from swarmtask.lifecycle.memory import limit_bytes
from swarmtask.lifecycle.messages import Reason, SubmitRefused
from swarmtask.resources import units
from swarmtask.resources.kinds import SECRET
from swarmtask.resources.node import SwarmNode
from swarmtask.resources.placement import GivenGpu
from swarmtask.resources.task import Attempt, SecretKeyRef, SwarmTask
from swarmtask.scheduler.model import TaskKey

logger = logging.getLogger(__name__)


LANDING_S = 30.0
"""A submit that was given up, or whose sender has died, may still arrive at the engine within this."""


class SecretMissing(Exception):
    """A Secret or a key that the task needs is not there, or holds nothing that an environment can carry."""


@dataclass(frozen=True, slots=True)
class Submission:
    """An attempt to submit. `node`: where it was bound, as last seen; None when that is gone."""

    key: TaskKey
    uid: str
    attempt: Attempt
    node: SwarmNode | None = None


Wanted = Callable[[Submission], SwarmTask | None]
"""The task, if its current attempt still waits to be submitted."""
Refuse = Callable[[TaskKey, str, SubmitRefused], None]


class Submissions:
    """See the module.

    Args:
        wanted: asked just before every submit, because a wave later the attempt may have been cancelled.
        refuse: told of attempts that will never run.

    Attributes:
        done: task UID -> the newest workload submitted in this process, and the monotonic time at which that had succeeded.
    """

    def __init__(self, engine: Engine, around: Surroundings, wanted: Wanted, refuse: Refuse) -> None:
        self._engine, self._api, self._settings, self._clock = engine, around.api, around.settings, around.clock
        self._wanted, self._refuse = wanted, refuse
        self._queue: KeyedQueue[str, str, Submission] = KeyedQueue(around.delays, around.rng, cap_s=10.0)
        self._flights: dict[str, asyncio.Event] = {}
        self._began = around.clock.monotonic()
        self._born: set[str] = set()
        self._given_up: dict[str, float] = {}
        self.done: dict[str, tuple[str, float]] = {}

    def put(self, submission: Submission) -> None:
        """Queue an attempt, unless its workload has been submitted already."""
        name = submission.attempt.id
        if self.submitted_at(submission.uid, name) is None and name not in self._flights:
            self._queue.put(name, "submit", submission)

    def submitted_at(self, uid: str, name: str) -> float | None:
        """Monotonic time at which this process had submitted the workload; None when it has not."""
        done = self.done.get(uid)
        return done[1] if done is not None and done[0] == name else None

    def under_way(self, name: str) -> bool:
        """A submit of this name has been begun, and its answer is awaited."""
        return name in self._flights

    def bound_here(self, name: str) -> bool:
        """No earlier process can have submitted it; known of attempts that were bound soon after the start."""
        return name in self._born

    def born(self, name: str) -> None:
        """The attempt was bound by this process: no earlier one can have submitted it."""
        if self._clock.monotonic() - self._began < LANDING_S:
            self._born.add(name)

    def may_still_land(self, name: str, at: float | None = None) -> bool:
        """A submit of this name, by this process or the one before, may be on its way although nobody waits for it any more. Only a
        workload of that name on the engine keeps it from running the attempt once more. `at`: monotonic time, if not now."""
        now = self._clock.monotonic() if at is None else at
        if name in self._flights:
            return True
        given_up = self._given_up.get(name)
        if given_up is not None and now - given_up < LANDING_S:
            return True
        return now - self._began < LANDING_S and name not in self._born

    async def landed(self, name: str) -> None:
        """Until no submit of this name is under way: whoever stops or removes it must not be overtaken by it."""
        flight = self._flights.get(name)
        if flight is not None:
            await flight.wait()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            wave = [await self._queue.take()]
            while len(wave) < self._settings.submit_wave and self._queue.ready:
                wave.append(await self._queue.take())
            await asyncio.gather(*(self._carry(name, slots["submit"]) for name, slots in wave))
            await self._clock.sleep(self._settings.wave_gap_s)

    async def _carry(self, name: str, submission: Submission) -> None:
        finished = False
        flight = self._flights[name] = asyncio.Event()
        try:
            await self._submit(name, submission)
            finished = True
        except SwarmTaskError as error:
            logger.warning("attempt %s could not be submitted to %s yet: %s", name, self._engine.name, error)
            self._give_up(name)
        except Exception:  # a bug that one attempt meets must not hold up the others of its wave, and must not go unseen
            logger.exception("attempt %s could not be submitted to %s, unexpectedly; it is tried again", name, self._engine.name)
            self._give_up(name)
        finally:
            del self._flights[name]
            flight.set()
            if finished:
                self._queue.done(name)
            else:
                self._queue.retry(name, {"submit": submission})

    def _give_up(self, name: str) -> None:
        now = self._clock.monotonic()
        for old in [known for known, at in self._given_up.items() if now - at >= LANDING_S]:
            del self._given_up[old]
        self._given_up[name] = now

    async def _submit(self, name: str, submission: Submission) -> None:
        task = self._wanted(submission)
        if task is None:
            return
        attempt = submission.attempt
        try:
            workload = build_workload(task, attempt, await self._environment(task), submission.node)
            if self._wanted(submission) is None:  # reading secrets took its time
                return
            with write_point("submit"):
                await self._engine.submit(workload)
        except SecretMissing as error:
            self._refuse(submission.key, submission.uid, SubmitRefused(attempt.number, Reason.SECRET_NOT_FOUND, str(error)))
        except EngineRejected as error:
            self._refuse(submission.key, submission.uid, SubmitRefused(attempt.number, Reason.ENGINE_REJECTED, str(error)))
        else:
            self.done[submission.uid] = (name, self._clock.monotonic())

    async def _environment(self, task: SwarmTask) -> tuple[tuple[str, str], ...]:
        """The variables of the container, secrets resolved now."""
        secrets: dict[str, Object | None] = {}
        resolved: list[tuple[str, str]] = []
        for variable in task.spec.container.env:
            if variable.value_from is None:
                resolved.append((variable.name, variable.value or ""))
                continue
            reference = variable.value_from.secret_key_ref
            if reference.name not in secrets:
                secrets[reference.name] = await self._secret(reference.name, task.key[0])
            value = secret_value(secrets[reference.name], reference)
            if value is not None:
                resolved.append((variable.name, value))
        return tuple(resolved)

    async def _secret(self, name: str, namespace: str) -> Object | None:
        try:
            return await self._api.get(SECRET, name, namespace)
        except NotFound:
            return None


def secret_value(secret: Object | None, reference: SecretKeyRef) -> str | None:
    """The text of one key; None where it is missing and may be.

    Raises:
        SecretMissing: names what is missing, never what is there.
    """
    data = (secret or {}).get("data") or {}
    if reference.key not in data:
        if reference.optional:
            return None
        missing = (
            f"Secret {reference.name} does not exist" if secret is None else f"Secret {reference.name} has no key {reference.key}"
        )
        raise SecretMissing(f"{missing} in the task's namespace: create it, then retry the task")
    try:
        value = base64.b64decode(data[reference.key] or "", validate=True).decode()
    except (binascii.Error, UnicodeDecodeError, TypeError):
        value = "\0"
    if "\0" in value:
        # No `from error`: its text would carry a part of the secret.
        raise SecretMissing(
            f"key {reference.key} of Secret {reference.name} is not text, and only text can be an environment variable"
        ) from None
    return value


def build_workload(task: SwarmTask, attempt: Attempt, env: tuple[tuple[str, str], ...], node: SwarmNode | None = None) -> Workload:
    """What the engine is told to run for an attempt; what it holds is what was counted when it was bound."""
    container = task.spec.container
    memory_request = units.memory_bytes(attempt.requested.memory)
    limits = container.resources.limits
    return Workload(
        name=attempt.id,
        task_uid=task.metadata.uid,
        namespace=task.key[0],
        task_name=task.metadata.name,
        attempt=attempt.number,
        node_id=attempt.engine_node_id,
        image=container.image,
        command=tuple(container.command),
        args=tuple(container.args),
        env=env,
        working_dir=container.working_dir,
        cpu_request_milli=units.cpu_milli(attempt.requested.cpu),
        memory_request_bytes=memory_request,
        gpus=attempt.requested.gpu,
        cpu_limit_milli=units.cpu_milli(limits.cpu) if limits.cpu is not None else None,
        memory_limit_bytes=limit_bytes(task.spec, attempt) or None,
        grace_s=promised_grace_s(task.spec, attempt),
        gpu_devices=tuple(GpuDevice(gpu.number, gpu.vendor, gpu.uuid) for gpu in _given(attempt, node)),
        fence=promised_fence(task.spec, attempt),
        priority=task.spec.effective_priority,
    )


def _given(attempt: Attempt, node: SwarmNode | None) -> Sequence[GivenGpu]:
    """The GPUs of an attempt as they were when it was bound; where an older operator recorded indices alone, as they are now."""
    held = attempt.requested
    if held.gpu_devices or node is None:
        return held.gpu_devices or [GivenGpu(index=index, number=index) for index in held.gpu_indices]
    return given(node, held.gpu_indices)
