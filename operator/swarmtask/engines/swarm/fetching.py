"""Nodes fetch a new image of the node agent before their agents are told to stop.

Called by `agents`, in a thread of the client. Swarm stops the old task of a global service while the node still fetches the image
of the new one (SwarmKit, `updater.updateTask`, order stop-first; with start-first two agents of one node would write the same
files). On a slow link that takes longer than the fence lasts, and the new agent would end all that is fenced there. So, while nodes
fetch an image, there is one more global service, which starts it once on every node and does nothing else.

Which of them have it is read from its tasks. No node is waited for that sleeps, takes no new tasks or runs no agent, and the others
for FETCH_S together. It never touches the service of the agents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from docker.errors import NotFound

from swarmtask.engines.swarm import agent_spec as specs
from swarmtask.engines.swarm.client import Api

FETCH_S = 900.0
"""So long nodes may take: 0.2 MB a second for an image of 180 MB."""
FETCHED = frozenset({"ready", "starting", "running", "complete", "failed"})
"""States of a task whose node has its image; one that cannot get it is `rejected`. Source: SwarmKit, design/task_model.md."""
GUARDED = frozenset({"starting", "running"})
"""States of an agent that may have something to stop: Swarm calls it `starting` until its first health check, for half a minute."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far nodes are.

    Attributes:
        late: hostnames of those that have agents, could take the new ones now and have not their image.
        waited_for: these have time left. begun: just now they were told to fetch it.
    """

    late: tuple[str, ...] = ()
    waited_for: bool = False
    begun: bool = False


class Fetching:
    """See the module.

    Args:
        monotonic: seconds.
    """

    def __init__(self, cluster_id: str, monotonic: Callable[[], float]) -> None:
        self._cluster, self._names, self._monotonic = cluster_id, specs.Names(cluster_id), monotonic
        self._began: tuple[str, float] | None = None

    def look(self, api: Api, image: str, agents: specs.Json) -> Progress:
        """See that nodes fetch an image, and how far they are.

        Args:
            image: as nodes call it. agents: the service of the agents as it is now.
        """
        if agents["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"] == image:
            return Progress()
        name = self._names.fetching(image)
        found = self.end(api, but=name)
        begun = found is None
        if found is None:
            wanted = specs.fetching(image, self._cluster)
            found = str(api.create_service(
                wanted["TaskTemplate"], name=wanted["Name"], labels=wanted["Labels"], mode=wanted["Mode"],
                endpoint_spec=wanted["EndpointSpec"],
            )["ID"])  # fmt: skip
        if self._began is None or self._began[0] != image:
            self._began = (image, self._monotonic())
        tasks = {service: api.tasks({"service": service}) for service in (agents["ID"], found)}
        late = without(api.nodes(), agents=tasks[agents["ID"]], fetching=tasks[found])
        return Progress(late, bool(late) and self._monotonic() < self._began[1] + FETCH_S, begun)

    def end(self, api: Api, *, but: str = "") -> str | None:
        """Let nodes fetch nothing more, but by the service of this name; the ID of that, where it is there."""
        kept = None
        for service in api.services(filters=specs.part_filter(self._cluster, specs.PART_FETCHING)):
            if service["Spec"]["Name"] == but:
                kept = str(service["ID"])
                continue
            try:
                api.remove_service(service["ID"])
            except NotFound:  # somebody was faster
                continue
        if not but:
            self._began = None
        return kept


def without(
    nodes: Iterable[Mapping[str, Any]], *, agents: Iterable[Mapping[str, Any]], fetching: Iterable[Mapping[str, Any]]
) -> tuple[str, ...]:
    """Hostnames of nodes that an update would hit and that have not the image yet.

    Args:
        nodes: as Docker lists them. agents, fetching: likewise the tasks of the agents' service, and of the one that fetches.
    """
    guarded = {task.get("NodeID") for task in agents if _state(task) in GUARDED}
    have = {task.get("NodeID") for task in fetching if _state(task) in FETCHED}
    return tuple(sorted(
        str((node.get("Description") or {}).get("Hostname") or node["ID"])
        for node in nodes
        if node["ID"] in guarded - have and node["Status"]["State"] == "ready" and node["Spec"]["Availability"] == "active"
    ))  # fmt: skip


def _state(task: Mapping[str, Any]) -> str:
    return str((task.get("Status") or {}).get("State"))
