"""Which kinds are served without being stored: Node and Pod, their metrics, and kinds of which there never is anything.

Called by `builtins` (discovery, OpenAPI, Tables) and by the handlers. Values only.

Kubernetes' workloads, volumes and services are served as empty, read-only lists: `kubectl apply --prune`, `kubectl cluster-info`
and the programs that people look at clusters with list them and give up where they are unknown. Creating one is refused with what
to write instead; a type that took a Deployment and never ran it would be worse than none.
"""

from __future__ import annotations

from swarmtask.apiserver.projections.messages import PROJECTED_MESSAGES
from swarmtask.apiserver.records import Collection
from swarmtask.apiserver.shapes import schema_of
from swarmtask.apiserver.types import ResourceType
from swarmtask.resources.kinds import Column

_READ = ("get", "list", "watch")
NODE_METRICS: Collection = ("metrics.k8s.io", "nodes")
POD_METRICS: Collection = ("metrics.k8s.io", "pods")
_AGE = Column(
    "Age", ".metadata.creationTimestamp", "date", description="Time since the attempt was placed, or the node first seen."
)
_POD_COLUMNS = (
    Column("Ready", "@pod_ready", description="Containers that run, of all."),
    Column("Status", "@pod_status", description="Where the attempt is, or how it ended."),
    Column("Restarts", "@pod_restarts", "integer", description="Always 0: every retry is a pod of its own."),
    _AGE,
    Column("IP", "@pod_ip", priority=1, description="Not known."),
    Column("Node", "@pod_node", priority=1, description="The node that it was bound to."),
    Column("Nominated Node", "@none", priority=1, description="Not used."),
    Column("Readiness Gates", "@none", priority=1, description="Not used."),
)
_NODE_COLUMNS = (
    Column("Status", "@node_status", description="Whether it takes work."),
    Column("Roles", "@node_roles", description="By labels node-role.kubernetes.io/."),
    _AGE,
    Column("Version", "@node_version", description="Of the node agent."),
    Column("Internal-IP", "@node_address", priority=1, description="Address by which the engine reaches it."),
    Column("External-IP", "@none", priority=1, description="Not used."),
    Column("OS-Image", "@node_os", priority=1, description="Operating system."),
    Column("Kernel-Version", "@node_kernel", priority=1, description="Release of the kernel."),
    Column("Container-Runtime", "@node_runtime", priority=1, description="Engines that reach it."),
)
_POD_SELECTORS = (
    "spec.nodeName", "status.phase", "spec.restartPolicy", "spec.schedulerName", "spec.serviceAccountName", "spec.hostNetwork",
    "status.podIP", "status.nominatedNodeName",
)  # fmt: skip

_EMPTY = (
    ("", "v1", "Endpoints", "endpoints", "ep", True),
    ("", "v1", "LimitRange", "limitranges", "limits", True),
    ("", "v1", "PersistentVolumeClaim", "persistentvolumeclaims", "pvc", True),
    ("", "v1", "PersistentVolume", "persistentvolumes", "pv", False),
    ("", "v1", "ReplicationController", "replicationcontrollers", "rc", True),
    ("", "v1", "ResourceQuota", "resourcequotas", "quota", True),
    ("", "v1", "Service", "services", "svc", True),
    ("apps", "v1", "DaemonSet", "daemonsets", "ds", True),
    ("apps", "v1", "Deployment", "deployments", "deploy", True),
    ("apps", "v1", "ReplicaSet", "replicasets", "rs", True),
    ("apps", "v1", "StatefulSet", "statefulsets", "sts", True),
    ("autoscaling", "v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers", "hpa", True),
    ("autoscaling", "v1", "HorizontalPodAutoscaler", "horizontalpodautoscalers", "hpa", True),
    ("batch", "v1", "CronJob", "cronjobs", "cj", True),
    ("batch", "v1beta1", "CronJob", "cronjobs", "cj", True),
    ("batch", "v1", "Job", "jobs", "", True),
    ("extensions", "v1beta1", "Ingress", "ingresses", "ing", True),
    ("networking.k8s.io", "v1", "Ingress", "ingresses", "ing", True),
    ("policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets", "pdb", True),
    ("policy", "v1beta1", "PodDisruptionBudget", "poddisruptionbudgets", "pdb", True),
    ("scheduling.k8s.io", "v1", "PriorityClass", "priorityclasses", "pc", False),
)
"""(group, version, kind, plural, short name, namespaced)."""
_BOUNDS = "Bounds and defaults of what runs belong to a SwarmQueue (kubectl explain swarmqueue.spec)"
INSTEAD = {
    "LimitRange": _BOUNDS,
    "ResourceQuota": _BOUNDS,
    "PriorityClass": "A number is enough: spec.priority of a SwarmTask, weight of a SwarmQueue",
    "HorizontalPodAutoscaler": "A SwarmTask runs once, and as many at a time as fit: completions and parallelism of a SwarmTask, "
    "limits of a SwarmQueue",
}
"""What to use instead of a kind; of the others, what is to run once is a SwarmTask."""
EMPTY: frozenset[Collection] = frozenset((group, plural) for group, _, _, plural, _, _ in _EMPTY)


def projected_types() -> list[ResourceType]:
    """All of them, in the order in which discovery names them."""
    return [
        _type("v1", "Node", "nodes", namespaced=False, short_names=("no",), columns=_NODE_COLUMNS,
              verbs=("delete", "get", "list", "patch", "update", "watch"), field_selectors=("spec.unschedulable",)),
        _type("v1", "Pod", "pods", namespaced=True, short_names=("po",), categories=("all",), columns=_POD_COLUMNS,
              verbs=("delete", "deletecollection", "get", "list", "watch"), field_selectors=_POD_SELECTORS,
              subresources=frozenset({"log", "eviction", "exec"})),
        _type("metrics.k8s.io/v1beta1", "NodeMetrics", "nodes", namespaced=False, verbs=("get", "list"), columns=(
            Column("CPU", ".usage.cpu", description="Cores."), Column("Memory", ".usage.memory", description="Bytes."),
            Column("Window", ".window", description="The time that the figures cover."))),
        _type("metrics.k8s.io/v1beta1", "PodMetrics", "pods", namespaced=True, verbs=("get", "list"), columns=(
            Column("CPU", "@usage_cpu", description="Cores, on average since the start."),
            Column("Memory", "@usage_memory", description="Bytes, the most since the start."),
            Column("Window", ".window", description="The time that the figures cover."))),
        *(
            ResourceType(
                group, version, kind, plural, kind.lower(), namespaced, list_kind=f"{kind}List", stored=False, verbs=_READ,
                short_names=(short,) if short else (), columns=(_AGE,),
            )
            for group, version, kind, plural, short, namespaced in _EMPTY
        ),
    ]  # fmt: skip


def _type(
    api_version: str, kind: str, plural: str, *, namespaced: bool, verbs: tuple[str, ...], columns: tuple[Column, ...],
    short_names: tuple[str, ...] = (), categories: tuple[str, ...] = (), field_selectors: tuple[str, ...] = (),
    subresources: frozenset[str] = frozenset(),
) -> ResourceType:  # fmt: skip
    group, _, version = api_version.rpartition("/")
    return ResourceType(
        group, version, kind, plural, "" if group else kind.lower(), namespaced, list_kind=f"{kind}List", stored=False,
        schema=schema_of(PROJECTED_MESSAGES[api_version, kind], (group, version, kind)), verbs=verbs, columns=columns,
        short_names=short_names, categories=categories, field_selectors=field_selectors, subresources=subresources,
    )  # fmt: skip
