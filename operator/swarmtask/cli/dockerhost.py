"""This machine's Docker, before there is an engine: is it there, is it in a swarm, make one, leave it, how to join it.

Called by `up`, `operator --engine auto`, `join` and `demo`. Attempts are none of its business: those belong to `engines.swarm`.
All calls block, for at most `TIMEOUT_S` each: call them from a thread. Foreign errors are mapped here.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import docker
import requests
from docker.errors import APIError, DockerException, ImageNotFound

from swarmtask.errors import ConfigurationError, EngineUnavailable

TIMEOUT_S = 10
LABEL_MANAGED = "swarmtask.io/managed"
_INIT_TIMEOUT_S = 60


@dataclass(frozen=True, slots=True)
class DockerState:
    """What Docker says of itself.

    Attributes:
        swarm: inactive | pending | active | error | locked.
        manager: this machine may create services.
        node_id: of this machine in the swarm; empty outside one.
    """

    version: str
    swarm: str
    manager: bool
    node_id: str = ""
    nodes: int = 0
    hostname: str = ""
    arch: str = ""


@contextlib.contextmanager
def _docker(docker_host: str | None, timeout_s: int = TIMEOUT_S) -> Iterator[docker.DockerClient]:
    try:
        client = docker.DockerClient(base_url=docker_host, timeout=timeout_s) if docker_host else docker.from_env(timeout=timeout_s)
    except (DockerException, requests.RequestException, ValueError) as error:
        raise EngineUnavailable(f"Docker does not answer{_at(docker_host)}: {_reason(error)}") from error
    try:
        yield client
    except APIError as error:
        raise ConfigurationError(f"Docker refused: {error.explanation or _first_line(error)}") from error
    except (DockerException, requests.RequestException) as error:
        raise EngineUnavailable(f"Docker does not answer{_at(docker_host)}: {_reason(error)}") from error
    finally:
        client.close()


def inspect(docker_host: str | None) -> DockerState:
    """Ask Docker.

    Raises:
        EngineUnavailable: it does not answer.
    """
    with _docker(docker_host) as client:
        info: dict[str, Any] = client.info()
    swarm = info.get("Swarm") or {}
    return DockerState(
        version=str(info.get("ServerVersion", "")),
        swarm=str(swarm.get("LocalNodeState", "inactive")),
        manager=bool(swarm.get("ControlAvailable")),
        node_id=str(swarm.get("NodeID", "")),
        nodes=int(swarm.get("Nodes") or 0),
        hostname=str(info.get("Name", "")),
        arch=str(info.get("Architecture", "")),
    )


def has_image(docker_host: str | None, image: str) -> bool:
    """Whether this machine's Docker has the image. Raises EngineUnavailable: it does not answer."""
    with _docker(docker_host) as client:
        try:
            client.images.get(image)
        except ImageNotFound:
            return False
        return True


def require_usable(state: DockerState) -> None:
    """Raises ConfigurationError when Swarm can neither be used nor made here; says what to do."""
    if state.swarm == "active" and not state.manager:
        raise ConfigurationError(
            "this machine is a worker of a swarm: run `swarmtask up` on its manager, or leave the swarm here with "
            "`docker swarm leave`, or use --engine local"
        )
    if state.swarm == "locked":
        raise ConfigurationError("the swarm of this machine is locked: unlock it with `docker swarm unlock`")
    if state.swarm in ("pending", "error"):
        raise ConfigurationError(
            f"the swarm of this machine is in state {state.swarm!r}: see `docker info`; `docker swarm leave --force` gives it up"
        )


def default_route_address() -> str | None:
    """The address under which laptops reach this machine: that of the default route. None without a route.

    A UDP socket that is connected but never written to sends nothing; the system only picks the source address.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # TEST-NET-1: routed by default, owned by nobody (RFC 5737)
        except OSError:
            return None
        return str(probe.getsockname()[0])


def make_swarm(docker_host: str | None, advertise_addr: str | None) -> str:
    """Make this machine a single-node swarm and return the address it advertises.

    Raises:
        ConfigurationError: Docker refuses, or no address was given and there is none to take.
    """
    address = advertise_addr or default_route_address() or "127.0.0.1"
    with _docker(docker_host, _INIT_TIMEOUT_S) as client:
        client.swarm.init(advertise_addr=address, listen_addr="0.0.0.0:2377")
    return address


def leave_swarm(docker_host: str | None) -> bool:
    """Leave the swarm that `make_swarm` made. False, and nothing is done, when it has other nodes or services by now."""
    with _docker(docker_host, _INIT_TIMEOUT_S) as client:
        if len(client.nodes.list()) > 1 or client.services.list():
            return False
        client.swarm.leave(force=True)
        return True


def join_command(docker_host: str | None, *, manager: bool = False) -> str:
    """The command that adds a machine to this swarm. Holds a secret: for stdout of `swarmtask join` alone.

    Raises:
        EngineUnavailable: Docker does not answer. ConfigurationError: there is no swarm here.
    """
    state = inspect(docker_host)
    require_usable(state)
    if state.swarm != "active":
        raise ConfigurationError("Docker on this machine is not in a swarm yet: start the control plane with `swarmtask up` first")
    with _docker(docker_host) as client:
        client.swarm.reload()
        tokens: dict[str, str] = client.swarm.attrs["JoinTokens"]
        address = _manager_address(client, state.node_id)
    if address.startswith("127."):
        raise ConfigurationError(
            f"the swarm advertises {address}, which no other machine can reach: make it anew with "
            "`docker swarm leave --force` and `swarmtask up --advertise-addr ADDRESS`"
        )
    return f"docker swarm join --token {tokens['Manager' if manager else 'Worker']} {address}"


def _manager_address(client: docker.DockerClient, node_id: str) -> str:
    status = client.nodes.get(node_id).attrs.get("ManagerStatus") or {}
    return str(status.get("Addr", ""))


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _reason(error: BaseException) -> str:
    """What the system said, where one of the wrapped errors is the system's own; else the first line of the outermost."""
    inner: BaseException | None = error
    seen: list[object] = []
    while inner is not None and inner not in seen:
        seen.append(inner)
        for part in (inner, *inner.args, *(nested for arg in inner.args if isinstance(arg, BaseException) for nested in arg.args)):
            if isinstance(part, OSError) and part.strerror and not isinstance(part, requests.RequestException):
                return part.strerror
        inner = inner.__cause__ or inner.__context__
    return _first_line(error)


def _at(docker_host: str | None) -> str:
    """` at tcp://...`, where an endpoint was chosen."""
    endpoint = docker_host or os.environ.get("DOCKER_HOST")
    return f" at {endpoint}" if endpoint else ""
