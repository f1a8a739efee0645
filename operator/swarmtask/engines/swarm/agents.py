"""Puts the node agent on every node of a swarm, and keeps it as it shall be: satisfies `engines.base.AgentHost`.

Built by `wiring`, called by `controllers.agents`. `agent_spec` says what shall be; here it is compared with what Swarm has, and
Swarm is told. Every step can be repeated and cut off: an object that is there under the name of its content is the right one, and
what no service refers to any more goes away at the next look. Another image is on the nodes before their agents are updated to it
(`fetching`); until then the present version goes on, with the credential and the address of today. An update that waits for a node
which fell asleep in the midst of it is told anew. Objects without our labels are never changed or removed.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from typing import Any

from docker.errors import APIError, NotFound

from swarmtask.engines.base import LABEL_CLUSTER, LABEL_SPEC_HASH, AgentWish
from swarmtask.engines.swarm import agent_spec as specs
from swarmtask.engines.swarm.client import AlreadyThere, Api, DockerClient, Missing, OutOfDate
from swarmtask.engines.swarm.fetching import FETCH_S, Fetching, Progress
from swarmtask.engines.swarm.images import pinned
from swarmtask.engines.swarm.registry import Registry
from swarmtask.errors import EngineRejected, EngineUnavailable
from swarmtask.settings import AgentSettings, SwarmSettings

Json = dict[str, Any]


class SwarmAgents:
    """See the module.

    Args:
        cluster_id: of the control plane; only objects that carry it are ours.
        registry: brings images to where all nodes can pull them; None where nodes have the agent's image already.
        monotonic: seconds.
    """

    def __init__(
        self,
        docker: DockerClient,
        cluster_id: str,
        registry: Registry | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._docker, self._cluster, self._names = docker, cluster_id, specs.Names(cluster_id)
        self._registry, self._fetching = registry, Fetching(cluster_id, monotonic)
        self._passed_over: frozenset[str] = frozenset()
        """IDs of nodes that were lost when Swarm was told to update: it does not wait for these."""

    @classmethod
    def of(cls, swarm: SwarmSettings, settings: AgentSettings, cluster_id: str) -> SwarmAgents:
        docker = DockerClient(swarm.docker_host, timeout_s=swarm.timeout_s, threads=2)
        return cls(docker, cluster_id, Registry.of(swarm, settings, cluster_id) if settings.images_port else None)

    def close(self) -> None:
        self._docker.close()
        if self._registry is not None:
            self._registry.close()

    async def address(self) -> str:
        info = await self._docker.call(lambda api: api.info())
        return str((info.get("Swarm") or {}).get("NodeAddr") or "")

    async def tokens(self) -> Sequence[str]:
        secrets, service = await self._docker.call(lambda api: (self._secrets(api), self._service(api)))
        used = specs.credential_in_use(service["Spec"]["TaskTemplate"]) if service is not None else ""
        found = sorted(secrets, key=lambda secret: (secret["ID"] != used, secret["CreatedAt"]))
        return [secret["Spec"]["Labels"][specs.LABEL_DIGEST] for secret in found]

    async def ensure(self, wish: AgentWish, token: str | None) -> str:
        image = await self._image(wish.image)
        for _ in range(3):
            try:
                return await self._docker.call(lambda api: self._reconcile(api, wish, image, token))
            except (OutOfDate, AlreadyThere):  # somebody else was at work since it was read
                continue
        raise EngineUnavailable("the service of the node agents kept changing while it was updated")

    async def remove(self) -> str:
        def all_of_it(api: Api) -> str:
            service = self._service(api)
            if service is not None:
                api.remove_service(service["ID"])
            self._fetching.end(api)
            left = self._sweep(api, keep=())
            return "removed the node agents" if service is not None or left else ""

        return await self._docker.call(all_of_it)

    # --- in a thread of the client ----------------------------------------------------------------------------------------

    def _reconcile(self, api: Api, wish: AgentWish, image: str, token: str | None) -> str:
        service = self._service(api)
        secret = self._secret(api, token, service)
        config = self._config(api, specs.kubeconfig(wish))
        template = specs.task_template(wish, self._cluster, image, secret=secret, config=config)
        wanted = specs.service(template, self._cluster)
        done = ""
        if service is None:
            done = "deployed the node agent to every node"
            _create(api, wanted)
        elif (service["Spec"].get("Labels") or {}).get(LABEL_SPEC_HASH) != wanted["Labels"][LABEL_SPEC_HASH]:
            progress = self._fetching.look(api, image, service)
            if progress.waited_for:
                return self._meanwhile(api, service, progress, secret=secret, config=config)
            done = _updated(progress)
            lost = _lost(api)
            _update(api, service, wanted, at_once=1 + len(progress.late))
            self._passed_over = lost
        elif (service.get("UpdateStatus") or {}).get("State") == "updating":
            done = self._go_on(api, service, wanted)
        self._fetching.end(api)
        self._sweep(api, keep=(secret[0], config[0]))
        return done

    def _meanwhile(self, api: Api, service: Json, progress: Progress, *, secret: tuple[str, str], config: tuple[str, str]) -> str:
        """Leave the agents as they are, arguments included, which may be for the new version alone; but let them reach the API."""
        done = "nodes fetch the new image of the node agents, which are updated then" if progress.begun else ""
        template = specs.with_access(service["Spec"]["TaskTemplate"], secret=secret, config=config)
        if template is not None:
            done = "gave the node agents another credential or address of the API; their new image is being fetched"
            _update(api, service, specs.service(template, self._cluster))
        self._sweep(api, keep=(secret[0], config[0]))
        return done

    def _go_on(self, api: Api, service: Json, wanted: Json) -> str:
        """Let an update go on that may wait for a node which was lost since. Swarm waits for its agent until it wakes up; but an
        update that begins passes over those that are lost (SwarmKit, `global.Orchestrator`)."""
        lost = _lost(api)
        if lost <= self._passed_over:
            self._passed_over = lost
            return ""
        told = {"Labels": wanted["Labels"] | {specs.LABEL_TOLD: str(service["Version"]["Index"])}}
        _update(api, service, wanted | told, at_once=service["Spec"]["UpdateConfig"]["Parallelism"])
        self._passed_over = lost
        return "a node was lost while the node agents are updated; the others are updated without waiting for it"

    def _service(self, api: Api) -> Json | None:
        """Our service. Raises EngineRejected: something else has its name."""
        try:
            service: Json = api.inspect_service(self._names.service)
        except NotFound:
            return None
        if service["Spec"]["Name"] != self._names.service:  # Docker also takes beginnings of IDs
            return None
        if not specs.is_part(service["Spec"].get("Labels"), self._cluster):
            raise EngineRejected(
                f"a service named {service['Spec']['Name']} exists and is not ours (it lacks the labels {specs.LABEL_PART} and "
                f"{LABEL_CLUSTER}): rename or remove it"
            )
        return service

    def _secrets(self, api: Api) -> list[Json]:
        listed: list[Json] = api.secrets(filters=specs.part_filter(self._cluster))
        return [item for item in listed if specs.LABEL_DIGEST in (item["Spec"].get("Labels") or {})]

    def _secret(self, api: Api, token: str | None, service: Json | None) -> tuple[str, str]:
        """(ID, name) of the secret that shall be in use: of the new credential, else that in use, else the newest."""
        secrets = self._secrets(api)
        if token is None:
            used = specs.credential_in_use(service["Spec"]["TaskTemplate"]) if service is not None else ""
            found = max(secrets, key=lambda secret: (secret["ID"] == used, secret["CreatedAt"]), default=None)
            if found is None:
                raise EngineUnavailable("the secret with the credential of the node agents is gone; a new one is made")
            return found["ID"], found["Spec"]["Name"]
        digest = hashlib.sha256(token.encode()).hexdigest()
        name = self._names.secret(digest)
        labels = specs.part_labels(self._cluster) | {specs.LABEL_DIGEST: digest}
        return _made(name, secrets, lambda: api.create_secret(name, token.encode(), labels=labels))

    def _config(self, api: Api, content: bytes) -> tuple[str, str]:
        name = self._names.config(content)
        present = api.configs(filters=specs.part_filter(self._cluster))
        return _made(name, present, lambda: api.create_config(name, content, labels=specs.part_labels(self._cluster)))

    def _sweep(self, api: Api, keep: tuple[str, ...]) -> int:
        """Remove secrets and configs of ours that are not to be kept; how many. What is in use stays until the next look."""
        removed = 0
        ours = specs.part_filter(self._cluster)
        for listed, remove in ((api.secrets(filters=ours), api.remove_secret), (api.configs(filters=ours), api.remove_config)):
            for item in listed:
                if item["ID"] not in keep:
                    removed += _removed(remove, item["ID"])
        return removed

    async def _image(self, image: str) -> str:
        """As all nodes can start it.

        Raises:
            EngineRejected: it is not on this machine.
        """
        try:
            found: Json = await self._docker.call(lambda api: api.inspect_image(image))
        except Missing as error:
            raise EngineRejected(
                f"the image {image} of the node agent is not on this machine: make it with `make image`, or pull it, or name "
                "another one in the setting agents.image"
            ) from error
        return pinned(found, image) if self._registry is None else await self._registry.publish(image)


def _made(name: str, present: Sequence[Json], create: Callable[[], Json]) -> tuple[str, str]:
    """(ID, name) of the object of that name; created where it is not there."""
    found = next((item for item in present if item["Spec"]["Name"] == name), None)
    return (found or create())["ID"], name


def _removed(remove: Callable[[str], Any], object_id: str) -> bool:
    try:
        remove(object_id)
    except APIError as error:
        if error.is_server_error():
            raise
        return False  # in use, or gone already
    return True


def _create(api: Api, wanted: Json) -> None:
    api.create_service(
        wanted["TaskTemplate"], name=wanted["Name"], labels=wanted["Labels"], mode=wanted["Mode"],
        update_config=wanted["UpdateConfig"], endpoint_spec=wanted["EndpointSpec"],
    )  # fmt: skip


def _lost(api: Api) -> frozenset[str]:
    return frozenset(str(node["ID"]) for node in api.nodes() if node["Status"]["State"] == "down")


def _updated(progress: Progress) -> str:
    if not progress.late:
        return "updated the node agents"
    return (
        f"updated the node agents, though {', '.join(progress.late)} could not fetch the image within {FETCH_S / 60:g} minutes: "
        "what is fenced there may be stopped and started elsewhere"
    )


def _update(api: Api, service: Json, wanted: Json, *, at_once: int = 1) -> None:
    """`at_once`: nodes of which Swarm waits for the agents together. It waits without end for one whose image does not come."""
    api.update_service(
        service["ID"], service["Version"]["Index"], task_template=wanted["TaskTemplate"], name=wanted["Name"],
        labels=wanted["Labels"], mode=wanted["Mode"], update_config=wanted["UpdateConfig"] | {"Parallelism": at_once},
        endpoint_spec=wanted["EndpointSpec"],
    )  # fmt: skip
