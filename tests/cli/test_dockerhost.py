"""This machine's Docker before there is an engine, against a small Engine API that records and refuses the unexpected."""

from __future__ import annotations

import json
import socketserver
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from swarmtask.cli import dockerhost
from swarmtask.errors import ConfigurationError, EngineUnavailable
from tests.cli.conftest import Swarmtask

TOKEN = "SWMTKN-1-worker"
MANAGER_TOKEN = "SWMTKN-1-manager"


class DockerDouble(socketserver.ThreadingUnixStreamServer):
    """Answers what `answers` holds by (method, path); everything else is a failure of the test."""

    daemon_threads = True

    def __init__(self, path: Path) -> None:
        self.answers: dict[tuple[str, str], tuple[int, Any]] = {}
        self.calls: list[tuple[str, str, Any]] = []
        super().__init__(str(path), _Handler)
        self.host = f"unix://{path}"
        self.info("active")
        self.answers["GET", "/swarm"] = (503, {"message": "This node is not a swarm manager."})

    def info(self, state: str, *, manager: bool = True, nodes: int = 1) -> None:
        swarm = {"LocalNodeState": state, "ControlAvailable": manager and state == "active", "NodeID": "n1", "Nodes": nodes}
        self.answers["GET", "/info"] = (200, {"ServerVersion": "99", "Name": "desk", "Architecture": "x86_64", "Swarm": swarm})

    def swarm(self, address: str) -> None:
        self.answers["GET", "/swarm"] = (200, {"ID": "s", "JoinTokens": {"Worker": TOKEN, "Manager": MANAGER_TOKEN}})
        self.answers["GET", "/nodes/n1"] = (200, {"ID": "n1", "ManagerStatus": {"Addr": address}})


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        server = self.server
        assert isinstance(server, DockerDouble)
        path = self.path.partition("?")[0]
        if path.startswith("/v1"):
            path = "/" + path.split("/", 2)[2]
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "null")
        if path != "/version":
            server.calls.append((self.command, path, body))
        known = {("GET", "/version"): (200, {"ApiVersion": "1.41", "Version": "99"})} | server.answers
        status, value = known.get((self.command, path), (500, {"message": f"unexpected: {self.command} {path}"}))
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass

    def address_string(self) -> str:
        return "unix"


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DockerDouble]:
    with DockerDouble(tmp_path / "d.sock") as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setenv("SWARMTASK_SWARM__DOCKER_HOST", server.host)
        try:
            yield server
        finally:
            server.shutdown()
            thread.join(10)


def test_join_prints_the_command_and_the_token_nowhere_else(swarmtask: Swarmtask, docker: DockerDouble) -> None:
    docker.swarm("192.168.1.10:2377")
    result = swarmtask("join")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == f"docker swarm join --token {TOKEN} 192.168.1.10:2377\n"
    assert "SWMTKN" not in result.stderr
    assert MANAGER_TOKEN in swarmtask("join", "--manager").stdout


def test_an_address_that_no_laptop_reaches_is_refused(swarmtask: Swarmtask, docker: DockerDouble) -> None:
    docker.swarm("127.0.0.1:2377")
    result = swarmtask("join")
    assert (result.exit_code, result.stdout) == (6, "")
    assert "--advertise-addr" in result.stderr and "SWMTKN" not in result.stderr


def test_join_without_a_swarm_says_what_to_do(swarmtask: Swarmtask, docker: DockerDouble) -> None:
    docker.info("inactive")
    result = swarmtask("join")
    assert result.exit_code == 6
    assert "swarmtask up" in result.stderr


def test_making_a_swarm_advertises_the_address_that_was_asked_for(docker: DockerDouble) -> None:
    docker.answers["POST", "/swarm/init"] = (200, "n1")
    docker.swarm("10.0.0.1:2377")
    assert dockerhost.make_swarm(docker.host, "10.0.0.1") == "10.0.0.1"
    (body,) = [body for method, path, body in docker.calls if (method, path) == ("POST", "/swarm/init")]
    assert body["AdvertiseAddr"] == "10.0.0.1"


@pytest.mark.parametrize(("nodes", "services", "left"), [(1, [], True), (2, [], False), (1, [{"ID": "x"}], False)])
def test_a_swarm_is_left_only_when_nobody_else_uses_it(docker: DockerDouble, nodes: int, services: list[Any], left: bool) -> None:
    docker.answers["GET", "/nodes"] = (200, [{"ID": f"n{number}"} for number in range(nodes)])
    docker.answers["GET", "/services"] = (200, services)
    docker.answers["POST", "/swarm/leave"] = (200, None)
    assert dockerhost.leave_swarm(docker.host) is left
    assert any(path == "/swarm/leave" for _, path, _ in docker.calls) is left


def test_what_docker_says_is_passed_on_as_an_error_of_ours(docker: DockerDouble, tmp_path: Path) -> None:
    docker.answers["POST", "/swarm/init"] = (400, {"message": "could not choose an IP address to advertise"})
    with pytest.raises(ConfigurationError, match="could not choose an IP address"):
        dockerhost.make_swarm(docker.host, "10.0.0.1")
    with pytest.raises(EngineUnavailable, match=r"does not answer at unix://.*nobody.sock: No such file or directory$"):
        dockerhost.inspect(f"unix://{tmp_path}/nobody.sock")


def test_status_never_shows_a_join_token(docker: DockerDouble) -> None:
    docker.swarm("192.168.1.10:2377")
    state = dockerhost.inspect(docker.host)
    assert (state.swarm, state.manager, state.nodes, state.hostname) == ("active", True, 1, "desk")
    assert "SWMTKN" not in repr(state)
