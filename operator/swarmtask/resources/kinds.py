"""Kind <-> model <-> plural, for our own kinds and for the few Kubernetes kinds that the operator and the CLI use.

Called by the client, the CRD generator and the API server's admission. A `Kind` says how to address objects; `model` is set for our
own kinds only.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from swarmtask.resources.meta import GROUP, VERSION, Model
from swarmtask.resources.node import SwarmNode
from swarmtask.resources.queue import SwarmQueue
from swarmtask.resources.task import SwarmTask


@dataclass(frozen=True, slots=True)
class Column:
    """A printer column, as `additionalPrinterColumns` of a CRD.

    Attributes:
        type: integer | number | string | boolean | date.
        priority: 0 = always shown, 1 = with `-o wide`.
    """

    name: str
    json_path: str
    type: str = "string"
    priority: int = 0
    description: str = ""


@dataclass(frozen=True, slots=True)
class Kind:
    """How objects of one kind are addressed."""

    group: str
    version: str
    kind: str
    plural: str
    namespaced: bool
    singular: str = ""
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    model: type[Model] | None = None
    columns: tuple[Column, ...] = field(default=(), repr=False)

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def crd_name(self) -> str:
        return f"{self.plural}.{self.group}"

    def path(self, namespace: str | None = None, name: str | None = None, subresource: str | None = None) -> str:
        """URL path of a collection, an object or a subresource. `namespace` None means all namespaces."""
        parts = ["/apis", self.group, self.version] if self.group else ["/api", self.version]
        if self.namespaced and namespace is not None:
            parts += ["namespaces", namespace]
        parts.append(self.plural)
        if name is not None:
            parts.append(name)
            if subresource is not None:
                parts.append(subresource)
        return "/".join(parts)


SWARM_TASK = Kind(
    GROUP, VERSION, "SwarmTask", "swarmtasks", namespaced=True, singular="swarmtask", short_names=("st",),
    categories=("swarm", "all"),
    model=SwarmTask,
    columns=(
        Column("Phase", ".status.phase", description="Where the task is."),
        Column("Queue", ".spec.queue", description="The queue it waits in."),
        Column("Position", ".status.queuePosition", "integer", description="Place in the queue."),
        Column("Node", ".status.nodeName", description="Node of the current attempt."),
        Column("Attempt", ".status.attempt", "integer", description="Number of the newest attempt."),
        Column("Reason", ".status.reason", description="Typed reason."),
        Column("Age", ".metadata.creationTimestamp", "date", description="Since creation."),
        Column("Engine", ".status.engine", priority=1, description="Engine of the current attempt."),
        Column("Image", ".spec.container.image", priority=1, description="Image."),
        Column("Exit", ".status.exitCode", "integer", 1, "Exit code of the newest finished attempt."),
        Column("Peak-Memory", ".status.peakMemory", priority=1, description="Memory that the newest attempt used."),
        Column("Started", ".status.startTime", "date", 1, "Since the first start."),
        Column("Finished", ".status.completionTime", "date", 1, "Since the end."),
        Column("Estimated-Start", ".status.estimatedStartTime", priority=1, description="When it may start, while it waits."),
        Column("Done", ".status.array.progress", priority=1, description="Runs of an array that have ended, of all."),
    ),
)  # fmt: skip
SWARM_NODE = Kind(
    GROUP, VERSION, "SwarmNode", "swarmnodes", namespaced=False, singular="swarmnode", short_names=("sn",), categories=("swarm",),
    model=SwarmNode,
    columns=(
        Column("Phase", ".status.phase", description="One word for the node."),
        Column("Tasks", ".status.tasks", "integer", description="Attempts bound here."),
        Column("CPU", ".status.allocatable.cpu", description="Cores offered to tasks."),
        Column("Memory", ".status.allocatable.memory", description="Memory offered to tasks."),
        Column("GPU", ".status.allocatable.gpu", "integer", description="GPUs offered to tasks."),
        Column("Cordoned", ".spec.unschedulable", "boolean", description="No new attempts."),
        Column("Age", ".metadata.creationTimestamp", "date", description="Since the node was first seen."),
        Column("Max-Tasks", ".spec.maxTasks", "integer", 1, "Attempts at the same time."),
        Column("CPU-Requested", ".status.requested.cpu", priority=1, description="Cores held by attempts."),
        Column("Memory-Requested", ".status.requested.memory", priority=1, description="Memory held by attempts."),
        Column("CPU-Reserved", ".spec.reserved.cpu", priority=1, description="Cores kept for the machine's owner."),
        Column("Memory-Reserved", ".spec.reserved.memory", priority=1, description="Memory kept for the machine's owner."),
        Column("Quiet-Hours", ".spec.quietHours", priority=1, description="When no new attempts start here."),
        Column("Capabilities", ".spec.capabilities", priority=1, description="What the node offers, by a person's word."),
        Column("Found", ".status.capabilities", priority=1, description="What it offers by its agent's word."),
        Column("Arch", ".status.arch", priority=1, description="Architecture."),
        Column("Address", ".status.address", priority=1, description="Address by which the engine reaches it."),
    ),
)  # fmt: skip
SWARM_QUEUE = Kind(
    GROUP, VERSION, "SwarmQueue", "swarmqueues", namespaced=True, singular="swarmqueue", short_names=("sq",), categories=("swarm",),
    model=SwarmQueue,
    columns=(
        Column("Queued", ".status.queued", "integer", description="Tasks that wait."),
        Column("Running", ".status.running", "integer", description="Tasks bound to a node."),
        Column("Max-Running", ".spec.maxRunning", "integer", description="Tasks bound at the same time."),
        Column("Dead", ".status.deadLetters", "integer", description="Dead letters."),
        Column("Stopped", ".spec.stopped", "boolean", description="Nothing starts."),
        Column("Age", ".metadata.creationTimestamp", "date", description="Since creation."),
        Column("Max-Per-Node", ".spec.maxRunningPerNode", "integer", 1, "Tasks bound to one node at the same time."),
        Column("Oldest", ".status.oldestQueuedTime", "date", 1, "Since when the oldest one waits."),
        Column("Per-Minute", ".status.throughputPerMinute", "number", 1, "Tasks that finished per minute, of ten minutes."),
        Column("Wait-P50", ".status.waitSecondsP50", "integer", 1, "Half of those that started in the last hour waited no longer."),
        Column("Wait-P99", ".status.waitSecondsP99", "integer", 1, "99 of 100 that started in the last hour waited no longer."),
    ),
)  # fmt: skip
OWN_KINDS = (SWARM_TASK, SWARM_NODE, SWARM_QUEUE)

NAMESPACE = Kind("", "v1", "Namespace", "namespaces", namespaced=False, singular="namespace", short_names=("ns",))
SECRET = Kind("", "v1", "Secret", "secrets", namespaced=True, singular="secret")
CONFIG_MAP = Kind("", "v1", "ConfigMap", "configmaps", namespaced=True, singular="configmap", short_names=("cm",))
SERVICE_ACCOUNT = Kind(
    "", "v1", "ServiceAccount", "serviceaccounts", namespaced=True, singular="serviceaccount", short_names=("sa",)
)
EVENT = Kind("", "v1", "Event", "events", namespaced=True, singular="event", short_names=("ev",))
LEASE = Kind("coordination.k8s.io", "v1", "Lease", "leases", namespaced=True, singular="lease")
ROLE_BINDING = Kind("rbac.authorization.k8s.io", "v1", "RoleBinding", "rolebindings", namespaced=True, singular="rolebinding")
CLUSTER_ROLE_BINDING = Kind(
    "rbac.authorization.k8s.io", "v1", "ClusterRoleBinding", "clusterrolebindings", namespaced=False, singular="clusterrolebinding"
)
ACCESS_TOKEN = Kind("access.swarmtask.io", "v1alpha1", "AccessToken", "accesstokens", namespaced=False, singular="accesstoken")
SECRETS_KEY_ROTATION = Kind("access.swarmtask.io", "v1alpha1", "SecretsKeyRotation", "secretskeyrotations", namespaced=False)
CUSTOM_RESOURCE_DEFINITION = Kind(
    "apiextensions.k8s.io", "v1", "CustomResourceDefinition", "customresourcedefinitions", namespaced=False,
    singular="customresourcedefinition", short_names=("crd", "crds"), categories=("api-extensions",),
)  # fmt: skip
