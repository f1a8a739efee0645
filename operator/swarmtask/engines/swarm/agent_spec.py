"""The node agents' Swarm objects: a global service, a secret with the shared credential, a config that says where the API is. Pure.

Called by `agents` and `fetching`. Everything is built from settings field by field. Names hold a hash of what is in an object,
because Swarm never changes a secret or a config: other content is another object, and the service is moved to it. The service's
label LABEL_SPEC_HASH is the hash of all that was wished, so that a look at it tells whether it has to be updated.

What the agent is given of its machine, and why: Docker's socket (it sees attempts and stops them), /proc read-only (figures of the
machine, where containers' cgroups are), /sys/fs/cgroup (figures of containers; `cgroup.kill` where Docker is dead), the host's
network (the API as the machine itself reaches it, also while Docker's networks are not up), a volume of its own (ends of attempts,
its own token). Root, because sockets and cgroups belong to root, but without any capability, on a read-only root file system.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson
import yaml

from swarmtask.clock import NANOS_PER_S
from swarmtask.engines.base import LABEL_CLUSTER, LABEL_SPEC_HASH, AgentWish
from swarmtask.engines.swarm.spec import escape

LABEL_PART = "swarmtask.io/part"
"""What an object of the control plane's own is; never together with LABEL_MANAGED, which marks attempts."""
PART_AGENT, PART_FETCHING = "node-agent", "node-agent-image"
LABEL_DIGEST = "swarmtask.io/credential-sha256"
"""On the secret: SHA-256 of the credential in it, which is how the API knows it."""
LABEL_TOLD = "swarmtask.io/update-told-again"
"""On the service of the agents. Its value says nothing: Swarm begins an update anew only where something has changed."""
TOKEN_FILE = "swarmtask-bootstrap"  # noqa: S105 - a name
KUBECONFIG_FILE = "/etc/swarmtask/node-agent.kubeconfig"
STATE = "/var/lib/swarmtask/node-agent"
TLS_NAME = "swarmtask"
"""The API's certificate always has this name: so it holds whatever address the machine has got from its router today."""
NO_CHECK = ["NONE"]
"""The image's own health check asks for a node agent: where none is, Swarm would end the container every other minute."""
MEMORY_LIMIT_BYTES = 160 * 2**20
"""Four times what it needs: an agent that leaks is started anew before it harms the machine."""

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Names:
    """Of the objects of one control plane: two of them on one swarm leave each other alone."""

    cluster_id: str

    @property
    def _short(self) -> str:
        return self.cluster_id.replace("-", "")[:12]

    @property
    def service(self) -> str:
        return f"swarmtask-node-agent-{self._short}"

    @property
    def volume(self) -> str:
        return self.service

    @property
    def images(self) -> str:
        """Of the service from which nodes fetch images, and of its volume."""
        return f"swarmtask-images-{self._short}"

    def fetching(self, image: str) -> str:
        """Of the service by which nodes fetch this image of the agent."""
        return f"swarmtask-node-agent-image-{self._short}-{hashlib.sha256(image.encode()).hexdigest()[:16]}"

    def secret(self, digest: str) -> str:
        return f"swarmtask-bootstrap-{self._short}-{digest[:16]}"

    def config(self, content: bytes) -> str:
        return f"swarmtask-api-{self._short}-{hashlib.sha256(content).hexdigest()[:16]}"


def part_labels(cluster_id: str, part: str = PART_AGENT) -> dict[str, str]:
    return {LABEL_PART: part, LABEL_CLUSTER: cluster_id}


def part_filter(cluster_id: str, part: str = PART_AGENT) -> dict[str, list[str]]:
    """What listings are asked for: the control plane's own objects and nothing else."""
    return {"label": [f"{key}={value}" for key, value in part_labels(cluster_id, part).items()]}


def kubeconfig(wish: AgentWish) -> bytes:
    """Where the API is, for every node: the credential lies in a file of its own."""
    authority = base64.b64encode(wish.ca.encode()).decode()
    cluster = {"server": wish.server, "certificate-authority-data": authority, "tls-server-name": TLS_NAME}
    document = {
        "apiVersion": "v1", "kind": "Config", "current-context": "node",
        "clusters": [{"name": "swarmtask", "cluster": cluster}],
        "users": [{"name": "bootstrap", "user": {"tokenFile": f"/run/secrets/{TOKEN_FILE}"}}],
        "contexts": [{"name": "node", "context": {"cluster": "swarmtask", "user": "bootstrap"}}],
    }  # fmt: skip
    return yaml.safe_dump(document, sort_keys=True).encode()


def task_template(wish: AgentWish, cluster_id: str, image: str, *, secret: tuple[str, str], config: tuple[str, str]) -> Json:
    """`TaskTemplate` of the service.

    Args:
        image: what `wish.image` was resolved to.
        secret, config: (ID, name) of the objects to give to it.
    """
    names = Names(cluster_id)
    arguments = [
        "node-agent", "--bootstrap", "--kubeconfig", KUBECONFIG_FILE, "--cluster-id", cluster_id,
        "--state", STATE, "--disk", STATE, "--docker", "/var/run/docker.sock", "--proc", "/host/proc", "--cgroups", "/host/cgroup",
        "--fence-seconds", str(wish.fence_s), "--fence-grace", str(wish.fence_grace_s), "--log-level", wish.log_level,
        *(part for name in wish.capabilities for part in ("--capability", name)),
    ]  # fmt: skip
    container: Json = {
        "Image": image,
        "Command": ["swarmtask"],
        "Args": [escape(argument) for argument in arguments],
        "Env": [
            "SWARMTASK_AGENT_ENGINE_NODE=swarm/{{.Node.ID}}",
            "NVIDIA_VISIBLE_DEVICES=all", "NVIDIA_DRIVER_CAPABILITIES=utility",
        ],
        "User": "0:0",
        "Labels": part_labels(cluster_id),
        "ReadOnly": True,
        "Init": True,
        "CapabilityDrop": ["ALL"],
        "Privileges": {"NoNewPrivileges": True},
        "StopGracePeriod": 5 * NANOS_PER_S,
        "Healthcheck": {
            "Test": ["CMD", "swarmtask-agent-health", STATE],
            "Interval": 30 * NANOS_PER_S, "Timeout": 10 * NANOS_PER_S, "StartPeriod": 60 * NANOS_PER_S, "Retries": 3,
        },
        "Mounts": [
            {"Type": "bind", "Source": "/var/run/docker.sock", "Target": "/var/run/docker.sock"},
            {"Type": "bind", "Source": "/proc", "Target": "/host/proc", "ReadOnly": True},
            {"Type": "bind", "Source": "/sys/fs/cgroup", "Target": "/host/cgroup"},
            {"Type": "volume", "Source": names.volume, "Target": STATE},
            {"Type": "tmpfs", "Target": "/tmp", "TmpfsOptions": {"SizeBytes": 16 * 2**20, "Mode": 0o1777}},  # noqa: S108
        ],
    }  # fmt: skip
    return {
        "ContainerSpec": container | _access(secret, config),
        "Networks": [{"Target": "host"}],
        "RestartPolicy": {"Condition": "any", "Delay": 2 * NANOS_PER_S, "MaxAttempts": 0},
        "Resources": {"Limits": {"MemoryBytes": MEMORY_LIMIT_BYTES, "Pids": 128}},
        "LogDriver": {"Name": "json-file", "Options": {"max-size": "4m", "max-file": "2"}},
    }


def service(template: Json, cluster_id: str) -> Json:
    """The whole service, as it is created and updated, with the hash of all that in its label."""
    spec: Json = {
        "Name": Names(cluster_id).service,
        "TaskTemplate": template,
        "Mode": {"Global": {}},
        "UpdateConfig": {"Parallelism": 1, "Delay": 0, "FailureAction": "continue", "Order": "stop-first"},
        "EndpointSpec": {"Mode": "dnsrr"},
    }
    return spec | {"Labels": part_labels(cluster_id) | {LABEL_SPEC_HASH: hash_of(spec)}}


def with_access(template: Json, *, secret: tuple[str, str], config: tuple[str, str]) -> Json | None:
    """A stored `TaskTemplate` with these objects in the place of its own, and otherwise as it is; None: it has them."""
    container = template["ContainerSpec"]
    secrets = [item["SecretID"] for item in container.get("Secrets") or ()]
    configs = [item["ConfigID"] for item in container.get("Configs") or ()]
    if (secrets, configs) == ([secret[0]], [config[0]]):
        return None
    return template | {"ContainerSpec": container | _access(secret, config)}


def _access(secret: tuple[str, str], config: tuple[str, str]) -> Json:
    """What every version of the agent needs to reach the API, as parts of a `ContainerSpec`."""
    return {
        "Secrets": [{
            "SecretID": secret[0], "SecretName": secret[1],
            "File": {"Name": TOKEN_FILE, "UID": "0", "GID": "0", "Mode": 0o400},
        }],
        "Configs": [{
            "ConfigID": config[0], "ConfigName": config[1],
            "File": {"Name": KUBECONFIG_FILE, "UID": "0", "GID": "0", "Mode": 0o444},
        }],
    }  # fmt: skip


def fetching(image: str, cluster_id: str) -> Json:
    """The service by which nodes fetch an image: it begins once on each of them, does nothing, and ends. Where the image cannot be
    fetched, Swarm tries again."""
    labels = part_labels(cluster_id, PART_FETCHING)
    template: Json = {
        "ContainerSpec": {
            "Image": image,
            "Command": ["true"],
            "Labels": labels,
            "ReadOnly": True,
            "CapabilityDrop": ["ALL"],
            "Privileges": {"NoNewPrivileges": True},
            "Healthcheck": {"Test": NO_CHECK},
        },
        "Networks": [{"Target": "host"}],
        "RestartPolicy": {"Condition": "on-failure", "Delay": 10 * NANOS_PER_S, "MaxAttempts": 0},
        "Resources": {"Limits": {"MemoryBytes": 64 * 2**20, "Pids": 16}},
        "LogDriver": {"Name": "json-file", "Options": {"max-size": "1m", "max-file": "1"}},
    }
    return {
        "Name": Names(cluster_id).fetching(image), "Labels": labels, "TaskTemplate": template, "Mode": {"Global": {}},
        "EndpointSpec": {"Mode": "dnsrr"},
    }  # fmt: skip


def hash_of(spec: Mapping[str, Any]) -> str:
    return hashlib.sha256(orjson.dumps(spec, option=orjson.OPT_SORT_KEYS)).hexdigest()[:32]


def is_part(labels: Mapping[str, str] | None, cluster_id: str, part: str = PART_AGENT) -> bool:
    """These labels say that the object is ours."""
    return all((labels or {}).get(key) == value for key, value in part_labels(cluster_id, part).items())


def credential_in_use(template: Mapping[str, Any]) -> str:
    """ID of the secret that a service's stored `TaskTemplate` hands out; empty: none."""
    secrets = (template.get("ContainerSpec") or {}).get("Secrets") or ()
    return next((item["SecretID"] for item in secrets if (item.get("File") or {}).get("Name") == TOKEN_FILE), "")
