"""Where concrete objects are built, and nowhere else: client, API server, engines, operator.

Called by the CLI. Each function imports what it builds: `swarmtask get` must not pay for kopf, uvicorn and the Docker SDK.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING

from swarmtask.clock import Clock
from swarmtask.errors import ConfigurationError
from swarmtask.settings import Settings

if TYPE_CHECKING:
    from swarmtask.controllers.explaining import ExplainedTask
    from swarmtask.engines.base import Engine
    from swarmtask.kube import ObjectApi

ENGINES = ("swarm", "local")
CLI_FIELD_MANAGER = "swarmtask-cli"


def run_server(main: Coroutine[None, None, None]) -> None:
    """Run the main coroutine of a serving process, on the faster event loop where there is one."""
    try:
        import uvloop
    except ImportError:
        asyncio.run(main)
        return
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main)


async def kube_client(kubeconfig: Path, context: str | None = None, *, for_person: bool = False) -> ObjectApi:
    """A client of the API that the kubeconfig names.

    Args:
        for_person: a misspelled field in a write is refused, not dropped; writes are recorded as the CLI's.

    Raises:
        ConfigurationError: the kubeconfig cannot be used.
    """
    from swarmtask.kube import KubeClient
    from swarmtask.kube.connection import Connection

    connection = Connection.from_kubeconfig(kubeconfig, context)
    if for_person:
        return KubeClient(connection, field_manager=CLI_FIELD_MANAGER, field_validation="Strict")
    return KubeClient(connection)


async def cluster_id(api: ObjectApi) -> str:
    """The ID of this control plane: the label by which it knows its own objects on an engine."""
    from swarmtask.controllers.operator import cluster_id as read_cluster_id

    return await read_cluster_id(api)


async def explain_task(api: ObjectApi, namespace: str, name: str, settings: Settings, clock: Clock) -> ExplainedTask:
    """Why a task is where it is, node by node.

    Raises:
        NotFound: there is no such task. Invalid: it cannot be read, or is being deleted.
    """
    from swarmtask.controllers.explaining import explain_stored
    from swarmtask.controllers.node_rules import NodeRules

    return await explain_stored(api, (namespace, name), clock.now().timestamp(), NodeRules.of(settings.operator))


def local_state_dir(settings: Settings) -> Path:
    """Where the local engine keeps the records and the output of its attempts."""
    return settings.data_dir.expanduser().absolute() / "local"


def engine(name: str, settings: Settings, cluster: str, clock: Clock) -> Engine:
    """An engine, not yet started.

    Args:
        name: swarm or local.
        cluster: ID of the control plane.

    Raises:
        ConfigurationError: there is no engine of that name.
    """
    match name:
        case "swarm":
            from swarmtask.engines.swarm import SwarmEngine

            return SwarmEngine(settings.swarm, cluster, clock)
        case "local":
            from swarmtask.engines.local import LocalEngine

            return LocalEngine(settings.local, local_state_dir(settings), clock)
        case _:
            raise ConfigurationError(f"there is no engine {name!r}; there are: {', '.join(ENGINES)}")


async def serve_api(settings: Settings, clock: Clock, stop: asyncio.Event, on_ready: Callable[[str], None]) -> None:
    """Run the embedded API server until `stop` is set. `on_ready` is called with its URL once it answers."""
    from swarmtask.apiserver.server import run_api_server
    from swarmtask.engines.swarm.shells import DockerShells

    shells = DockerShells(settings.swarm.docker_host, timeout_s=settings.swarm.timeout_s)
    await run_api_server(settings, clock=clock, stop=stop, on_ready=on_ready, shells=shells)


async def operate(
    settings: Settings, clock: Clock, api: ObjectApi, engine_names: tuple[str, ...], stop: asyncio.Event, ready: asyncio.Event
) -> None:
    """Run the operator over these engines until `stop` is set. `ready` is set once it reconciles."""
    from swarmtask.controllers.operator import Operator

    cluster = await cluster_id(api)
    engines = [engine(name, settings, cluster, clock) for name in engine_names]
    operator = Operator(api, engines, settings.operator, clock, random.Random())
    await operator.run(stop=stop, ready=ready)
