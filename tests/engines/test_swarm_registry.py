"""Bringing an image to nodes: what is started for a push, what is left behind, and what is said when it fails."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from swarmtask.engines.swarm import registry as registries
from swarmtask.engines.swarm.agent_spec import Names
from swarmtask.engines.swarm.image_list import LIST, MANIFESTS, join
from swarmtask.engines.swarm.registry import RECEIVE, Registry, serving
from swarmtask.errors import EngineRejected, EngineUnavailable
from swarmtask.settings import AgentSettings
from tests.engines.test_swarm_agents import CLUSTER, Daemon, FakeSwarm
from tests.lab.tools import ROOT

LISTED = "sha256:" + "d" * 64
LINT = {"Id": "sha256:" + "7" * 64, "RepoTags": ["acme/lint:1.4"], "RepoDigests": []}


class Machine(FakeSwarm):
    """A Docker that can run a registry and push to it. `answers`: what each push says, in turn; the last one for ever."""

    def __init__(self, *answers: list[dict[str, Any]]) -> None:
        super().__init__()
        self.images["acme/lint:1.4"] = LINT
        self.answers = list(answers) or [[{"aux": {"Tag": "1.4", "Digest": "sha256:abc"}}]]
        self.running: dict[str, dict[str, Any]] = {}
        self.alive = True
        self.tags: list[str] = []
        self.pushed: list[str] = []
        self.joined: list[dict[str, Any]] = []
        self.said = (0, f"a warning\n{LISTED}\n".encode())

    def create_host_config(self, **config: Any) -> dict[str, Any]:
        return config

    def create_container(self, image: str, **config: Any) -> dict[str, Any]:
        assert image == self.images["swarmtask/worker:latest"]["Id"]
        self.running["c1"] = config
        return {"Id": "c1"}

    def start(self, container: str) -> None:
        assert container in self.running

    def inspect_container(self, container: str) -> dict[str, Any]:
        ports = {"5000/tcp": [{"HostIp": "127.0.0.1", "HostPort": "49153"}]}
        return {"NetworkSettings": {"Ports": ports}, "State": {"Running": self.alive}}

    def logs(self, container: str, tail: int) -> bytes:
        return b"no space left\n"

    def tag(self, image: str, repository: str, tag: str) -> None:
        self.tags.append(f"{repository}:{tag}")

    def push(self, repository: str, tag: str, **_: Any) -> Iterator[dict[str, Any]]:
        self.pushed.append(f"{repository}:{tag}")
        return iter(self.answers.pop(0) if len(self.answers) > 1 else self.answers[0])

    def exec_create(self, container: str, command: list[str]) -> dict[str, Any]:
        assert container in self.running
        assert command[:3] == ["python3", "-m", "swarmtask.engines.swarm.image_list"]
        self.joined.append(json.loads(command[3]))
        return {"Id": "e1"}

    def exec_start(self, command: str) -> bytes:
        return self.said[1]

    def exec_inspect(self, command: str) -> dict[str, Any]:
        return {"ExitCode": self.said[0]}

    def remove_image(self, name: str, noprune: bool) -> None:
        assert noprune, "the image itself stays"
        self.tags.remove(name)

    def remove_container(self, container: str, force: bool, v: bool) -> None:
        assert not v, "the volume stays"
        del self.running[container]


@pytest.fixture
def machine() -> Machine:
    return Machine()


def registry(machine: Machine, **settings: Any) -> Registry:
    return Registry(Daemon(machine), AgentSettings(**settings), CLUSTER)


async def test_an_image_is_pushed_once_and_named_as_nodes_name_it(machine: Machine) -> None:
    images = registry(machine)
    assert await images.publish("acme/lint:1.4") == "127.0.0.1:5000/acme/lint@sha256:abc"
    assert await images.publish("acme/lint:1.4") == "127.0.0.1:5000/acme/lint@sha256:abc"
    assert machine.pushed == ["127.0.0.1:49153/acme/lint:1.4"]
    assert (machine.tags, machine.running) == ([], {}), "nothing but the image and the service is left"
    assert machine.written == ["create service"]


async def test_both_kinds_of_one_image_get_one_name(machine: Machine) -> None:
    images = registry(machine)
    machine.images["acme/lint:1.4"] = LINT | {"Architecture": "amd64"}
    assert (await images.publish("acme/lint:1.4")).endswith(f"@{LISTED}")
    other = LINT | {"Id": "sha256:" + "8" * 64, "Architecture": "arm64", "Variant": "v8"}
    machine.images["acme/lint:1.4-arm64"] = other
    machine.said = 0, f"sha256:{'e' * 64}".encode()
    assert (await images.publish("acme/lint:1.4")).endswith(f"@sha256:{'e' * 64}"), "a kind that has come makes another image"
    assert machine.pushed[1:] == ["127.0.0.1:49153/acme/lint:1.4-amd64", "127.0.0.1:49153/acme/lint:1.4-arm64"]
    asked = machine.joined[1]
    assert (asked["registry"], asked["repository"], asked["tag"]) == ("http://127.0.0.1:5000", "acme/lint", "1.4")
    assert asked["kinds"] == [
        {"digest": "sha256:abc", "architecture": "amd64", "variant": ""},
        {"digest": "sha256:abc", "architecture": "arm64", "variant": "v8"},
    ]
    assert (machine.tags, machine.running) == ([], {})


async def test_a_name_of_another_kind_than_its_image_is_not_brought_along(machine: Machine) -> None:
    machine.images["acme/lint:1.4"] = LINT | {"Architecture": "amd64"}
    machine.images["acme/lint:1.4-arm64"] = LINT | {"Architecture": "amd64"}
    await registry(machine).publish("acme/lint:1.4")
    assert [[kind["architecture"] for kind in asked["kinds"]] for asked in machine.joined] == [["amd64"]]


async def test_a_registry_that_refuses_the_list_says_why(machine: Machine) -> None:
    machine.images["acme/lint:1.4"] = LINT | {"Architecture": "arm64"}
    machine.images["acme/lint:1.4-amd64"] = LINT | {"Id": "sha256:" + "8" * 64, "Architecture": "amd64"}
    machine.said = 1, b"Traceback\nNo module named image_list\n"
    with pytest.raises(EngineRejected, match=r"No module named image_list.*make image"):
        await registry(machine).publish("acme/lint:1.4")
    assert (machine.tags, machine.running) == ([], {})


async def test_one_kind_is_brought_by_a_worker_image_of_before_too(machine: Machine) -> None:
    machine.images["acme/lint:1.4"] = LINT | {"Architecture": "arm64"}
    machine.said = 1, b"No module named image_list\n"
    assert (await registry(machine).publish("acme/lint:1.4")).endswith("@sha256:abc")
    assert [name.rpartition(":")[2] for name in machine.pushed] == ["1.4-arm64", "1.4"]


class Shelf:
    """A registry that has two manifests and takes a list of them."""

    def __init__(self) -> None:
        self.manifests = {"sha256:a": b"{}", "sha256:b": b'{"oci":1}'}
        self.tags: dict[str, tuple[bytes, str]] = {}

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        name = request.url.path.removeprefix("/v2/acme/lint/manifests/")
        if request.method == "GET":
            kind = MANIFESTS[name == "sha256:b"]
            assert kind in request.headers["accept"]
            if name in self.tags:
                content, kind = self.tags[name]
                return httpx2.Response(200, content=content, headers={"content-type": kind})
            found = self.manifests.get(name)
            return httpx2.Response(404 if found is None else 200, content=found or b"", headers={"content-type": kind})
        self.tags[name] = request.content, request.headers["content-type"]
        return httpx2.Response(201)


OWN = {"digest": "sha256:a", "architecture": "amd64", "variant": ""}
OTHER = {"digest": "sha256:b", "architecture": "arm64", "variant": "v8"}


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


@pytest.fixture
def client(shelf: Shelf) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url="http://registry", transport=httpx2.MockTransport(shelf)) as client:
        yield client


def test_one_kind_alone_is_named_as_it_is(shelf: Shelf, client: httpx2.Client) -> None:
    assert join(client, "acme/lint", "1.4", [OWN]) == "sha256:" + hashlib.sha256(b"{}").hexdigest()
    assert shelf.tags == {"1.4": (b"{}", MANIFESTS[0])}
    with pytest.raises(httpx2.HTTPStatusError):
        join(client, "acme/lint", "1.5", [{"digest": "sha256:c", "architecture": "amd64"}])
    assert "1.5" not in shelf.tags


def test_a_kind_that_is_here_no_more_stays_until_what_is_here_changes(shelf: Shelf, client: httpx2.Client) -> None:
    both = join(client, "acme/lint", "1.4", [OWN, OTHER])
    assert join(client, "acme/lint", "1.4", [OWN]) == both
    shelf.manifests["sha256:n"] = b'{"new":1}'
    assert join(client, "acme/lint", "1.4", [OWN | {"digest": "sha256:n"}]) == "sha256:" + hashlib.sha256(b'{"new":1}').hexdigest()


def test_the_list_names_each_kind_with_its_size(shelf: Shelf, client: httpx2.Client) -> None:
    digest = join(client, "acme/lint", "1.4", [OWN, OTHER])
    body, kind = shelf.tags["1.4"]
    made = json.loads(body)
    assert kind == LIST
    assert digest == "sha256:" + hashlib.sha256(body).hexdigest()
    assert made["manifests"] == [
        {"mediaType": MANIFESTS[0], "size": 2, "digest": "sha256:a", "platform": {"architecture": "amd64", "os": "linux"}},
        {
            "mediaType": MANIFESTS[1], "size": 9, "digest": "sha256:b",
            "platform": {"architecture": "arm64", "os": "linux", "variant": "v8"},
        },
    ]  # fmt: skip


async def test_what_receives_listens_to_this_machine_alone(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr(machine, "start", lambda container: seen.append(machine.running[container]))
    await registry(machine).publish("acme/lint:1.4")
    (config,) = seen
    assert config["entrypoint"] == ["docker-registry", "serve", RECEIVE]
    assert config["host_config"]["port_bindings"] == {5000: ("127.0.0.1", None)}
    assert config["host_config"]["cap_drop"] == ["ALL"]
    assert config["host_config"]["binds"] == [f"{Names(CLUSTER).images}:/var/lib/registry"]


async def test_nobody_asks_a_registry_for_an_agent(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both inherit the health check of the image otherwise, and Swarm ends what is not healthy."""
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr(machine, "start", lambda container: seen.append(machine.running[container]))
    await registry(machine).publish("acme/lint:1.4")
    assert "swarmtask-agent-health" in (ROOT / "worker-image" / "Dockerfile").read_text()
    assert seen[0]["healthcheck"] == {"test": ["NONE"]}
    served = serving(AgentSettings(), CLUSTER, "sha256:1", "n1")["TaskTemplate"]["ContainerSpec"]
    assert served["Healthcheck"] == {"Test": ["NONE"]}


async def test_a_push_is_repeated_until_the_registry_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registries, "LOOK_S", 0.0)
    machine = Machine([{"error": "connection refused"}], [{"aux": {"Digest": "sha256:abc"}}])
    assert (await registry(machine).publish("acme/lint:1.4")).endswith("@sha256:abc")
    assert len(machine.pushed) == 2


async def test_a_registry_that_ends_says_why_and_nothing_is_left(machine: Machine) -> None:
    machine.answers, machine.alive = [[{"error": "connection refused"}]], False
    with pytest.raises(EngineRejected, match="no space left"):
        await registry(machine).publish("acme/lint:1.4")
    assert (machine.tags, machine.running) == ([], {})


async def test_one_that_never_answers_is_given_up(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registries, "STARTING_S", 0.0)
    machine.answers = [[{"error": "connection refused"}]]
    with pytest.raises(EngineUnavailable, match="connection refused"):
        await registry(machine).publish("acme/lint:1.4")
    assert (machine.tags, machine.running) == ([], {})


async def test_what_is_not_here_is_said(machine: Machine) -> None:
    with pytest.raises(EngineRejected, match="is not on this machine"):
        await registry(machine).publish("acme/other:1")
    del machine.images["swarmtask/worker:latest"]
    with pytest.raises(EngineRejected, match="make image"):
        await registry(machine).publish("acme/lint:1.4")


async def test_a_service_of_that_name_that_is_not_ours_is_left_alone(machine: Machine) -> None:
    foreign = {"Name": Names(CLUSTER).images, "Labels": {}, "TaskTemplate": {}, "Mode": {}}
    machine._add("service", foreign)
    with pytest.raises(EngineRejected, match="is not ours"):
        await registry(machine).publish("acme/lint:1.4")
    assert machine.pushed == []


async def test_a_registry_that_was_removed_is_made_again_with_what_it_had(machine: Machine) -> None:
    images = registry(machine)
    await images.publish("acme/lint:1.4")
    machine.remove_service(next(iter(machine.all["service"])))
    await images.publish("acme/lint:1.4")
    await images.publish("acme/lint:1.4")
    assert machine.written.count("create service") == 2
    assert len(machine.pushed) == 2


async def test_another_port_updates_the_service(machine: Machine) -> None:
    await registry(machine).publish("acme/lint:1.4")
    assert (await registry(machine, images_port=5001).publish("acme/lint:1.4")).startswith("127.0.0.1:5001/")
    assert machine.written == ["create service", "update service"]
