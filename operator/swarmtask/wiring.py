"""Where concrete objects are built, and nowhere else: client, API server, engines, operator.

Called by the CLI. Each function imports what it builds: `swarmtask get` must not pay for kopf, uvicorn and the Docker SDK.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import random
import uuid
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from swarmtask.clock import Clock
from swarmtask.errors import ConfigurationError
from swarmtask.settings import Settings

if TYPE_CHECKING:
    from swarmtask.apiserver.backup import Facts
    from swarmtask.apiserver.restore import Restored
    from swarmtask.controllers.agents import Agents
    from swarmtask.controllers.explaining import ExplainedTask
    from swarmtask.engines.base import Engine
    from swarmtask.engines.swarm.registry import Registry
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


async def kube_client(
    kubeconfig: Path, context: str | None = None, *, for_person: bool = False, decides: bool = False
) -> ObjectApi:
    """A client of the API that the kubeconfig names.

    Args:
        decides: for the operator: its writes are refused unless it has the tenure (`resources.tenure`).
        for_person: a misspelled field in a write is refused, not dropped; writes are recorded as the CLI's; objects come whole.

    Raises:
        ConfigurationError: the kubeconfig cannot be used.
    """
    from swarmtask.kube import KubeClient
    from swarmtask.kube.connection import Connection
    from swarmtask.resources.tenure import Tenure

    connection = Connection.from_kubeconfig(kubeconfig, context)
    if for_person:
        return KubeClient(connection, field_manager=CLI_FIELD_MANAGER, field_validation="Strict")
    return KubeClient(connection, sparing=True, tenure=Tenure(uuid.uuid4().hex) if decides else None)


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


def require_sound(settings: Settings, engine_names: tuple[str, ...]) -> None:
    """Refuse settings that contradict each other with these engines, before anything is started.

    Raises:
        ConfigurationError: says what to change.
    """
    if "swarm" in engine_names:
        from swarmtask.controllers.leases import require_patience

        require_patience(settings.operator)


async def serve_api(settings: Settings, clock: Clock, stop: asyncio.Event, on_ready: Callable[[str], None]) -> None:
    """Run the embedded API server until `stop` is set. `on_ready` is called with its URL once it answers."""
    from swarmtask.apiserver import auth
    from swarmtask.apiserver.issued import issue_beside

    # At the first start certificates are made by another process, while this one reads in the rest. Later it has nothing to do.
    at = (settings.data_dir, settings.apiserver.host, clock.now(), issue_beside)
    preparing = asyncio.get_running_loop().run_in_executor(None, auth.prepare, *at)
    from swarmtask.apiserver.server import run_api_server, spare_collections
    from swarmtask.engines.swarm.shells import DockerShells

    await preparing

    def ready(url: str) -> None:
        spare_collections()
        on_ready(url)

    shells = DockerShells(settings.swarm.docker_host, timeout_s=settings.swarm.timeout_s)
    await run_api_server(settings, clock=clock, stop=stop, on_ready=ready, shells=shells, issue=issue_beside)


async def download_backup(kubeconfig: Path, context: str | None, sink: Callable[[bytes], object]) -> None:
    """Let the embedded API make a backup, and hand its bytes to `sink`. Raises as the API's client does."""
    from swarmtask.apiserver.downloads import BACKUP_PATH
    from swarmtask.kube.connection import Connection
    from swarmtask.kube.download import download

    await download(Connection.from_kubeconfig(kubeconfig, context), BACKUP_PATH, sink)


async def download_output(kubeconfig: Path, context: str | None, sink: Callable[[bytes], None]) -> None:
    """The same with the output of attempts."""
    from swarmtask.apiserver.downloads import BACKUP_PATH, OUTPUT
    from swarmtask.kube.connection import Connection
    from swarmtask.kube.download import download

    await download(Connection.from_kubeconfig(kubeconfig, context), f"{BACKUP_PATH}?part={OUTPUT}", sink)


def check_output(path: Path) -> int:
    """Check an archive of output; of how many attempts it is. Raises ConfigurationError, OSError."""
    from swarmtask.apiserver.output_archive import check

    return check(path)


def renew_tokens(data_dir: Path) -> None:
    """Make the tokens of administrator and operator anew while no server runs. Raises ConfigurationError, OSError."""
    from swarmtask.apiserver import auth

    auth.renew_tokens(data_dir)


def read_backup(path: Path) -> Facts:
    """Check a backup and say what it is. Raises ConfigurationError, OSError."""
    from swarmtask.apiserver.backup import read

    return read(path)


def pack_keys(data_dir: Path) -> bytes:
    """The content of a keys file. Raises ConfigurationError, OSError."""
    from swarmtask.apiserver.keys_file import pack

    return pack(data_dir)


def keys_for(keys_file: Path) -> frozenset[str]:
    """The IDs of the keys of Secrets that a keys file holds. Raises ConfigurationError, OSError."""
    from swarmtask.apiserver.keys_file import secret_key_ids

    return secret_key_ids(keys_file)


def restore_backup(source: Path, data_dir: Path, keys_file: Path | None, output: Path | None, label: str) -> Restored:
    """Put a backup in the place of a database that no server uses. See `apiserver.restore`."""
    from swarmtask.apiserver.keys_file import unpack
    from swarmtask.apiserver.restore import restore

    return restore(source, data_dir, None if keys_file is None else unpack(keys_file), label=label, output=output)


def load_operator(engine_name: str) -> None:
    """Read in what `kube_client` and `operate` need, for a process that has to wait anyway. Errors are theirs to raise."""
    import anyio.streams.tls  # noqa: F401 - what the client needs with its first connection

    import swarmtask.controllers.operator
    import swarmtask.kube
    from swarmtask.resources.node import NodeStatus, SwarmNode
    from swarmtask.resources.queue import QueueStatus, SwarmQueue

    with contextlib.suppress(ImportError):
        import uvloop  # noqa: F401
    for model in (SwarmNode, NodeStatus, SwarmQueue, QueueStatus):  # always needed; otherwise built when first asked
        model.model_rebuild()

    match engine_name:
        case "swarm":
            import swarmtask.engines.swarm.engine
        case "local":
            import swarmtask.engines.local  # noqa: F401


async def operate(
    settings: Settings, clock: Clock, api: ObjectApi, engine_names: tuple[str, ...], stop: asyncio.Event, ready: asyncio.Event
) -> None:
    """Run the operator over these engines until `stop` is set. `ready` is set once it reconciles."""
    from swarmtask.controllers.operator import Operator

    require_sound(settings, engine_names)
    cluster = await cluster_id(api)
    engines = [engine(name, settings, cluster, clock) for name in engine_names]
    operator = Operator(api, engines, settings.operator, clock, random.Random())
    with contextlib.ExitStack() as opened:
        if settings.agents.deploy and "swarm" in engine_names:
            operator.companions["node agents"] = node_agents(settings, api, cluster, clock, opened).run
        await operator.run(stop=stop, ready=ready)


def image_registry(settings: Settings, cluster: str) -> Registry:
    """From which nodes fetch images of this machine. Close it.

    Raises:
        ConfigurationError: it is switched off.
    """
    from swarmtask.engines.swarm.registry import Registry

    if not settings.agents.images_port:
        raise ConfigurationError("nodes fetch no images from this machine: the setting agents.images_port is 0")
    return Registry.of(settings.swarm, settings.agents, cluster)


def node_agents(settings: Settings, api: ObjectApi, cluster: str, clock: Clock, opened: contextlib.ExitStack) -> Agents:
    """What keeps node agents on the nodes of the swarm; what it opens is closed by `opened`."""
    from swarmtask.controllers.agents import Agents
    from swarmtask.engines.base import AgentWish
    from swarmtask.engines.swarm.agents import SwarmAgents

    host = SwarmAgents.of(settings.swarm, settings.agents, cluster)
    opened.callback(host.close)

    async def wish() -> AgentWish:
        server, ca = api.connection.server, api.connection.ca_pem  # type: ignore[attr-defined]
        return AgentWish(
            settings.agents.image, settings.agents.api_url or reachable(server, await host.address()), ca,
            fence_s=int(settings.operator.fence_s),
            # What the agent takes at most to kill is five seconds: together they must not be longer than the operator waits.
            fence_grace_s=max(0, min(5, int(settings.operator.fence_margin_s) - 5)),
            capabilities=tuple(settings.agents.capabilities),
        )  # fmt: skip

    return Agents(api, host, wish, clock)


def reachable(server: str, address: str) -> str:
    """The API's URL for other machines: with this machine's address in the swarm where it is written with one of its loopback.

    Args:
        server: https://HOST:PORT, as a kubeconfig on this machine has it.
        address: an IP address; empty: none is known.
    """
    parts = urlsplit(server)
    try:
        loopback = parts.hostname == "localhost" or ipaddress.ip_address(parts.hostname or "").is_loopback
    except ValueError:  # a name
        loopback = False
    if not loopback or not address:
        return server
    host = f"[{address}]" if ":" in address else address
    return f"{parts.scheme}://{host}:{parts.port}" if parts.port else f"{parts.scheme}://{host}"
