"""The API and the engine as an operator meets them: slow, failing, losing answers, and telling news late, twice or not at all.

`FlakyKube` and `FlakyEngine` stand between the operator under test and the fakes, which stay perfect: what is stored and what runs
is always known. Every fault is one that the real thing can show. In particular a read is never older than the moment it was asked
for (Kubernetes and the embedded server promise that), but its answer may come late; and a call that was given up may still arrive.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextvars import Context
from typing import Any, Literal, TypeVar

from swarmtask.clock import Clock
from swarmtask.engines.base import Availability, EngineCapabilities, EngineNode, Hint, Observation, Workload
from swarmtask.errors import Conflict, EngineUnavailable, Expired, ServiceUnavailable, Timeout
from swarmtask.kube import Object, ObjectList, PatchType, WatchEvent
from swarmtask.resources.kinds import SWARM_TASK, Kind
from swarmtask.resources.task import Phase
from swarmtask.resources.tenure import Tenure
from tests.fakes.engine import FakeEngine
from tests.fakes.kube import FakeKube
from tests.simulation.chances import Chances
from tests.simulation.limits import Sent

T = TypeVar("T")
CALL_TIMEOUT_S = 15.0
LONGEST_ON_THE_WIRE_S = 25.0
WRITES = ("create", "replace", "patch", "delete")


class FlakyKube:
    """An `ObjectApi` over a FakeKube.

    Attributes:
        sent: writes of tasks that have been sent and may still have their effect.
    """

    def __init__(self, inner: FakeKube, chances: Chances, clock: Clock) -> None:
        self._inner, self._chances, self._clock = inner, chances, clock
        self.sent: dict[int, Sent] = {}
        self._numbers = itertools.count()
        inner.deliver = self._deliver

    @property
    def tenure(self) -> Tenure | None:
        return self._inner.tenure

    async def get(self, kind: Kind, name: str, namespace: str | None = None) -> Object:
        return await self._call("get", lambda: self._inner.get(kind, name, namespace))

    async def list(
        self, kind: Kind, namespace: str | None = None, *, label_selector: str = "", field_selector: str = ""
    ) -> ObjectList:
        return await self._call(
            "list", lambda: self._inner.list(kind, namespace, label_selector=label_selector, field_selector=field_selector)
        )

    def watch(
        self, kind: Kind, namespace: str | None = None, *, resource_version: str, label_selector: str = "", field_selector: str = ""
    ) -> AsyncGenerator[WatchEvent, None]:
        return self._inner.watch(
            kind, namespace, resource_version=resource_version, label_selector=label_selector, field_selector=field_selector
        )

    def _deliver(self, queue: asyncio.Queue[WatchEvent | Exception], event: WatchEvent) -> None:
        """One event on its way to one watch. Late ones are overtaken by others: the order of events is shaken too."""
        hit = self._chances.hit
        if hit("watch.break"):
            queue.put_nowait(ServiceUnavailable("simulated: the watch broke, and an event with it"))
            return
        if hit("watch.expire"):
            queue.put_nowait(Expired("simulated: the history was compacted before this event was read"))
            return
        delays_s = [self._chances.delay_s() if hit("watch.late") else 0.0]
        if hit("watch.repeat"):
            delays_s.append(self._chances.delay_s())
        for delay_s in delays_s:
            if delay_s:
                asyncio.get_running_loop().call_later(delay_s, queue.put_nowait, event, context=Context())
            else:
                queue.put_nowait(event)

    async def create(self, kind: Kind, obj: Object, namespace: str | None = None, *, dry_run: bool = False) -> Object:
        return await self._call("create", lambda: self._inner.create(kind, obj, namespace, dry_run=dry_run))

    async def replace(self, kind: Kind, obj: Object, *, subresource: str | None = None) -> Object:
        return await self._call("replace", lambda: self._inner.replace(kind, obj, subresource=subresource))

    async def patch(
        self,
        kind: Kind,
        name: str,
        patch: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        namespace: str | None = None,
        *,
        type_: PatchType = "merge",
        subresource: str | None = None,
        field_manager: str | None = None,
        force: bool = False,
        dry_run: bool = False,
    ) -> Object:
        number = next(self._numbers)
        if kind is SWARM_TASK:
            places = isinstance(patch, dict) and (patch.get("status") or {}).get("phase") == Phase.STARTING
            self.sent[number] = Sent((namespace or "", name), places)

        async def act() -> Object:
            try:
                return await self._inner.patch(kind, name, patch, namespace, type_=type_, subresource=subresource, dry_run=dry_run)
            finally:
                self.sent.pop(number, None)

        return await self._call("patch", act, unsent=lambda: self.sent.pop(number, None))

    async def delete(
        self,
        kind: Kind,
        name: str,
        namespace: str | None = None,
        *,
        uid: str | None = None,
        resource_version: str | None = None,
        propagation: Literal["Background", "Foreground", "Orphan"] | None = None,
    ) -> None:
        def act() -> Awaitable[None]:
            return self._inner.delete(kind, name, namespace, uid=uid, resource_version=resource_version, propagation=propagation)

        await self._call("delete", act)

    async def version(self) -> Mapping[str, Any]:
        return await self._call("version", self._inner.version)

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def _call(self, verb: str, act: Callable[[], Awaitable[T]], unsent: Callable[[], object] = lambda: None) -> T:
        hit = self._chances.hit
        if hit("api.slow"):
            await self._clock.sleep(self._chances.delay_s())
        if hit("api.error"):
            unsent()
            raise ServiceUnavailable(f"simulated: this {verb} failed")
        if verb in ("patch", "replace") and hit("api.conflict"):
            unsent()
            raise Conflict("simulated: somebody was faster")
        if verb in WRITES and hit("api.wire"):
            return await _on_the_wire(self._clock, self._chances, verb, act, Timeout)
        answer = await act()
        if hit("api.late"):
            await self._clock.sleep(self._chances.delay_s())
        if hit("api.lost"):
            raise Timeout(f"simulated: the answer to this {verb} was lost")
        return answer


class FlakyEngine:
    """An `Engine` over a FakeEngine.

    Args:
        touched: told of every name that is stopped or removed, when that arrives.

    Attributes:
        late: names whose creation arrived after its sender had given it up.
        under_way: name -> submits that have been sent and were not answered, or may still arrive.
    """

    def __init__(self, inner: FakeEngine, chances: Chances, clock: Clock, touched: Callable[[str, str], None]) -> None:
        self._inner, self._chances, self._clock, self._touched = inner, chances, clock, touched
        self.late: set[str] = set()
        self.under_way: Counter[str] = Counter()

    @property
    def name(self) -> str:
        return self._inner.name

    @property
    def capabilities(self) -> EngineCapabilities:
        return self._inner.capabilities

    async def start(self) -> None:
        await self._call("start", "", self._inner.start)

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def nodes(self) -> tuple[EngineNode, ...]:
        return await self._call("nodes", "", self._inner.nodes)

    async def submit(self, workload: Workload) -> None:
        self.under_way[workload.name] += 1
        try:
            await self._call("submit", workload.name, lambda: self._inner.submit(workload))
        finally:
            self.under_way[workload.name] -= 1

    async def stop(self, name: str, grace_s: int) -> None:
        self._touched("stop", name)
        await self._call("stop", name, lambda: self._inner.stop(name, grace_s))

    async def remove(self, name: str) -> None:
        self._touched("remove", name)
        await self._call("remove", name, lambda: self._inner.remove(name))

    async def workloads(self) -> tuple[Observation, ...]:
        return await self._call("workloads", "", self._inner.workloads)

    async def watch(self) -> AsyncIterator[Hint]:
        hit = self._chances.hit
        async for hint in self._inner.watch():
            if hit("hint.drop"):
                continue
            if hit("hint.late"):
                await self._clock.sleep(self._chances.delay_s())
            yield hint
            if hit("hint.repeat"):
                yield hint

    def logs(self, name: str, *, follow: bool = False, tail: int | None = None, timestamps: bool = False) -> AsyncIterator[bytes]:
        return self._inner.logs(name, follow=follow, tail=tail, timestamps=timestamps)

    async def label_node(self, node_id: str, labels: Mapping[str, str | None]) -> None:
        await self._call("label_node", node_id, lambda: self._inner.label_node(node_id, labels))

    async def set_availability(self, node_id: str, availability: Availability) -> None:
        await self._call("set_availability", node_id, lambda: self._inner.set_availability(node_id, availability))

    async def _call(self, method: str, name: str, act: Callable[[], Awaitable[T]]) -> T:
        hit = self._chances.hit
        if hit("engine.slow"):
            await self._clock.sleep(self._chances.delay_s())
        if hit("engine.error"):
            raise EngineUnavailable(f"simulated: {method} failed")
        if (method in ("stop", "remove") and hit("engine.wire")) or (method == "submit" and hit("engine.ghost")):
            return await self._on_the_wire(method, name, act)
        answer = await act()
        if hit("engine.late"):
            await self._clock.sleep(self._chances.delay_s())
        else:
            await asyncio.sleep(0)
        if hit("engine.lost"):
            raise EngineUnavailable(f"simulated: the answer to {method} was lost")
        return answer

    async def _on_the_wire(self, method: str, name: str, act: Callable[[], Awaitable[T]]) -> T:
        async def arrive() -> T:
            if method != "submit":
                return await act()
            self.late.add(name)
            try:
                return await act()
            finally:
                self.under_way[name] -= 1

        if method == "submit":
            self.under_way[name] += 1
        return await _on_the_wire(self._clock, self._chances, method, arrive, EngineUnavailable)


async def _on_the_wire(
    clock: Clock, chances: Chances, verb: str, act: Callable[[], Awaitable[T]], given_up: Callable[[str], Exception]
) -> T:
    """The request is sent and takes long: it arrives also when its sender has given it up, or is dead."""
    delay_s = chances.rng.uniform(0, LONGEST_ON_THE_WIRE_S)

    async def arrive() -> T:
        await clock.sleep(delay_s)
        return await act()

    def seen(arrival: asyncio.Task[T]) -> None:
        if not arrival.cancelled():
            arrival.exception()

    request = asyncio.get_running_loop().create_task(arrive(), context=Context())
    request.add_done_callback(seen, context=Context())  # whoever waits may be dead by then
    # Not `shield`: the future that it puts between would carry an error that nobody looks at when its waiter is killed just then.
    done, _ = await asyncio.wait((request,), timeout=CALL_TIMEOUT_S)
    if not done:
        raise given_up(f"simulated: this {verb} was given up after {CALL_TIMEOUT_S:g} s")
    return request.result()
