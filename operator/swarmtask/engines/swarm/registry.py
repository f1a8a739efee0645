"""Images for nodes that can reach no registry: one of our own, on this machine, that every node reaches at its own 127.0.0.1.

Called by `agents` (the agent's own image, for laptops that have just joined) and by `swarmtask image push`. Two programs share a
volume. What nodes ask is a Swarm service that only reads, published by Swarm's ingress, so that 127.0.0.1:PORT leads to it from
every node; Docker speaks plain HTTP to 127.0.0.0/8 without being told to. What writes is a container that lives as long as one
push, bound to this machine's loopback at a port that the system chooses: nobody on the network can put an image there.

Docker keeps one kind of machine under a name. An image that is here once more under its name with `-amd64` or `-arm64` behind it,
and is for that kind, is brought along: nodes call both by one name, and each takes its own.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson
import structlog
from docker.errors import NotFound

from swarmtask.clock import NANOS_PER_S
from swarmtask.engines.base import LABEL_SPEC_HASH
from swarmtask.engines.swarm.agent_spec import NO_CHECK, Json, Names, hash_of, is_part, part_labels
from swarmtask.engines.swarm.client import Api, DockerClient, Missing
from swarmtask.errors import EngineRejected, EngineUnavailable
from swarmtask.settings import AgentSettings, SwarmSettings

log = structlog.get_logger(__name__)

PART_IMAGES = "images"
INSIDE_PORT = 5000
KINDS = ("amd64", "arm64")
"""Kinds of machine, in Go's names, for which there is a worker image."""
FOLDER = "/var/lib/registry"
SERVE, RECEIVE = "/etc/swarmtask/registry-serve.yml", "/etc/swarmtask/registry-receive.yml"
"""Configurations of the registry in the worker image: for reading alone, and for a push."""
STARTING_S = 20.0
PUSH_S = 900.0
"""The longest push that is waited for."""
LOOK_S = 0.3
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_REPOSITORY = re.compile(r"[a-z0-9]+(?:[._-]+[a-z0-9]+)*(?:/[a-z0-9]+(?:[._-]+[a-z0-9]+)*)*")


class Registry:
    """See the module.

    Args:
        docker: with a time-out that is long enough for a push.
    """

    def __init__(self, docker: DockerClient, settings: AgentSettings, cluster_id: str) -> None:
        self._docker, self._settings, self._cluster = docker, settings, cluster_id
        self._published: dict[str, str] = {}

    @classmethod
    def of(cls, swarm: SwarmSettings, settings: AgentSettings, cluster_id: str) -> Registry:
        return cls(DockerClient(swarm.docker_host, timeout_s=PUSH_S, threads=1), settings, cluster_id)

    def close(self) -> None:
        self._docker.close()

    @property
    def _volume(self) -> str:
        return Names(self._cluster).images

    async def publish(self, image: str) -> str:
        """Bring an image of this machine to where every node can pull it.

        Returns:
            How nodes call it: 127.0.0.1:PORT/REPOSITORY@sha256:DIGEST.

        Raises:
            EngineRejected: it is not on this machine, or cannot be pushed. EngineUnavailable: not now.
        """
        try:
            found = await self._inspect(image)
        except Missing as error:
            raise EngineRejected(f"the image {image} is not on this machine: make it or pull it first") from error
        kinds = [found, *await self._other_kinds(image, found)]
        known = " ".join([image, *(kind["Id"] for kind in kinds)])
        if await self._docker.call(self._serve):
            self._published.clear()  # it was removed, and what it had may be, too
        if known not in self._published:
            repository, tag = repository_of(image, found)
            digest = await self._docker.call(lambda api: self._push(api, kinds, repository, tag))
            self._published[known] = f"127.0.0.1:{self._settings.images_port}/{repository}@{digest}"
        return self._published[known]

    async def _other_kinds(self, image: str, found: Json) -> list[Json]:
        """The same image for other machines, as far as it is here."""
        if "@" in image or not found.get("Architecture"):
            return []
        name = image if ":" in image.rpartition("/")[2] else f"{image}:latest"
        others: list[Json] = []
        for kind in KINDS:
            if kind == found["Architecture"]:
                continue
            try:
                other = await self._inspect(f"{name}-{kind}")
            except (Missing, EngineRejected):
                continue  # not here, or an ID, which has no such neighbours
            if other.get("Architecture") != kind:
                log.warning("an image is not brought along", image=f"{name}-{kind}", architecture=other.get("Architecture"))
                continue
            if _version(other) != _version(found):
                log.warning(
                    "an image for other machines is of another version", image=f"{name}-{kind}", version=_version(other),
                    beside=_version(found),
                )  # fmt: skip
            others.append(other)
        return others

    async def _inspect(self, image: str) -> Json:
        found: Json = await self._docker.call(lambda api: api.inspect_image(image))
        return found

    # --- in a thread of the client ----------------------------------------------------------------------------------------

    def _program(self, api: Api) -> str:
        """ID of the worker image, which this machine has."""
        try:
            return str(api.inspect_image(self._settings.image)["Id"])
        except NotFound as error:
            raise EngineRejected(
                f"the image {self._settings.image}, which holds the registry, is not on this machine: make it with `make image`"
            ) from error

    def _serve(self, api: Api) -> bool:
        """See that nodes are served. True: they were not."""
        node = str(api.info()["Swarm"]["NodeID"])
        wanted = serving(self._settings, self._cluster, self._program(api), node)
        try:
            present: Json = api.inspect_service(wanted["Name"])
        except NotFound:
            api.create_service(
                wanted["TaskTemplate"], name=wanted["Name"], labels=wanted["Labels"], mode=wanted["Mode"],
                endpoint_spec=wanted["EndpointSpec"],
            )  # fmt: skip
            return True
        labels = present["Spec"].get("Labels") or {}
        if not is_part(labels, self._cluster, PART_IMAGES):
            raise EngineRejected(f"a service named {wanted['Name']} exists and is not ours: rename or remove it")
        if labels.get(LABEL_SPEC_HASH) != wanted["Labels"][LABEL_SPEC_HASH]:
            api.update_service(
                present["ID"], present["Version"]["Index"], task_template=wanted["TaskTemplate"], name=wanted["Name"],
                labels=wanted["Labels"], mode=wanted["Mode"], endpoint_spec=wanted["EndpointSpec"],
            )  # fmt: skip
        return False

    def _push(self, api: Api, kinds: Sequence[Json], repository: str, tag: str) -> str:
        """The digest by which nodes ask."""
        host = api.create_host_config(
            port_bindings={INSIDE_PORT: ("127.0.0.1", None)}, binds=[f"{self._volume}:{FOLDER}"], cap_drop=["ALL"],
            security_opt=["no-new-privileges"], mem_limit=512 * 2**20, auto_remove=False,
        )  # fmt: skip
        container = api.create_container(
            self._program(api), entrypoint=["docker-registry", "serve", RECEIVE], ports=[INSIDE_PORT], host_config=host,
            labels=part_labels(self._cluster, PART_IMAGES), healthcheck={"test": NO_CHECK},
        )["Id"]  # fmt: skip
        try:
            api.start(container)
            port = api.inspect_container(container)["NetworkSettings"]["Ports"][f"{INSIDE_PORT}/tcp"][0]["HostPort"]
            local = f"127.0.0.1:{port}/{repository}"
            if not kinds[0].get("Architecture"):  # a Docker that does not say it
                return self._push_one(api, kinds[0]["Id"], local, tag, container)
            listed = [
                {
                    "digest": self._push_one(api, kind["Id"], local, f"{tag}-{kind['Architecture']}", container),
                    "architecture": kind["Architecture"], "variant": kind.get("Variant") or "",
                }
                for kind in kinds
            ]  # fmt: skip
            try:
                return self._join(api, container, {"repository": repository, "tag": tag, "kinds": listed})
            except EngineRejected as error:
                if len(kinds) > 1:
                    raise
                log.warning("an image is offered for this kind of machine alone", image=f"{repository}:{tag}", why=error.message)
                return self._push_one(api, kinds[0]["Id"], local, tag, container)
        finally:
            api.remove_container(container, force=True, v=False)

    def _push_one(self, api: Api, image_id: str, local: str, tag: str, container: str) -> str:
        api.tag(image_id, local, tag)
        try:
            return self._pushed(api, local, tag, container)
        finally:
            api.remove_image(f"{local}:{tag}", noprune=True)

    def _join(self, api: Api, container: str, asked: Json) -> str:
        argument = orjson.dumps(asked | {"registry": f"http://127.0.0.1:{INSIDE_PORT}"}).decode()
        command = api.exec_create(container, ["python3", "-m", "swarmtask.engines.swarm.image_list", argument])
        said = api.exec_start(command["Id"]).decode(errors="replace").strip().splitlines()
        last = said[-1] if said else "it said nothing"
        if api.exec_inspect(command["Id"])["ExitCode"] == 0 and _DIGEST.fullmatch(last):
            return last
        raise EngineRejected(
            f"{asked['repository']}:{asked['tag']} cannot be named in this machine's registry: {last} "
            f"({self._settings.image} must be of this version: make it anew with `make image`)"
        )

    def _pushed(self, api: Api, repository: str, tag: str, container: str) -> str:
        """Push until the registry, which has just been started, answers; the digest."""
        until = time.monotonic() + STARTING_S
        while True:
            digest, failure = outcome(api.push(repository, tag, stream=True, decode=True))
            if digest:
                return digest
            if not api.inspect_container(container)["State"]["Running"]:
                said = api.logs(container, tail=5).decode(errors="replace").strip()
                raise EngineRejected(f"the registry of this machine ended: {said}")
            if time.monotonic() > until:
                raise EngineUnavailable(f"the image cannot be pushed to this machine's registry: {failure}")
            time.sleep(LOOK_S)


def _version(found: Mapping[str, Any]) -> str:
    """What an image says of itself; empty where it says nothing."""
    return str(((found.get("Config") or {}).get("Labels") or {}).get("org.opencontainers.image.version", ""))


def outcome(said: Iterable[Mapping[str, Any]]) -> tuple[str, str]:
    """(digest, failure) of what Docker says of a push; one of them is empty."""
    digest, failure = "", ""
    for line in said:
        digest = str((line.get("aux") or {}).get("Digest") or digest)
        failure = str(line.get("error") or failure)
    return ("", failure) if failure or not digest else (digest, "")


def repository_of(image: str, found: Mapping[str, Any]) -> tuple[str, str]:
    """(repository, tag) under which an image is kept: its own name without the registry that it came from.

    Args:
        image: as it was named; an ID takes the first name that this machine has for it.

    Raises:
        EngineRejected: it has no name.
    """
    name = image.partition("@")[0]
    if name.startswith("sha256") or re.fullmatch(r"[0-9a-f]{12,64}", name):
        name = next(iter(found.get("RepoTags") or ()), "")
    head, slash, tail = name.rpartition("/")
    last, _, tag = tail.partition(":")
    parts = [part for part in (head + slash + last).split("/") if part]
    if len(parts) > 1 and ("." in parts[0] or ":" in parts[0] or parts[0] == "localhost"):
        parts = parts[1:]
    repository = "/".join(parts)
    if not _REPOSITORY.fullmatch(repository):
        raise EngineRejected(f"the image {image} has no name under which it could be kept: give it one with `docker tag`")
    return repository, tag or "latest"


def serving(settings: AgentSettings, cluster_id: str, image: str, node_id: str) -> Json:
    """The service from which nodes read, pinned to this machine, where its volume is."""
    names = Names(cluster_id)
    template: Json = {
        "ContainerSpec": {
            "Image": image,
            "Command": ["docker-registry", "serve", SERVE],
            "Labels": part_labels(cluster_id, PART_IMAGES),
            "ReadOnly": True,
            "CapabilityDrop": ["ALL"],
            "Privileges": {"NoNewPrivileges": True},
            "Healthcheck": {"Test": NO_CHECK},
            "Mounts": [{"Type": "volume", "Source": names.images, "Target": FOLDER}],
        },
        "RestartPolicy": {"Condition": "any", "Delay": 2 * NANOS_PER_S, "MaxAttempts": 0},
        "Resources": {"Limits": {"MemoryBytes": 256 * 2**20, "Pids": 256}},
        "Placement": {"Constraints": [f"node.id=={node_id}"]},
        "LogDriver": {"Name": "json-file", "Options": {"max-size": "4m", "max-file": "2"}},
    }
    port = {
        "Protocol": "tcp", "TargetPort": INSIDE_PORT, "PublishedPort": settings.images_port, "PublishMode": settings.images_publish,
    }  # fmt: skip
    spec: Json = {
        "Name": names.images, "TaskTemplate": template, "Mode": {"Replicated": {"Replicas": 1}},
        "EndpointSpec": {"Mode": "vip", "Ports": [port]},
    }  # fmt: skip
    return spec | {"Labels": part_labels(cluster_id, PART_IMAGES) | {LABEL_SPEC_HASH: hash_of(spec)}}
