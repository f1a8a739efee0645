"""The node agents as Swarm objects: what is wished, what is there, and what is left alone. Against a Swarm in memory."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import docker.errors
import pytest
import requests
import yaml

from swarmtask.engines.base import LABEL_CLUSTER, LABEL_MANAGED, AgentWish
from swarmtask.engines.swarm import agent_spec as specs
from swarmtask.engines.swarm.agents import SwarmAgents
from swarmtask.engines.swarm.client import DockerClient, mapped
from swarmtask.engines.swarm.registry import outcome, repository_of, serving
from swarmtask.errors import EngineRejected, EngineUnavailable
from swarmtask.settings import AgentSettings

CLUSTER = "0f0e0d0c-1111-2222-3333-444455556666"
WISH = AgentWish("swarmtask/worker:latest", "https://192.168.1.10:7443", "PEM", fence_s=20, fence_grace_s=5)
IMAGE = {"Id": "sha256:" + "1" * 64, "RepoTags": ["swarmtask/worker:latest"], "RepoDigests": []}


def refused(code: int, words: str) -> docker.errors.APIError:
    response = requests.Response()
    response.status_code = code
    kind = docker.errors.NotFound if code == 404 else docker.errors.APIError
    return kind(words, response=response, explanation=words)


class FakeSwarm:
    """As much of the SDK's low-level client as is needed; fails on everything else by having no such method."""

    def __init__(self) -> None:
        self.all: dict[str, dict[str, dict[str, Any]]] = {"service": {}, "secret": {}, "config": {}}
        self.images: dict[str, dict[str, Any]] = {"swarmtask/worker:latest": IMAGE}
        self.written: list[str] = []
        self.before_update: Callable[[], None] = lambda: None
        self._number = itertools.count(1)

    def _add(self, kind: str, spec: dict[str, Any]) -> dict[str, Any]:
        if any(item["Spec"]["Name"] == spec["Name"] for item in self.all[kind].values()):
            raise refused(409, f"{kind} name conflicts with an existing object: name {spec['Name']}")
        number = next(self._number)
        item = {"ID": f"{kind}{number}", "Version": {"Index": number}, "CreatedAt": f"2026-01-01T00:00:{number:02}Z", "Spec": spec}
        self.all[kind][item["ID"]] = item
        self.written.append(f"create {kind}")
        return item

    def _remove(self, kind: str, object_id: str) -> None:
        users = [str(item["Spec"]["TaskTemplate"]) for item in self.all["service"].values()]
        if any(f"'{object_id}'" in user for user in users):
            raise refused(400, f"{kind} is in use by a service")
        del self.all[kind][object_id]
        self.written.append(f"remove {kind}")

    def _listed(self, kind: str, filters: dict[str, list[str]]) -> list[dict[str, Any]]:
        wanted = [part.split("=") for part in filters["label"]]
        return [
            copy.deepcopy(item) for item in self.all[kind].values()
            if all((item["Spec"].get("Labels") or {}).get(key) == value for key, value in wanted)
        ]  # fmt: skip

    def secrets(self, filters: dict[str, list[str]]) -> list[dict[str, Any]]:
        return self._listed("secret", filters)

    def configs(self, filters: dict[str, list[str]]) -> list[dict[str, Any]]:
        return self._listed("config", filters)

    def create_secret(self, name: str, data: bytes, labels: dict[str, str]) -> dict[str, Any]:
        return self._add("secret", {"Name": name, "Labels": labels, "Data": data})

    def create_config(self, name: str, data: bytes, labels: dict[str, str]) -> dict[str, Any]:
        return self._add("config", {"Name": name, "Labels": labels, "Data": data})

    def remove_secret(self, object_id: str) -> None:
        self._remove("secret", object_id)

    def remove_config(self, object_id: str) -> None:
        self._remove("config", object_id)

    def inspect_image(self, name: str) -> dict[str, Any]:
        if name not in self.images:
            raise refused(404, f"No such image: {name}")
        return self.images[name]

    def inspect_service(self, name: str) -> dict[str, Any]:
        for item in self.all["service"].values():
            if item["Spec"]["Name"] == name:
                return copy.deepcopy(item)
        raise refused(404, f"service {name} not found")

    def create_service(self, task_template: dict[str, Any], **spec: Any) -> dict[str, Any]:
        return self._add("service", {
            "Name": spec["name"], "Labels": spec["labels"], "TaskTemplate": task_template, "Mode": spec["mode"],
        })  # fmt: skip

    def update_service(self, object_id: str, version: int, task_template: dict[str, Any], **spec: Any) -> None:
        self.before_update()
        item = self.all["service"][object_id]
        if item["Version"]["Index"] != version:
            raise refused(500, "rpc error: desc = update out of sequence")
        item["Version"] = {"Index": next(self._number)}
        item["Spec"] |= {"Labels": spec["labels"], "TaskTemplate": task_template}
        self.written.append("update service")

    def remove_service(self, object_id: str) -> None:
        del self.all["service"][object_id]
        self.written.append("remove service")

    def info(self) -> dict[str, Any]:
        return {"Swarm": {"NodeAddr": "192.168.1.10", "NodeID": "manager"}}


class Daemon(DockerClient):
    """Runs calls at once, with the mapping of errors that the real client has."""

    def __init__(self, swarm: FakeSwarm) -> None:
        super().__init__("fake", timeout_s=1, threads=1)
        self._swarm = swarm

    async def call(self, function: Callable[[Any], Any]) -> Any:
        try:
            return function(self._swarm)
        except docker.errors.DockerException as error:
            raise mapped(error, "fake") from error


@pytest.fixture
def swarm() -> FakeSwarm:
    return FakeSwarm()


@pytest.fixture
def agents(swarm: FakeSwarm) -> SwarmAgents:
    return SwarmAgents(Daemon(swarm), CLUSTER)


def only(swarm: FakeSwarm, kind: str) -> dict[str, Any]:
    (item,) = swarm.all[kind].values()
    return item


async def test_the_first_time_everything_is_made_and_the_second_time_nothing(agents: SwarmAgents, swarm: FakeSwarm) -> None:
    assert "deployed" in await agents.ensure(WISH, "t0ken")
    assert swarm.written == ["create secret", "create config", "create service"]
    swarm.written.clear()
    assert await agents.ensure(WISH, None) == ""
    assert swarm.written == []
    assert list(await agents.tokens()) == [only(swarm, "secret")["Spec"]["Labels"][specs.LABEL_DIGEST]]
    assert only(swarm, "secret")["Spec"]["Data"] == b"t0ken"
    assert await agents.address() == "192.168.1.10"


async def test_what_the_service_is(agents: SwarmAgents, swarm: FakeSwarm) -> None:
    await agents.ensure(replace(WISH, capabilities=("cod{{ing",)), "t0ken")
    spec = only(swarm, "service")["Spec"]
    assert spec["Mode"] == {"Global": {}}
    assert LABEL_MANAGED not in spec["Labels"], "it must not pass for an attempt"
    assert spec["Labels"][LABEL_CLUSTER] == CLUSTER
    container = spec["TaskTemplate"]["ContainerSpec"]
    assert container["Image"] == IMAGE["Id"], "known to no registry: by ID"
    assert container["CapabilityDrop"] == ["ALL"]
    assert container["ReadOnly"] is True
    assert spec["TaskTemplate"]["Networks"] == [{"Target": "host"}]
    assert spec["TaskTemplate"]["RestartPolicy"]["Condition"] == "any"
    mounts = {mount["Target"]: mount for mount in container["Mounts"]}
    assert mounts["/host/proc"]["ReadOnly"] is True
    assert "t0ken" not in str(spec), "the credential is in the secret alone"
    arguments = container["Args"]
    assert arguments[arguments.index("--fence-seconds") + 1] == "20"
    assert arguments[arguments.index("--fence-grace") + 1] == "5"
    assert arguments[-1] == 'cod{{"{{"}}ing', "Swarm expands no more than the node's ID"
    assert "SWARMTASK_AGENT_ENGINE_NODE=swarm/{{.Node.ID}}" in container["Env"]


async def test_the_config_is_a_kubeconfig_that_an_agent_reads(agents: SwarmAgents, swarm: FakeSwarm) -> None:
    await agents.ensure(WISH, "t0ken")
    document = yaml.safe_load(only(swarm, "config")["Spec"]["Data"])
    assert document["clusters"][0]["cluster"]["server"] == "https://192.168.1.10:7443"
    assert document["clusters"][0]["cluster"]["tls-server-name"] == "swarmtask"
    assert document["users"][0]["user"] == {"tokenFile": f"/run/secrets/{specs.TOKEN_FILE}"}


@pytest.mark.parametrize(
    "other",
    [
        replace(WISH, ca="OTHER"), replace(WISH, server="https://192.168.1.99:7443"), replace(WISH, fence_s=30),
        replace(WISH, capabilities=("browser",)),
    ],
)  # fmt: skip
async def test_another_wish_updates_the_service_once(agents: SwarmAgents, swarm: FakeSwarm, other: AgentWish) -> None:
    await agents.ensure(WISH, "t0ken")
    assert "updated" in await agents.ensure(other, None)
    assert await agents.ensure(other, None) == ""
    assert swarm.written.count("update service") == 1
    assert len(swarm.all["config"]) == 1, "what is used no more goes away"


async def test_another_image_of_the_same_name_updates_the_service(agents: SwarmAgents, swarm: FakeSwarm) -> None:
    await agents.ensure(WISH, "t0ken")
    swarm.images["swarmtask/worker:latest"] = IMAGE | {"Id": "sha256:" + "2" * 64}
    assert "updated" in await agents.ensure(WISH, None)


async def test_a_new_credential_takes_the_place_of_the_old_one(agents: SwarmAgents, swarm: FakeSwarm) -> None:
    await agents.ensure(WISH, "old")
    await agents.ensure(WISH, "new")
    assert only(swarm, "secret")["Spec"]["Data"] == b"new"
    used = specs.credential_in_use(only(swarm, "service")["Spec"]["TaskTemplate"])
    assert used == only(swarm, "secret")["ID"]


async def test_a_deployment_that_was_cut_off_goes_on(agents: SwarmAgents, swarm: FakeSwarm) -> None:
    digest = "a" * 64
    labels = specs.part_labels(CLUSTER) | {specs.LABEL_DIGEST: digest}
    swarm.create_secret(specs.Names(CLUSTER).secret(digest), b"x", labels=labels)
    assert list(await agents.tokens()) == [digest]
    assert "deployed" in await agents.ensure(WISH, None)
    assert "secret1" in str(only(swarm, "service"))


async def test_a_service_that_somebody_changed_meanwhile_is_read_again(agents: SwarmAgents, swarm: FakeSwarm) -> None:
    await agents.ensure(WISH, "t0ken")
    service = only(swarm, "service")
    changes = iter([True])

    def meddle() -> None:
        if next(changes, False):
            service["Version"] = {"Index": 999}

    swarm.before_update = meddle
    assert "updated" in await agents.ensure(replace(WISH, fence_s=40), None)

    def meddle_always() -> None:
        service["Version"] = {"Index": service["Version"]["Index"] + 1}

    swarm.before_update = meddle_always
    with pytest.raises(EngineUnavailable, match="kept changing"):
        await agents.ensure(replace(WISH, fence_s=50), None)


async def test_what_is_not_ours_is_never_touched(agents: SwarmAgents, swarm: FakeSwarm) -> None:
    foreign = {"Name": specs.Names(CLUSTER).service, "Labels": {specs.LABEL_PART: "node-agent"}, "TaskTemplate": {}, "Mode": {}}
    swarm._add("service", foreign)
    swarm.create_secret("somebodys", b"x", labels={})
    other = specs.part_labels("another-cluster") | {specs.LABEL_DIGEST: "b" * 64}
    swarm.create_secret("anothers", b"x", labels=other)
    with pytest.raises(EngineRejected, match="is not ours"):
        await agents.ensure(WISH, "t0ken")
    assert only(swarm, "service")["Spec"] == foreign
    swarm.all["service"].clear()
    await agents.ensure(WISH, "t0ken")
    assert "removed" in await agents.remove()
    assert {item["Spec"]["Name"] for item in swarm.all["secret"].values()} == {"somebodys", "anothers"}
    assert swarm.all["service"] == {}
    assert swarm.all["config"] == {}
    assert await agents.remove() == ""


async def test_an_image_that_is_not_here_is_told_with_what_to_do(agents: SwarmAgents, swarm: FakeSwarm) -> None:
    swarm.images.clear()
    with pytest.raises(EngineRejected, match="make image"):
        await agents.ensure(WISH, "t0ken")
    assert swarm.written == []


async def test_a_credential_that_is_gone_is_not_made_up(agents: SwarmAgents) -> None:
    with pytest.raises(EngineUnavailable, match="is gone"):
        await agents.ensure(WISH, None)


# --- images for nodes ---


@pytest.mark.parametrize(
    ("image", "kept"),
    [
        ("busybox", ("busybox", "latest")),
        ("acme/lint:1.4", ("acme/lint", "1.4")),
        ("ghcr.io/acme/lint:1.4", ("acme/lint", "1.4")),
        ("localhost/acme/lint", ("acme/lint", "latest")),
        ("reg:5000/a/b:x", ("a/b", "x")),
        ("acme/lint@sha256:" + "0" * 64, ("acme/lint", "latest")),
        (str(IMAGE["Id"]), ("swarmtask/worker", "latest")),
        ("1" * 12, ("swarmtask/worker", "latest")),
    ],
)
def test_under_which_name_an_image_is_kept(image: str, kept: tuple[str, str]) -> None:
    assert repository_of(image, IMAGE) == kept


@pytest.mark.parametrize("image", ["sha256:" + "3" * 64, "UPPER/case", "", ":5"])
def test_an_image_without_a_usable_name_is_refused(image: str) -> None:
    with pytest.raises(EngineRejected, match="docker tag"):
        repository_of(image, {"RepoTags": None})


def test_what_docker_says_of_a_push() -> None:
    assert outcome([{"status": "Pushed"}, {"aux": {"Tag": "1", "Digest": "sha256:abc", "Size": 1}}]) == ("sha256:abc", "")
    assert outcome([{"aux": {"Digest": "sha256:abc"}}, {"error": "denied"}]) == ("", "denied")
    assert outcome([]) == ("", "")


def test_nodes_may_only_read_and_the_registry_stays_on_this_machine() -> None:
    spec = serving(AgentSettings(images_port=5001), CLUSTER, str(IMAGE["Id"]), "manager")
    assert spec["TaskTemplate"]["ContainerSpec"]["Command"][-1].endswith("registry-serve.yml")
    assert spec["TaskTemplate"]["Placement"]["Constraints"] == ["node.id==manager"]
    (port,) = spec["EndpointSpec"]["Ports"]
    assert (port["PublishedPort"], port["PublishMode"]) == (5001, "ingress")
    assert LABEL_MANAGED not in spec["Labels"]
