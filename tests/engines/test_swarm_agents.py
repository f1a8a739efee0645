"""The node agents as Swarm objects: what is wished, what is there, and what is left alone. Against a Swarm in memory."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import docker.errors
import pytest
import requests
import yaml

from swarmtask.engines.base import LABEL_CLUSTER, LABEL_MANAGED, AgentWish
from swarmtask.engines.swarm import agent_spec as specs
from swarmtask.engines.swarm.agents import SwarmAgents
from swarmtask.engines.swarm.client import DockerClient, mapped
from swarmtask.engines.swarm.fetching import FETCH_S
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


@dataclass
class Member:
    """A node. `trouble`: the state of a task whose image it has not; `agent`: of the agent, whose image it has."""

    images: set[str] = field(default_factory=set)
    state: str = "ready"
    availability: str = "active"
    trouble: str = "preparing"
    agent: str = "running"


class FakeSwarm:
    """As much of the SDK's low-level client as is needed; fails on everything else by having no such method.

    Of a global service each member that is ready and active runs what it was last told: as Swarm does it with stop-first, its old
    task has stopped by the time its node looks for the new image.
    """

    def __init__(self) -> None:
        self.members: dict[str, Member] = {}
        self.told: dict[tuple[str, str], dict[str, Any]] = {}
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
        item = self._add("service", {
            "Name": spec["name"], "Labels": spec["labels"], "TaskTemplate": task_template, "Mode": spec["mode"],
        })  # fmt: skip
        self._tell(item)
        return {"ID": item["ID"]}

    def _tell(self, item: dict[str, Any]) -> None:
        for name, member in self.members.items():
            if item["Spec"]["Mode"] == {"Global": {}} and (member.state, member.availability) == ("ready", "active"):
                self.told[item["ID"], name] = item["Spec"]["TaskTemplate"]["ContainerSpec"]

    def services(self, filters: dict[str, list[str]]) -> list[dict[str, Any]]:
        return self._listed("service", filters)

    def nodes(self) -> list[dict[str, Any]]:
        return [
            {
                "ID": name, "Description": {"Hostname": f"host-{name}"}, "Status": {"State": member.state},
                "Spec": {"Availability": member.availability},
            }
            for name, member in self.members.items()
        ]  # fmt: skip

    def tasks(self, filters: dict[str, str]) -> list[dict[str, Any]]:
        assert filters["service"] in self.all["service"]
        return [
            {"NodeID": name, "Status": {"State": self._state(container, self.members[name])}}
            for (service, name), container in self.told.items()
            if service == filters["service"]
        ]

    @staticmethod
    def _state(container: dict[str, Any], member: Member) -> str:
        if container["Image"] not in member.images:
            return member.trouble
        return "complete" if container["Command"] == ["true"] else member.agent

    def update_service(self, object_id: str, version: int, task_template: dict[str, Any], **spec: Any) -> None:
        self.before_update()
        item = self.all["service"][object_id]
        if item["Version"]["Index"] != version:
            raise refused(500, "rpc error: desc = update out of sequence")
        item["Version"] = {"Index": next(self._number)}
        item["Spec"] |= {"Labels": spec["labels"], "TaskTemplate": task_template, "UpdateConfig": spec.get("update_config")}
        self._tell(item)
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


# --- another image ---

OLD, NEW = IMAGE["Id"], "sha256:" + "2" * 64


class Scene:
    """Agents of an old image on some nodes, and a new one on this machine. `now` is set by hand."""

    def __init__(self, swarm: FakeSwarm, *names: str) -> None:
        self.swarm, self.now = swarm, 0.0
        self.agents = self.operator()
        self.swarm.members = {name: Member({OLD}) for name in names}

    def operator(self) -> SwarmAgents:
        return SwarmAgents(Daemon(self.swarm), CLUSTER, monotonic=lambda: self.now)

    def has_new_image(self, image: str = NEW) -> None:
        self.swarm.images["swarmtask/worker:latest"] = IMAGE | {"Id": image}
        self.swarm.written.clear()

    async def look(self, wish: AgentWish = WISH, token: str | None = None) -> str:
        return await self.agents.ensure(wish, token)

    def service(self) -> dict[str, Any]:
        return self.swarm.inspect_service(specs.Names(CLUSTER).service)

    def image(self) -> str:
        return str(self.service()["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"])

    def fetched(self) -> list[str]:
        """Images that nodes are told to fetch."""
        found = self.swarm.services(specs.part_filter(CLUSTER, specs.PART_FETCHING))
        return [service["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"] for service in found]

    def away(self) -> list[str]:
        """Nodes whose agent was stopped while its new image is not there."""
        return [
            task["NodeID"] for task in self.swarm.tasks({"service": self.service()["ID"]}) if task["Status"]["State"] != "running"
        ]


@pytest.fixture
async def scene(swarm: FakeSwarm) -> Scene:
    made = Scene(swarm, "a", "b")
    await made.look(token="t0ken")
    made.has_new_image()
    return made


async def test_nodes_have_a_new_image_before_their_agents_stop(scene: Scene, swarm: FakeSwarm) -> None:
    assert "fetch the new image" in await scene.look()
    assert scene.fetched() == [NEW]
    swarm.members["a"].images.add(NEW)
    assert await scene.look() == ""
    assert (scene.image(), scene.away(), swarm.written) == (OLD, [], ["create service"])
    swarm.members["b"].images.add(NEW)
    assert await scene.look() == "updated the node agents"
    assert (scene.image(), scene.away(), scene.fetched()) == (NEW, [], [])
    assert scene.service()["Spec"]["UpdateConfig"]["Parallelism"] == 1
    assert (await scene.look(), swarm.written) == ("", ["create service", "update service", "remove service"])


async def test_what_fetches_does_nothing_and_is_given_nothing(scene: Scene, swarm: FakeSwarm) -> None:
    await scene.look()
    (found,) = swarm.services(specs.part_filter(CLUSTER, specs.PART_FETCHING))
    spec, container = found["Spec"], found["Spec"]["TaskTemplate"]["ContainerSpec"]
    assert (spec["Mode"], container["Command"]) == ({"Global": {}}, ["true"])
    assert spec["TaskTemplate"]["RestartPolicy"]["Condition"] == "on-failure", "it ends once, but tries again to fetch"
    assert container["Healthcheck"] == {"Test": ["NONE"]}
    assert not {"Mounts", "Secrets", "Configs", "Env"} & set(container)
    assert LABEL_MANAGED not in spec["Labels"], "it must not pass for an attempt"
    assert not specs.is_part(container["Labels"], CLUSTER), "nor for an agent"


@pytest.mark.parametrize(
    "change", [{"state": "down"}, {"state": "unknown"}, {"availability": "pause"}, {"availability": "drain"}]
)  # fmt: skip
async def test_a_node_that_could_not_take_a_new_agent_is_not_waited_for(
    scene: Scene, swarm: FakeSwarm, change: dict[str, str]
) -> None:
    swarm.members["b"] = replace(swarm.members["b"], **change)
    await scene.look()
    swarm.members["a"].images.add(NEW)
    assert await scene.look() == "updated the node agents"


async def test_a_node_without_an_agent_is_not_waited_for(scene: Scene, swarm: FakeSwarm) -> None:
    swarm.members["c"] = Member(trouble="rejected")
    await scene.look()
    swarm.members["a"].images.add(NEW)
    swarm.members["b"].images.add(NEW)
    assert await scene.look() == "updated the node agents"


async def test_an_agent_whose_health_was_not_checked_yet_has_work_to_guard(scene: Scene, swarm: FakeSwarm) -> None:
    for member in swarm.members.values():
        member.agent = "starting"
    assert "fetch the new image" in await scene.look()
    assert (scene.image(), scene.away()) == (OLD, ["a", "b"]), "away for Swarm: the containers run"
    swarm.members["a"].images.add(NEW)
    assert (await scene.look(), scene.image()) == ("", OLD)
    swarm.members["b"].images.add(NEW)
    assert await scene.look() == "updated the node agents"


async def updating(scene: Scene, swarm: FakeSwarm) -> dict[str, Any]:
    """The service, in an update from which Swarm has not come back."""
    for member in swarm.members.values():
        member.images.add(NEW)
    assert await scene.look() == "updated the node agents"
    (item,) = swarm.all["service"].values()
    item["UpdateStatus"] = {"State": "updating"}
    swarm.written.clear()
    return item


async def test_a_node_that_falls_asleep_while_agents_are_updated_holds_nobody_up(scene: Scene, swarm: FakeSwarm) -> None:
    item = await updating(scene, swarm)
    assert await scene.look() == "", "it goes on by itself"
    before = copy.deepcopy(item["Spec"])
    swarm.members["a"].state = "down"
    assert "without waiting" in await scene.look()
    assert item["Spec"]["Labels"].pop(specs.LABEL_TOLD), "it is another service for Swarm, which so begins anew"
    assert item["Spec"] == before, "but no other tasks: no agent that is updated is started anew"
    assert (await scene.look(), swarm.written) == ("", ["update service"])
    swarm.members["a"].state = "ready"
    assert await scene.look() == ""
    swarm.members["a"].state = "down"
    assert "without waiting" in await scene.look(), "it may have slept in between"
    item["UpdateStatus"] = {"State": "completed"}
    swarm.members["b"].state = "down"
    assert await scene.look() == ""
    assert await scene.look(replace(WISH, fence_s=30)) == "updated the node agents"
    assert specs.LABEL_TOLD not in item["Spec"]["Labels"]


async def test_who_slept_already_when_agents_were_updated_is_no_reason_to_begin_anew(scene: Scene, swarm: FakeSwarm) -> None:
    swarm.members["b"].state = "down"
    await updating(scene, swarm)
    assert (await scene.look(), swarm.written) == ("", [])


async def test_what_somebody_changed_while_an_update_was_told_anew_is_read_again(scene: Scene, swarm: FakeSwarm) -> None:
    item = await updating(scene, swarm)
    swarm.members["a"].state = "down"
    changes = iter([True])

    def meddle() -> None:
        if next(changes, False):
            item["Version"] = {"Index": 999}

    swarm.before_update = meddle
    assert "without waiting" in await scene.look()


@pytest.mark.parametrize("trouble", ["preparing", "rejected", "pending", "assigned"])
async def test_a_node_that_cannot_fetch_holds_the_others_up_for_a_while_only(scene: Scene, swarm: FakeSwarm, trouble: str) -> None:
    swarm.members["b"].trouble = trouble
    await scene.look()
    swarm.members["a"].images.add(NEW)
    scene.now = FETCH_S - 1
    assert await scene.look() == ""
    scene.now = FETCH_S
    assert "though host-b could not fetch the image within 15 minutes" in await scene.look()
    assert scene.image() == NEW
    assert scene.service()["Spec"]["UpdateConfig"]["Parallelism"] == 2, "Swarm waits for b beside the others, not before them"
    assert await scene.look() == ""


async def test_an_image_that_does_not_start_there_was_fetched(scene: Scene, swarm: FakeSwarm) -> None:
    for member in swarm.members.values():
        member.trouble = "failed"
    assert await scene.look() == "updated the node agents", "such as one for another kind of machine: waiting does not help"


async def test_meanwhile_agents_stay_as_they_are_but_for_what_reaches_the_api(scene: Scene, swarm: FakeSwarm) -> None:
    before = scene.service()["Spec"]["TaskTemplate"]["ContainerSpec"]
    wish = replace(WISH, fence_s=40, server="https://192.168.1.99:7443")
    assert "another credential or address" in await scene.look(wish, "new")
    after = scene.service()["Spec"]["TaskTemplate"]["ContainerSpec"]
    assert (after["Image"], after["Args"]) == (before["Image"], before["Args"]), "arguments may be for the new version alone"
    assert only(swarm, "secret")["Spec"]["Data"] == b"new"
    assert b"192.168.1.99" in only(swarm, "config")["Spec"]["Data"]
    assert list(await scene.agents.tokens()) == [only(swarm, "secret")["Spec"]["Labels"][specs.LABEL_DIGEST]]
    assert await scene.look(wish) == "", "once"
    assert "another credential or address" in await scene.look(replace(wish, server=WISH.server)), "back again, too"
    for member in swarm.members.values():
        member.images.add(NEW)
    assert await scene.look(wish) == "updated the node agents"
    container = scene.service()["Spec"]["TaskTemplate"]["ContainerSpec"]
    assert container["Args"][container["Args"].index("--fence-seconds") + 1] == "40"
    assert await scene.look(wish) == ""


async def test_an_operator_that_starts_anew_goes_on(scene: Scene, swarm: FakeSwarm) -> None:
    await scene.look()
    scene.now = FETCH_S + 1
    scene.agents = scene.operator()
    assert (await scene.look(), swarm.written) == ("", ["create service"])
    for member in swarm.members.values():
        member.images.add(NEW)
    assert await scene.look() == "updated the node agents"


async def test_another_wish_meanwhile_leaves_nothing_behind(scene: Scene, swarm: FakeSwarm) -> None:
    await scene.look()
    newer = "sha256:" + "3" * 64
    scene.now = FETCH_S - 1
    scene.has_new_image(newer)
    assert "fetch the new image" in await scene.look()
    assert scene.fetched() == [newer]
    scene.now = FETCH_S + 1
    assert await scene.look() == "", "it has its own time"
    scene.has_new_image(OLD)
    assert await scene.look() == ""
    assert (scene.fetched(), swarm.written) == ([], ["remove service"])
    scene.has_new_image()
    await scene.look()
    await scene.agents.remove()
    assert swarm.all["service"] == {}


async def test_the_same_image_needs_no_fetching(scene: Scene, swarm: FakeSwarm) -> None:
    scene.has_new_image(OLD)
    assert await scene.look(replace(WISH, fence_s=30)) == "updated the node agents"
    assert swarm.written == ["update service"]


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
