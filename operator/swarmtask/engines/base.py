"""The contract every engine keeps, and the values that cross it.

Called by the controllers (which know this module and no concrete engine) and by `wiring`, which builds the engines. One contract
suite (`tests/engines/contract.py`) runs on every implementation and on the recording fake.

Rules for every implementation:
- every call ends within its time-out (default 15 s) or raises `EngineUnavailable`; a slow engine never blocks the event loop;
- `submit`, `stop` and `remove` are idempotent; "already so" is success;
- `workloads()` is the truth: everything that carries our label, and nothing else. `watch()` gives hints that may be late, repeated,
  reordered or missing;
- objects without our label are never touched;
- foreign errors are mapped here to `EngineUnavailable` (transient), `EngineRejected` (permanent) or `WorkloadNotFound`.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Literal, Protocol

import orjson

from swarmtask.lifecycle.messages import FINAL_WORKLOAD_STATES, Observation, WorkloadState

LABEL_MANAGED = "swarmtask.io/managed"
"""Value `true` on everything we create on an engine; together with LABEL_CLUSTER it says what is ours."""
LABEL_CLUSTER = "swarmtask.io/cluster"
"""ID of the control plane that owns the object, so that two installations on one engine leave each other alone."""
LABEL_TASK_UID = "swarmtask.io/task-uid"
LABEL_TASK_NAMESPACE = "swarmtask.io/task-namespace"
LABEL_TASK_NAME = "swarmtask.io/task-name"
LABEL_ATTEMPT = "swarmtask.io/attempt"
LABEL_FENCE = "swarmtask.io/fence"
"""Value `true` on containers that the node agent stops when it cannot reach the API for as long as a fence takes."""
LABEL_PRIORITY = "swarmtask.io/priority"
"""The task's priority on its container: the agent evicts the least important one first."""
LABEL_GRACE = "swarmtask.io/grace-seconds"
LABEL_MEMORY_REQUEST = "swarmtask.io/memory-request"
"""What its task declared, for whoever must end it on its node: seconds between SIGTERM and SIGKILL, bytes that it was promised."""
LABEL_SPEC_HASH = "swarmtask.io/spec-hash"


class NodeState(StrEnum):
    """READY: takes work. DOWN: the engine has lost it. UNKNOWN: just joined, or the engine cannot say."""

    READY = "Ready"
    DOWN = "Down"
    UNKNOWN = "Unknown"


@dataclass(frozen=True, slots=True)
class EngineNode:
    """A node as its engine lists it.

    Attributes:
        id: the engine's own ID.
        available: False when the engine itself was told to give it nothing new (Swarm availability pause or drain).
        cpu_milli, memory_bytes, gpus: what the engine reports as total.
        labels: labels that the engine keeps for the node.
        joined_at: when the engine got to know it under this ID; None where it does not say.
        left: the engine has lost it, and the machine itself says that it is no part of it any more.
        gpu_vendors: whose GPUs the engine can give to attempts there; None: everybody's.
    """

    id: str
    hostname: str
    state: NodeState
    available: bool = True
    address: str = ""
    cpu_milli: int = 0
    memory_bytes: int = 0
    gpus: int = 0
    arch: str = ""
    os: str = ""
    engine_version: str = ""
    is_manager: bool = False
    message: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    joined_at: datetime | None = None
    left: bool = False
    gpu_vendors: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class GpuDevice:
    """One GPU of a node, by the number that its vendor's software counts it by on that node. `vendor`, `uuid`: empty while not
    known."""

    number: int
    vendor: str = ""
    uuid: str = ""


@dataclass(frozen=True, slots=True)
class Workload:
    """What to run for one attempt. All strings are literal: an engine that knows templates must escape them.

    Attributes:
        name: attempt ID; unique, at most 63 characters of [a-z0-9-].
        node_id: the engine's own ID of the node it is pinned to.
        command, args: replace the image's entry point and arguments; empty means the image's own.
        env: values already resolved (secrets included); never logged.
        gpus, gpu_devices: how many GPUs the attempt holds, and which; none are named where that was not recorded.
        fence, priority: told to the node agent by labels, as are grace_s and memory_request_bytes: see LABEL_FENCE.
        memory_limit_bytes: hard limit. cpu_limit_milli: None means not limited.
        grace_s: seconds between SIGTERM and SIGKILL.
    """

    name: str
    task_uid: str
    namespace: str
    task_name: str
    attempt: int
    node_id: str
    image: str
    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    working_dir: str = ""
    cpu_request_milli: int = 0
    memory_request_bytes: int = 0
    gpus: int = 0
    cpu_limit_milli: int | None = None
    memory_limit_bytes: int | None = None
    grace_s: int = 10
    gpu_devices: tuple[GpuDevice, ...] = ()
    fence: bool = True
    priority: int = 0

    def __repr__(self) -> str:  # env may hold secrets
        return f"Workload({self.name!r}, image={self.image!r}, node_id={self.node_id!r})"

    @property
    def spec_hash(self) -> str:
        """Hash of everything that decides what runs; shows where a repeated submit came too late for an edit.

        Which GPUs it sees is left out: they follow from the name, and of attempts that were bound by an older operator what is
        known of them may change between two submits.
        """
        parts = [
            self.name, self.task_uid, self.attempt, self.node_id, self.image, list(self.command), list(self.args),
            [list(pair) for pair in self.env], self.working_dir, self.cpu_request_milli, self.memory_request_bytes, self.gpus,
            self.cpu_limit_milli, self.memory_limit_bytes, self.grace_s,
        ]  # fmt: skip
        return hashlib.sha256(orjson.dumps(parts)).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class EngineCapabilities:
    """What an engine can do; the controllers ask this, never the engine's name.

    Attributes:
        isolates: attempts run in containers of their own.
        pulls_images: `image` is used at all.
        keeps_logs_after_exit: `logs` works until `remove`.
        remote_nodes: it has other nodes than this machine.
    """

    isolates: bool
    pulls_images: bool
    keeps_logs_after_exit: bool
    remote_nodes: bool


@dataclass(frozen=True, slots=True)
class Hint:
    """Something may have changed: look again.

    Attributes:
        subject: workload -> poll `workloads()`; node -> poll `nodes()`; resync -> the stream was interrupted, poll both.
    """

    subject: Literal["workload", "node", "resync"]
    name: str = ""


class Availability(StrEnum):
    """ACTIVE: takes work. PAUSE: nothing new. DRAIN: nothing new, and the engine moves its own work away."""

    ACTIVE = "active"
    PAUSE = "pause"
    DRAIN = "drain"


@dataclass(frozen=True, slots=True)
class AgentWish:
    """What the node agents of an engine's nodes shall be like.

    Attributes:
        image: as an administrator names it; the host finds out what nodes can start.
        server: the API as nodes reach it, https://HOST:PORT. ca: certificates of its authority, PEM.
        fence_s, fence_grace_s: `--fence-seconds` and `--fence-grace` of the agent.
        capabilities: what every node offers beside what is detected.
    """

    image: str
    server: str
    ca: str
    fence_s: int
    fence_grace_s: int
    capabilities: tuple[str, ...] = ()
    log_level: str = "info"


class AgentHost(Protocol):
    """An engine that can run a node agent on each of its nodes, those to come included."""

    async def address(self) -> str:
        """How nodes reach this machine: an IP address; empty where the engine does not know."""
        ...

    async def tokens(self) -> Sequence[str]:
        """SHA-256 (hex) of the shared credentials that the engine keeps for agents; that in use comes first."""
        ...

    async def ensure(self, wish: AgentWish, token: str | None) -> str:
        """Make the agents as wished. Idempotent: what is there and right is left alone, what is not ours is never touched.
        What takes longer, such as an image on its way to nodes, goes on with the next call.

        Args:
            token: a new credential for all of them; None keeps that in use.

        Returns:
            What was done, for a log; empty: nothing.

        Raises:
            EngineRejected: it cannot be done so, says what to change. EngineUnavailable: not now.
        """
        ...

    async def remove(self) -> str:
        """Take the agents away, and all that was made for them. Returns what was done; empty: there were none."""
        ...


class Engine(Protocol):
    """One system that runs containers (or processes) on nodes."""

    @property
    def name(self) -> str:
        """swarm, local, nomad."""
        ...

    @property
    def capabilities(self) -> EngineCapabilities: ...

    async def start(self) -> None:
        """Connect and check that the engine can be used. Raises ConfigurationError saying what to do, or EngineUnavailable."""
        ...

    async def aclose(self) -> None:
        """Let go of connections. Running attempts are left alone."""
        ...

    async def nodes(self) -> Sequence[EngineNode]: ...

    async def submit(self, workload: Workload) -> None:
        """Create the workload. One that is there for the same attempt of the same task is success, and stays as it is: whoever
        submits again does not know that the first time worked, and the task or a secret may have been edited in between. What
        arrived first is the attempt. Something else of that name is `EngineRejected`."""
        ...

    async def stop(self, name: str, grace_s: int) -> None:
        """Begin to stop: SIGTERM now, SIGKILL after `grace_s` seconds. Returns when the engine has accepted it, not when it has
        ended; the end shows up in `workloads()`. An unknown or finished name is success. An engine that fixes the grace when
        it accepts a workload (Swarm) keeps to `Workload.grace_s`."""
        ...

    async def remove(self, name: str) -> None:
        """Remove the engine-side object, stopping it at once where it still runs. An unknown name is success."""
        ...

    async def workloads(self) -> Sequence[Observation]:
        """Everything of this cluster that carries our label."""
        ...

    def watch(self) -> AsyncIterator[Hint]:
        """Hints until closed. Reconnects by itself with backoff; gives `resync` after every gap."""
        ...

    def logs(self, name: str, *, follow: bool = False, tail: int | None = None, timestamps: bool = False) -> AsyncIterator[bytes]:
        """Output of the workload, stdout and stderr interleaved, in chunks of whole lines where the engine allows.

        Raises:
            WorkloadNotFound: there is no such workload (any more).
        """
        ...

    async def label_node(self, node_id: str, labels: Mapping[str, str | None]) -> None:
        """Set engine labels of a node; None removes. Labels that are not named stay."""
        ...

    async def set_availability(self, node_id: str, availability: Availability) -> None: ...


__all__ = [
    "FINAL_WORKLOAD_STATES", "LABEL_ATTEMPT", "LABEL_CLUSTER", "LABEL_FENCE", "LABEL_GRACE", "LABEL_MANAGED",
    "LABEL_MEMORY_REQUEST", "LABEL_PRIORITY", "LABEL_SPEC_HASH", "LABEL_TASK_NAME", "LABEL_TASK_NAMESPACE", "LABEL_TASK_UID",
    "AgentHost", "AgentWish", "Availability", "Engine", "EngineCapabilities", "EngineNode",
    "GpuDevice", "Hint", "NodeState", "Observation", "Workload", "WorkloadState",
]  # fmt: skip
