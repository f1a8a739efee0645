"""Field tables of the projected kinds: Node, Pod, their metrics, and the Eviction that drains send.

Called by `kinds.py` (what is served, explained and patched) and by the table of what can be decoded from protobuf. Only what a
projection can show is described; numbers are there for what clients may send as protobuf. Source: Kubernetes API reference.
"""

from __future__ import annotations

from typing import Any, Final

from swarmtask.apiserver.shapes import DELETE_OPTIONS, METADATA, Field, Message


def _text(name: str, description: str, **more: Any) -> Field:
    return Field(name, 0, "string", description, **more)


def _number(name: str, description: str) -> Field:
    return Field(name, 0, "int64", description)


def _condition(kind: str) -> Message:
    return Message(f"{kind}Condition", f"One fact about a {kind.lower()}.", (
        _text("type", "Name of the fact.", required=True),
        _text("status", "True, False or Unknown.", required=True),
        Field("lastHeartbeatTime" if kind == "Node" else "lastProbeTime", 0, "Time", "When it was looked at last."),
        Field("lastTransitionTime", 0, "Time", "When the status changed last."),
        _text("reason", "One word for machines."),
        _text("message", "A sentence for people."),
    ))  # fmt: skip


# --- Node ----------------------------------------------------------------------------------------------------------------

TAINT = Message("Taint", "Keeps away what does not tolerate it.", (
    _text("key", "Name of the taint.", required=True),
    _text("value", "Compared by tolerations with operator Equal."),
    _text("effect", "NoSchedule, PreferNoSchedule or NoExecute.", required=True),
    Field("timeAdded", 0, "Time", "Not kept here."),
))  # fmt: skip
NODE_INFO = Message("NodeSystemInfo", "What the machine says of itself.", tuple(
    _text(name, description) for name, description in (
        ("machineID", "Not known here."), ("systemUUID", "Not known here."), ("bootID", "Another one: the machine was restarted."),
        ("kernelVersion", "Release of the kernel."), ("osImage", "Operating system."),
        ("containerRuntimeVersion", "Engines that reach the machine, and their versions."),
        ("kubeletVersion", "Version of the node agent."), ("kubeProxyVersion", "Not known here."),
        ("operatingSystem", "Operating system."), ("architecture", "Architecture."),
    )
))  # fmt: skip
NODE = Message("Node", "A machine: the SwarmNode of this name, in Kubernetes' words.", (
    METADATA,
    Field("spec", 0, Message("NodeSpec", "What a person says of it. Only unschedulable and taints can be written.", (
        Field("unschedulable", 0, "bool", "True: cordoned or drained, nothing new starts."),
        Field("taints", 0, TAINT, "Keep tasks away that do not tolerate them.", many="list"),
        _text("podCIDR", "Not used here."),
        _text("providerID", "Not used here."),
    )), "What a person says of it."),
    Field("status", 0, Message("NodeStatus", "What was reported.", (
        Field("capacity", 0, "string", "Total.", many="map"),
        Field("allocatable", 0, "string", "Offered to tasks.", many="map"),
        Field("conditions", 0, _condition("Node"), "Facts.", many="list", merge_key="type", list_type="map", list_keys=("type",)),
        Field("addresses", 0, Message("NodeAddress", "How it is reached.", (
            _text("type", "InternalIP or Hostname.", required=True), _text("address", "The address.", required=True),
        )), "How it is reached.", many="list", merge_key="type", list_type="map", list_keys=("type",)),
        Field("nodeInfo", 0, NODE_INFO, "What the machine says of itself."),
    )), "What was reported."),
))  # fmt: skip

# --- Pod -----------------------------------------------------------------------------------------------------------------

_STATE = Message("ContainerState", "Where the container is; one of the three.", (
    Field("waiting", 0, Message("ContainerStateWaiting", "It has not started.", (
        _text("reason", "Why, for machines."), _text("message", "Why, for people."),
    )), "It has not started.", pointer=True),
    Field("running", 0, Message("ContainerStateRunning", "It runs.", (
        Field("startedAt", 0, "Time", "Since when."),
    )), "It runs.", pointer=True),
    Field("terminated", 0, Message("ContainerStateTerminated", "It has ended.", (
        _number("exitCode", "Of the main process."), _text("reason", "Why, for machines."), _text("message", "Why, for people."),
        Field("startedAt", 0, "Time", "When it ran."), Field("finishedAt", 0, "Time", "When it ended."),
        _text("containerID", "The engine's name of it."),
    )), "It has ended.", pointer=True),
))  # fmt: skip
_CONTAINER = Message("Container", "What runs.", (
    _text("name", "Always main.", required=True),
    _text("image", "Image, as the task has it now."),
    _text("imagePullPolicy", "Not used here."),
    _text("command", "Replaces the image's entry point.", many="list"),
    _text("args", "Replaces the image's arguments.", many="list"),
    _text("workingDir", "Working directory."),
    Field("env", 0, Message("EnvVar", "One environment variable.", (
        _text("name", "Name.", required=True), _text("value", "The value."),
        Field("valueFrom", 0, "any", "Where the value comes from."),
    )), "Environment variables, as the task has them now.", many="list", merge_key="name", list_type="map", list_keys=("name",)),
    Field("resources", 0, Message("ResourceRequirements", "What the attempt holds and may use.", (
        Field("requests", 0, "string", "Set aside on the node.", many="map"),
        Field("limits", 0, "string", "Upper bounds.", many="map"),
    )), "What the attempt holds and may use."),
))  # fmt: skip
_CONTAINER_STATUS = Message("ContainerStatus", "State of the container.", (
    _text("name", "Always main.", required=True),
    Field("state", 0, _STATE, "Where it is."),
    Field("lastState", 0, _STATE, "Empty: an attempt is never started again."),
    Field("ready", 0, "bool", "It runs."),
    Field("started", 0, "bool", "It runs.", pointer=True),
    _number("restartCount", "Always 0: every retry is a pod of its own."),
    _text("image", "Image."), _text("imageID", "Not known here."), _text("containerID", "The engine's name of it."),
))  # fmt: skip
POD = Message("Pod", "An attempt of a SwarmTask, in Kubernetes' words. It can be read and deleted.", (
    METADATA,
    Field("spec", 0, Message("PodSpec", "What runs, and where.", (
        Field("containers", 0, _CONTAINER, "Always one.", many="list", required=True, merge_key="name", list_type="map",
              list_keys=("name",)),
        _text("nodeName", "The node that it was bound to."),
        _text("restartPolicy", "Always Never."), _text("schedulerName", "Always swarmtask."),
        Field("securityContext", 0, Message("PodSecurityContext", "Always empty.", ()), "Always empty."),
        _number("terminationGracePeriodSeconds", "Between SIGTERM and SIGKILL."),
        _number("activeDeadlineSeconds", "Longest run."),
        _number("priority", "Higher starts first."), _text("priorityClassName", "A name for the priority."),
        Field("nodeSelector", 0, "string", "Labels that the node must carry.", many="map"),
        Field("tolerations", 0, Message("Toleration", "A taint that does not keep it away.", (
            _text("key", "Name of the taint."), _text("operator", "Equal or Exists."), _text("value", "Value of the taint."),
            _text("effect", "Effect of the taint."),
        )), "Taints that do not keep it away.", many="list"),
    )), "What runs, and where."),
    Field("status", 0, Message("PodStatus", "How it is.", (
        _text("phase", "Pending, Running, Succeeded, Failed or Unknown."),
        _text("reason", "Why, for machines."), _text("message", "Why, for people."),
        Field("startTime", 0, "Time", "When it was placed."),
        Field("conditions", 0, _condition("Pod"), "Facts.", many="list", merge_key="type", list_type="map", list_keys=("type",)),
        Field("containerStatuses", 0, _CONTAINER_STATUS, "State of the container.", many="list"),
        _text("qosClass", "Always Burstable."),
    )), "How it is."),
))  # fmt: skip
EVICTION = Message("Eviction", "Asks for the end of a pod, for the sake of its node.", (
    METADATA,
    Field("deleteOptions", 2, DELETE_OPTIONS, "How to delete.", pointer=True),
))  # fmt: skip

# --- metrics.k8s.io ------------------------------------------------------------------------------------------------------

_MEASURED = (
    Field("timestamp", 0, "Time", "When it was told."),
    _text("window", "The time before that which the figures cover."),
)
_USAGE = Field("usage", 0, "string", "cpu in cores, memory in bytes.", many="map")
NODE_METRICS = Message("NodeMetrics", "What a machine uses, as its node agent measured it last.", (METADATA, *_MEASURED, _USAGE))
POD_METRICS = Message("PodMetrics", "What an attempt has used since it started, as its node agent told it.", (
    METADATA, *_MEASURED,
    Field("containers", 0, Message("ContainerMetrics", "Figures of the container.", (
        _text("name", "Always main."), _USAGE,
    )), "CPU as the average, memory as the most since the start.", many="list"),
))  # fmt: skip

PROJECTED_MESSAGES: Final[dict[tuple[str, str], Message]] = {
    ("v1", "Node"): NODE,
    ("v1", "Pod"): POD,
    ("metrics.k8s.io/v1beta1", "NodeMetrics"): NODE_METRICS,
    ("metrics.k8s.io/v1beta1", "PodMetrics"): POD_METRICS,
}
RECEIVED_MESSAGES: Final[dict[tuple[str, str], Message]] = {
    ("policy/v1", "Eviction"): EVICTION,
    ("policy/v1beta1", "Eviction"): EVICTION,
}
"""(apiVersion, kind) -> field table of what is posted to a projection, also in protobuf."""
