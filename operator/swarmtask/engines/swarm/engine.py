"""The Docker Swarm engine. Built by `wiring`; satisfies `engines.base.Engine`.

One replicated service per attempt, one replica, restart condition `none`, pinned to the node that our scheduler chose. A stop is an
update whose new version no node may run: Swarm then ends the running task with its grace and keeps its exit code, which it forgets
when the service is scaled to zero. It never touches a service without our labels.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

import structlog
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from swarmtask.clock import Clock
from swarmtask.engines.admission import check_workload, is_name
from swarmtask.engines.base import (
    LABEL_ATTEMPT,
    LABEL_CLUSTER,
    LABEL_MANAGED,
    LABEL_SPEC_HASH,
    LABEL_TASK_UID,
    Availability,
    EngineCapabilities,
    EngineNode,
    Hint,
    NodeState,
    Observation,
    Workload,
)
from swarmtask.engines.swarm import spec as specs
from swarmtask.engines.swarm.client import (
    AlreadyThere,
    Api,
    DockerClient,
    Missing,
    OutOfDate,
    Source,
    open_events,
    open_task_logs,
)
from swarmtask.engines.swarm.images import pinned
from swarmtask.engines.swarm.knocking import Knocking
from swarmtask.engines.swarm.observe import ENGINE, Observer, engine_node, first_task, has_ended
from swarmtask.errors import ConfigurationError, EngineRejected, EngineUnavailable, SwarmTaskError, WorkloadNotFound
from swarmtask.settings import SwarmSettings

log = structlog.get_logger(__name__)

OLDEST_API = (1, 41)
IMAGE_CACHE_S = 30.0
LOG_WAIT_S = 0.3
LOG_IDLE_S = 1.0
EVENTS_IDLE_S = 30.0
LONGEST_BACKOFF_S = 30.0
T = TypeVar("T")


class SwarmEngine:
    """See the module's text.

    Args:
        cluster_id: only services that carry it in LABEL_CLUSTER are ours.
    """

    def __init__(self, settings: SwarmSettings, cluster_id: str, clock: Clock) -> None:
        self._settings = settings
        self._cluster = cluster_id
        self._clock = clock
        self._docker = DockerClient(settings.docker_host, timeout_s=settings.timeout_s, threads=settings.threads)
        self._observer = Observer()
        self._knocking = Knocking(clock)
        self._images: dict[str, tuple[float, str]] = {}
        self._hardening_checked = False

    @property
    def name(self) -> str:
        return ENGINE

    @property
    def capabilities(self) -> EngineCapabilities:
        return EngineCapabilities(isolates=True, pulls_images=True, keeps_logs_after_exit=True, remote_nodes=True)

    async def start(self) -> None:
        try:
            info, version = await self._docker.call(lambda api: (api.info(), api.api_version))
        except EngineUnavailable as error:
            advice = (
                f"{error.message}. Start Docker (systemctl start docker), check the setting swarm.docker_host and that this user "
                "may use Docker (group docker), or use --engine local"
            )
            if re.search(r"Permission ?denied|No such file|FileNotFound", error.message, re.IGNORECASE):
                raise ConfigurationError(advice) from error
            raise EngineUnavailable(advice) from error
        if tuple(map(int, version.split("."))) < OLDEST_API:
            raise ConfigurationError(f"Docker speaks API {version}; SwarmTask needs 1.41 (Docker 20.10) or newer: update Docker")
        swarm = info.get("Swarm") or {}
        if swarm.get("LocalNodeState") != "active":
            told = swarm.get("Error") or swarm.get("LocalNodeState") or "inactive"
            raise ConfigurationError(
                f"this Docker is not part of a swarm ({told}): run `docker swarm init` here, or `swarmtask up`"
            )
        if not swarm.get("ControlAvailable"):
            raise ConfigurationError(
                "this Docker is a worker of its swarm: run SwarmTask on a manager, or `docker node promote` this node there"
            )

    async def aclose(self) -> None:
        self._knocking.close()
        self._docker.close()

    # --- attempts ---------------------------------------------------------------------------------------------------------

    async def submit(self, workload: Workload) -> None:
        check_workload(workload)
        image = await self._pinned(workload.image)
        template = specs.task_template(
            workload, self._cluster, image, pids_limit=self._settings.pids_limit, capability_add=self._settings.capability_add
        )
        labels = specs.owner_labels(workload, self._cluster)
        try:
            await self._docker.call(
                lambda api: api.create_service(
                    template,
                    name=workload.name,
                    labels=labels,
                    mode={"Replicated": {"Replicas": 1}},
                    endpoint_spec={"Mode": "dnsrr"},
                )
            )
        except AlreadyThere as error:
            service = await self._inspect(workload.name)
            if service is None:
                raise EngineUnavailable(f"Swarm says that {workload.name} exists and cannot show it; try again") from error
            present = service["Spec"].get("Labels") or {}
            attempt = (present.get(LABEL_TASK_UID), present.get(LABEL_ATTEMPT))
            if not self._ours(service) or attempt != (workload.task_uid, str(workload.attempt)):
                raise EngineRejected(f"a service named {workload.name} exists already and is not this attempt") from error
            if present.get(LABEL_SPEC_HASH) != workload.spec_hash:
                log.info("an edit came too late for an attempt that was submitted already", workload=workload.name)
            return
        if not self._hardening_checked:
            self._hardening_checked = True  # before waiting: the others of the wave need not ask too
            await self._read_back(workload.name)

    async def stop(self, name: str, grace_s: int) -> None:
        """Swarm keeps the grace that the service was made with (`Workload.grace_s`); another `grace_s` cannot be given to it."""

        async def once() -> None:
            service = await self._find(name)
            if service is None or service["Spec"]["Labels"].get(specs.LABEL_STOPPED) == "true":
                return
            tasks = await self._docker.call(lambda api: api.tasks({"service": service["ID"]}))
            task = first_task(tasks)
            if task is None or not has_ended(task):
                await self._docker.call(lambda api: _take_away(api, service))

        await self._retried(once)

    async def remove(self, name: str) -> None:
        service = await self._find(name)
        if service is not None:
            try:
                await self._docker.call(lambda api: api.remove_service(service["ID"]))
            except Missing:
                return

    async def workloads(self) -> Sequence[Observation]:
        ours = specs.label_filter(self._cluster)
        services, tasks, nodes = await self._docker.call(
            lambda api: (api.services(filters=ours), api.tasks(filters=ours), api.nodes())
        )
        return self._observer.observe(services, tasks, nodes)

    # --- nodes ------------------------------------------------------------------------------------------------------------

    async def nodes(self) -> Sequence[EngineNode]:
        nodes = await self._docker.call(lambda api: api.nodes())
        self._observer.note_nodes(nodes)
        return self._knocking.judge(engine_node(node) for node in nodes)

    async def label_node(self, node_id: str, labels: Mapping[str, str | None]) -> None:
        def change(spec: dict[str, Any]) -> None:
            merged = {**(spec.get("Labels") or {}), **labels}
            spec["Labels"] = {key: value for key, value in merged.items() if value is not None}

        await self._change_node(node_id, change)

    async def set_availability(self, node_id: str, availability: Availability) -> None:
        await self._change_node(node_id, lambda spec: spec.update(Availability=availability.value))

    async def _change_node(self, node_id: str, change: Callable[[dict[str, Any]], None]) -> None:
        async def once() -> None:
            def read_and_write(api: Api) -> None:
                node = api.inspect_node(node_id)
                if node["ID"] != node_id:  # Docker also takes names and beginnings of IDs
                    raise Missing(f"node {node_id} not found")
                before = json.dumps(node["Spec"], sort_keys=True)
                change(node["Spec"])
                if json.dumps(node["Spec"], sort_keys=True) != before:
                    api.update_node(node_id, node["Version"]["Index"], node["Spec"])

            try:
                await self._docker.call(read_and_write)
            except Missing as error:
                raise EngineRejected(f"the swarm has no node {node_id}: see `docker node ls`") from error

        await self._retried(once)

    # --- hints ------------------------------------------------------------------------------------------------------------

    async def watch(self) -> AsyncIterator[Hint]:
        failures = 0
        while True:
            try:
                async with aclosing(self._docker.stream(_events_with_a_beginning, idle_s=EVENTS_IDLE_S)) as events:
                    async for event in events:
                        if event is None:  # silence: is anybody there?
                            await self._docker.call(lambda api: api.ping())
                        elif not event:
                            failures = 0
                            yield Hint("resync")
                        elif (hint := _hint(event)) is not None:
                            yield hint
            except SwarmTaskError as error:
                log.info("swarm event stream interrupted", error=error.message)
            failures += 1
            await self._clock.sleep(_backoff_s(failures))

    # --- logs -------------------------------------------------------------------------------------------------------------

    async def logs(
        self, name: str, *, follow: bool = False, tail: int | None = None, timestamps: bool = False
    ) -> AsyncIterator[bytes]:
        task = await self._readable_task(name, wait=follow)
        if task is None:
            return
        timeout_s = self._settings.timeout_s

        def open_logs(api: Api) -> Source[bytes]:
            return open_task_logs(api, task["ID"], follow=follow, tail=tail, timestamps=timestamps, timeout_s=timeout_s)

        over = False
        try:
            async with aclosing(self._docker.stream(open_logs, idle_s=LOG_IDLE_S if follow else timeout_s)) as chunks:
                async for chunk in chunks:
                    if chunk is not None:
                        yield chunk
                    elif over:  # it had ended before the last silence began, nothing more will come
                        return
                    elif not follow:
                        raise EngineUnavailable(f"the logs of {name} did not come within {timeout_s:g} s")
                    else:
                        over = await self._over(name, task)
        except Missing as error:
            raise WorkloadNotFound(f"the swarm has no workload {name} any more") from error

    async def _readable_task(self, name: str, *, wait: bool) -> Mapping[str, Any] | None:
        """The task whose logs can be asked for; None when it has never run and nobody waits for it to.

        Raises:
            WorkloadNotFound, EngineUnavailable: its node does not answer.
        """
        if await self._find(name) is None:
            raise WorkloadNotFound(f"the swarm has no workload {name}: it was removed, or it never was here")
        while True:
            service = await self._find(name)
            if service is None:
                return None
            found: str = service["ID"]
            task = first_task(await self._docker.call(lambda api, found=found: api.tasks({"service": found})))  # type: ignore[misc]
            stopped = service["Spec"]["Labels"].get(specs.LABEL_STOPPED) == "true"
            if task is not None and task.get("NodeID"):
                await self._check_node(task["NodeID"], name)
                container = (task["Status"].get("ContainerStatus") or {}).get("ContainerID")
                if container and (task["Status"]["State"] == "running" or has_ended(task)):
                    return task
                if has_ended(task):
                    return None
            elif stopped:
                return None
            if not wait:
                return None
            await self._clock.sleep(LOG_WAIT_S)

    async def _check_node(self, node_id: str, name: str) -> None:
        node = next((node for node in await self.nodes() if node.id == node_id), None)
        if node is None or node.state is not NodeState.READY:
            where = node.hostname if node is not None else node_id
            raise EngineUnavailable(f"the logs of {name} are on node {where}, which does not answer: try again when it is back")

    async def _over(self, name: str, task: Mapping[str, Any]) -> bool:
        """Whether a followed task is over: Swarm does not end the stream by itself. Raises EngineUnavailable: its node is lost."""
        try:
            now: dict[str, Any] = await self._docker.call(lambda api: api.inspect_task(task["ID"]))
        except Missing:
            return True
        if not has_ended(now):
            await self._check_node(task["NodeID"], name)
            return False
        return True

    # --- inside -----------------------------------------------------------------------------------------------------------

    def _ours(self, service: Mapping[str, Any]) -> bool:
        labels = service["Spec"].get("Labels") or {}
        return labels.get(LABEL_MANAGED) == "true" and labels.get(LABEL_CLUSTER) == self._cluster

    async def _inspect(self, name: str) -> dict[str, Any] | None:
        if not is_name(name):
            return None
        try:
            service: dict[str, Any] = await self._docker.call(lambda api: api.inspect_service(name))
        except Missing:
            return None
        return service if service["Spec"]["Name"] == name else None  # Docker also takes beginnings of IDs

    async def _find(self, name: str) -> dict[str, Any] | None:
        """Our service of that name; somebody else's counts as not there."""
        service = await self._inspect(name)
        return service if service is not None and self._ours(service) else None

    async def _retried(self, once: Callable[[], Awaitable[None]]) -> None:
        """Read, decide and write again when the object changed in between."""
        try:
            async for attempt in AsyncRetrying(
                retry=retry_if_exception_type(OutOfDate), stop=stop_after_attempt(6), sleep=self._clock.sleep, reraise=True,
                wait=wait_random_exponential(multiplier=0.05, max=1),
            ):  # fmt: skip
                with attempt:
                    await once()
        except OutOfDate as error:
            raise EngineUnavailable(f"the object kept changing while it was updated: {error.message}") from error
        except Missing:
            return  # removed in between

    async def _pinned(self, image: str) -> str:
        """The image in a form that starts without asking a registry where the nodes have it already.

        By ID when this daemon has it and no registry ever knew it, by digest when one did, else as it was given.
        """
        if "@sha256:" in image or image.startswith("sha256:"):
            return image
        now = self._clock.monotonic()
        cached = self._images.get(image)
        if cached is not None and now - cached[0] < IMAGE_CACHE_S:
            return cached[1]
        try:
            found = await self._docker.call(lambda api: api.inspect_image(image))
        except (Missing, EngineRejected):
            known = image  # not here, or no proper reference: Swarm will say what is wrong with it
        else:
            known = pinned(found, image)
        self._images = {key: value for key, value in self._images.items() if now - value[0] < IMAGE_CACHE_S}
        self._images[image] = (now, known)
        return known

    async def _read_back(self, name: str) -> None:
        """Say once which protections this engine drops without a word (an older API does)."""
        try:
            service = await self._inspect(name)
        except EngineUnavailable:
            service = None
        if service is None:
            self._hardening_checked = False
            return
        if lost := specs.lost_hardening(service["Spec"]["TaskTemplate"]):
            log.warning("this Docker does not keep some protections of containers; a newer one does", lost=lost)


def _take_away(api: Api, service: Mapping[str, Any]) -> None:
    """The update that ends the task and keeps its record: a new version of the service that fits no node."""
    spec = service["Spec"]
    template = spec["TaskTemplate"]
    placement = {**(template.get("Placement") or {}), "Constraints": [specs.NOWHERE]}
    api.update_service(
        service["ID"],
        service["Version"]["Index"],
        task_template={**template, "Placement": placement, "ForceUpdate": template.get("ForceUpdate", 0) + 1},
        name=spec["Name"],
        labels={**spec["Labels"], specs.LABEL_STOPPED: "true"},
        mode=spec["Mode"],
        endpoint_spec=spec.get("EndpointSpec"),
    )


def _events_with_a_beginning(api: Api) -> Source[dict[str, Any]]:
    """The event stream, with an empty event first: from here on nothing is missed."""
    source = open_events(api, ["service", "node", "container"])

    def items() -> Iterator[dict[str, Any]]:
        yield {}
        yield from source.items

    return Source(items(), source.close)


def _hint(event: Mapping[str, Any]) -> Hint | None:
    attributes = (event.get("Actor") or {}).get("Attributes") or {}
    match event.get("Type"):
        case "service":
            return Hint("workload", attributes.get("name", ""))
        case "node":
            return Hint("node", (event.get("Actor") or {}).get("ID", ""))
        case "container" if attributes.get(LABEL_MANAGED) == "true" and event.get("Action") in ("start", "die", "oom"):
            return Hint("workload", attributes.get("com.docker.swarm.service.name", ""))
        case _:
            return None


def _backoff_s(failures: int) -> float:
    """Full jitter: anything up to 0.5 s doubled per failure, so that many clients do not come back at once."""
    return random.uniform(0, min(LONGEST_BACKOFF_S, 0.5 * 2 ** min(failures, 10)))
