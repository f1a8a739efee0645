"""The laboratory: real dockerd nodes on one machine that form a real Docker Swarm, and the faults that can be done to them.

    with Lab() as lab:
        lab.load_image(images.TASK_TAG)
        lab.client(lab.manager).services.create(...)
        lab.pause("laptop-1")

Called by the `lab` fixture of `tests/conftest.py` and by `make lab`. The first node is the Swarm manager and works too. Every
operation returns once its effect can be seen, or raises LabError; each may be repeated. Nothing here knows SwarmTask.
"""

import contextlib
import fcntl
import ipaddress
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TextIO

import docker
import docker.errors
import psutil

from tests.lab import images, tools
from tests.lab.images import LABEL
from tests.lab.node import (
    BRIDGE,
    GIB,
    LABEL_FOLDER,
    LABEL_KEEP,
    LABEL_NODE,
    UNREACHABLE,
    Cut,
    InnerContainer,
    LabError,
    LabNode,
    NodeSize,
    Signal,
    poll,
    remove_container,
)

DEFAULT_NODES = (NodeSize("desktop", 2, 16 * GIB), NodeSize("laptop-1", 2, 8 * GIB), NodeSize("laptop-2", 1, 4 * GIB))
_FIRST_HOST = 11
_PREFIX = "stlab-"
HEARTBEAT_S = 5
"""Swarm's own, unless it is told otherwise."""
_REMOVAL_S = 300
"""A disk on which images were built has hundreds of thousands of files."""


def sizes(count: int) -> tuple[NodeSize, ...]:
    """`count` nodes: the default three, then more small laptops."""
    more = (NodeSize(f"laptop-{i}", 1, 4 * GIB) for i in range(len(DEFAULT_NODES), count))
    return (*DEFAULT_NODES[:count], *more)


class Lab:
    """A laboratory of `nodes` on the Docker at `docker_url`. With `keep` it outlives this process, until `sweep(kept=True)`."""

    def __init__(self, nodes: Iterable[NodeSize] = DEFAULT_NODES, *, docker_url: str, keep: bool = False) -> None:
        self._outer = docker.DockerClient(base_url=docker_url, timeout=60)
        self._docker_url = docker_url
        self._sizes = tuple(nodes)
        self._keep = keep
        self._nodes: dict[str, LabNode] = {}
        self._lock: TextIO | None = None
        self._image = ""
        self._subnet = ipaddress.IPv4Network("0.0.0.0/0")
        self.folder = Path()
        self.id = ""

    # --- life -----------------------------------------------------------------------------------------------------

    def start(self) -> "Lab":
        """Make the nodes and the Swarm; returns when every node is Ready.

        Raises:
            Missing: the node image cannot be had here.
            LabError: a node did not come up; nothing of the laboratory is left.
        """
        if not self._sizes:
            raise ValueError("a laboratory has at least one node")
        if len({size.name for size in self._sizes}) != len(self._sizes):
            raise ValueError("two nodes of a laboratory cannot have the same name")
        self._image = images.node_image(self._outer)
        self._lay_folder()
        try:
            self._lay_network()
            self._nodes = {node.name: node for node in self._at_once(self._create, enumerate(self._sizes))}
            self._at_once(LabNode.wait_api, self._nodes.values())
            first = self._nodes[self.manager]
            first.client().swarm.init(advertise_addr=first.address, listen_addr=f"{first.address}:2377", force_new_cluster=False)
            self._at_once(self._join, [node for node in self._nodes.values() if node is not first])
            self.wait_ready()
        except BaseException:
            self.teardown()
            raise
        return self

    @classmethod
    def find(cls, docker_url: str) -> "Lab | None":
        """The laboratory that `make lab` left running, if there is one; its nodes may be in any state."""
        lab = cls((), docker_url=docker_url, keep=True)
        found = lab._outer.containers.list(all=True, filters={"label": [LABEL_KEEP, LABEL_NODE]})
        if not found:
            lab._outer.close()
            return None
        lab.id = found[0].labels[LABEL]
        lab.folder = Path(found[0].labels[LABEL_FOLDER])
        lab._image = images.node_tag()
        network = lab._outer.networks.get(lab.folder.name)
        lab._subnet = ipaddress.IPv4Network(network.attrs["IPAM"]["Config"][0]["Subnet"])
        own = (container for container in found if container.labels[LABEL] == lab.id)
        nodes = sorted((LabNode(lab._outer, lab.folder.name, container) for container in own), key=_host_number)
        lab._nodes = {node.name: node for node in nodes}
        for node in nodes:
            with contextlib.suppress(*UNREACHABLE, LabError):
                node.swarm_id = node.client().info()["Swarm"]["NodeID"]
        return lab

    def teardown(self) -> None:
        """Remove every node, the network, the disks and the folder. Doing it again changes nothing."""
        for node in self._nodes.values():
            node.close()
        if self.id:
            _remove(self._outer, self.id, self.folder)
        self._nodes = {}
        if self._lock is not None:
            self._lock.close()
        self._outer.close()

    def __enter__(self) -> "Lab":
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.teardown()

    def _lay_folder(self) -> None:
        """What the nodes share, at a short path (a Unix socket's holds 108 bytes), locked for as long as this process lives."""
        self.folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        self.folder.chmod(0o755)
        self.id = self.folder.name.removeprefix(_PREFIX)
        draft = self.folder / "lock.new"
        self._lock = draft.open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        draft.rename(self.folder / "lock")  # whoever sees the lock file finds it locked
        shutil.copy(Path(__file__).with_name("node.sh"), self.folder / "node.sh")
        # A closed port answers at once that it is closed; a name server out of reach would cost 20 s per image name.
        (self.folder / "resolv.conf").write_text("nameserver 127.0.0.1\noptions attempts:1 timeout:1\n")

    @property
    def _labels(self) -> dict[str, str]:
        return {LABEL: self.id, LABEL_FOLDER: str(self.folder), **({LABEL_KEEP: "true"} if self._keep else {})}

    def _lay_network(self) -> None:
        """A bridge without a way out, on a range that neither this machine nor its Docker uses."""
        mine = [
            ipaddress.IPv4Interface(f"{address.address}/{address.netmask}").network
            for addresses in psutil.net_if_addrs().values()
            for address in addresses
            if address.family.name == "AF_INET" and address.netmask
        ]
        start = secrets.randbelow(256)
        for number in range(256):
            subnet = ipaddress.IPv4Network(f"10.213.{(start + number) % 256}.0/24")
            if any(subnet.overlaps(other) for other in mine):
                continue
            pool = docker.types.IPAMPool(subnet=str(subnet))
            try:
                self._outer.networks.create(
                    self.folder.name,
                    internal=True,
                    labels=self._labels,
                    options={"com.docker.network.bridge.name": f"{BRIDGE}{self.id}"[:15]},
                    ipam=docker.types.IPAMConfig(pool_configs=[pool]),
                )
            except docker.errors.APIError as error:
                if "overlaps" not in str(error):
                    raise
                continue
            self._subnet = subnet
            return
        raise LabError("no free /24 in 10.213.0.0/16 for the laboratory's network: remove unused Docker networks")

    @staticmethod
    def _at_once(work: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
        with ThreadPoolExecutor(max_workers=8) as pool:
            return list(pool.map(work, items))

    def _create(self, numbered: tuple[int, NodeSize]) -> LabNode:
        number, size = numbered
        address = str(self._subnet[_FIRST_HOST + number])
        return LabNode.create(
            self._outer,
            size,
            docker_url=self._docker_url,
            image=self._image,
            network=self.folder.name,
            address=address,
            labels=self._labels,
        )

    def _join(self, node: LabNode) -> None:
        token = self.manager_client().swarm.attrs["JoinTokens"]["Worker"]
        client = node.client()
        first = self._nodes[self.manager].address
        client.swarm.join(
            remote_addrs=[f"{first}:2377"], join_token=token, advertise_addr=node.address, listen_addr=f"{node.address}:2377"
        )
        node.swarm_id = poll(f"{node.name} to be given a Swarm ID", 20, lambda: client.info()["Swarm"]["NodeID"])

    # --- what is there --------------------------------------------------------------------------------------------

    @property
    def nodes(self) -> tuple[str, ...]:
        """Names of the nodes, the manager first."""
        return tuple(self._nodes)

    @property
    def manager(self) -> str:
        """Name of the Swarm manager."""
        return next(iter(self._nodes), self._sizes[0].name if self._sizes else "")

    @property
    def gateway(self) -> str:
        """This machine's own address as the nodes see it."""
        return str(self._subnet[1])

    def node(self, name: str) -> LabNode:
        try:
            return self._nodes[name]
        except KeyError:
            raise LabError(f"no node {name}: there are {', '.join(self._nodes)}") from None

    def docker_host(self, name: str) -> str:
        """`unix://...` of the node's own dockerd, as DOCKER_HOST takes it."""
        return self.node(name).docker_host

    def client(self, name: str) -> docker.DockerClient:
        """A client of the node's own dockerd. Raises LabError when the node is paused or off."""
        return self.node(name).client()

    def manager_client(self) -> docker.DockerClient:
        return self.client(self.manager)

    def swarm_node_id(self, name: str) -> str:
        """The ID under which Swarm knows the node."""
        node = self.node(name)
        if not node.swarm_id:
            node.swarm_id = node.client().info()["Swarm"]["NodeID"]
        return node.swarm_id

    def swarm_state(self, name: str) -> str:
        """What the manager says of the node now: ready, down, unknown, disconnected."""
        return str(self.manager_client().api.inspect_node(self.swarm_node_id(name))["Status"]["State"])

    def containers(self, name: str) -> list[InnerContainer]:
        """All containers of the node's own dockerd, those that have ended too, with their labels."""
        return self.node(name).containers()

    def wait_state(self, name: str, state: str, timeout_s: float = 30) -> None:
        """Until the manager says `state` of the node."""
        poll(f"Swarm to call {name} {state}", timeout_s, lambda: self.swarm_state(name) == state, ignore=UNREACHABLE)

    def wait_ready(self, timeout_s: float = 60) -> None:
        """Until every node's dockerd answers and the manager calls every node ready."""
        for node in self._nodes.values():
            node.wait_api(timeout_s)
        for name, node in self._nodes.items():
            try:
                self.wait_state(name, "ready", timeout_s)
            except LabError as error:
                raise LabError(f"{error}\nIts last words:\n{node.log(40)}") from error

    def load_image(self, tag: str, nodes: Iterable[str] | None = None) -> str:
        """Give nodes (all of them) an image without a registry: one made by `images`, else one that the outer Docker has."""
        archive = images.image_tar(tag, self._outer)
        self._at_once(lambda name: images.load(self.client(name), archive), nodes if nodes is not None else self.nodes)
        return tag

    # --- faults ---------------------------------------------------------------------------------------------------

    def pause(self, name: str) -> None:
        """A closed lid."""
        self.node(name).pause()

    def unpause(self, name: str) -> None:
        self.node(name).unpause()

    def kill(self, name: str) -> None:
        """A power cut."""
        self.node(name).kill()

    def start_node(self, name: str) -> None:
        """Power on again."""
        self.node(name).start()

    def restart_dockerd(self, name: str, signal: Signal = "KILL") -> None:
        """End the node's dockerd alone; another one has answered when this returns."""
        self.node(name).restart_dockerd(signal)

    def stop_dockerd(self, name: str, signal: Signal = "TERM") -> None:
        """End the node's dockerd and keep it down until `start_dockerd`."""
        self.node(name).stop_dockerd(signal)

    def start_dockerd(self, name: str) -> None:
        self.node(name).start_dockerd()

    def partition(self, name: str, cut: Cut = "both") -> None:
        """Cut the node off the network: `both` ways, only `in` or `out`, or `unplugged` (its interface goes too)."""
        self.node(name).partition(cut)

    def heal(self, name: str) -> None:
        self.node(name).heal()

    def add_node(self, size: NodeSize, images: Iterable[str] = ()) -> str:
        """One more laptop, joined and ready, which has had these images before it joined; returns its name."""
        if size.name in self._nodes:
            raise LabError(f"there is a node {size.name} already")
        taken = {_host_number(node) for node in self._nodes.values()}
        number = next(i for i in range(200) if _FIRST_HOST + i not in taken)
        node = self._create((number, size))
        self._nodes[size.name] = node
        node.wait_api()
        for tag in images:
            self.load_image(tag, [size.name])
        self._join(node)
        self.wait_state(size.name, "ready")
        return size.name

    def remove_node(self, name: str) -> None:
        """Take a node out of the Swarm and away; it need not be alive. Doing it again changes nothing."""
        if name == self.manager:
            raise LabError("the manager cannot be removed: tear the laboratory down")
        node = self._nodes.get(name)
        if node is None:
            return
        swarm_id = node.swarm_id
        node.remove()
        with contextlib.suppress(docker.errors.NotFound):
            self.manager_client().api.remove_node(swarm_id, force=True)
        del self._nodes[name]

    def leave(self, name: str) -> None:
        """`docker swarm leave` on the node itself; the Swarm keeps its entry, as lost."""
        self.client(name).swarm.leave()

    def rejoin(self, name: str) -> str:
        """`docker swarm join` on a node that has left; returns the ID that it is given now."""
        node = self.node(name)
        self._join(node)
        poll(f"{name} to be ready again", 60, lambda: self.swarm_state(name) == "ready")
        return node.swarm_id

    @contextlib.contextmanager
    def heartbeats(self, period_s: int) -> Iterator[None]:
        """Nodes report to Swarm so often, and are Down after three periods; every node has heard of it when this is entered."""

        def ask_for(seconds: int) -> None:
            api = self.manager_client().api
            swarm = api.inspect_swarm()
            spec = {**swarm["Spec"], "Dispatcher": {"HeartbeatPeriod": seconds * 10**9}}
            api.update_swarm(swarm["Version"]["Index"], swarm_spec=spec)

        ask_for(period_s)
        try:
            time.sleep(HEARTBEAT_S + 1)  # the answer to its next one tells a node of the new period; nothing shows that it has come
            yield
        finally:
            ask_for(HEARTBEAT_S)

    # --- between tests --------------------------------------------------------------------------------------------

    def restore(self) -> None:
        """As on the first day but for loaded images: nodes healed, of the first number, active and without labels; nothing runs."""
        original = [size.name for size in self._sizes] or list(self._nodes)
        for name in [name for name in self._nodes if name not in original]:
            self.remove_node(name)
        self._at_once(LabNode.restore, self._nodes.values())
        for number, size in enumerate(self._sizes):
            if size.name not in self._nodes:
                node = self._nodes[size.name] = self._create((number, size))
                node.wait_api()
                self._join(node)
        self.wait_ready()
        api = self.manager_client().api
        for service in api.services():
            with contextlib.suppress(docker.errors.NotFound):
                api.remove_service(service["ID"])
        for kind, remove in ((api.secrets, api.remove_secret), (api.configs, api.remove_config)):
            for item in kind():
                remove(item["ID"])
        self._at_once(self._empty, self.nodes)
        for name in self.nodes:
            self.reset_swarm_node(name)

    def _empty(self, name: str) -> None:
        """Swarm ends its own containers soon after their service is gone; what is not Swarm's is ended here."""
        api = self.client(name).api

        def none_left() -> bool:
            rows = api.containers(all=True)
            for row in rows:
                with contextlib.suppress(docker.errors.NotFound, docker.errors.APIError):
                    api.remove_container(row["Id"], force=True, v=True)
            return not rows

        poll(f"{name} to be empty", 30, none_left)

    def reset_swarm_node(self, name: str) -> None:
        """Remove labels and drain, if a test left any. Swarm's own writes to the node can come between: then again."""

        def reset() -> bool:
            api = self.manager_client().api
            node = api.inspect_node(self.swarm_node_id(name))
            spec = node["Spec"]
            if spec.get("Labels") or spec["Availability"] != "active":
                api.update_node(node["ID"], node["Version"]["Index"], {**spec, "Labels": {}, "Availability": "active"})
            return True

        poll(f"{name} to lose its labels", 20, reset, ignore=(docker.errors.APIError,))


def _host_number(node: LabNode) -> int:
    return int(node.address.rpartition(".")[2])


def _remove(outer: docker.DockerClient, lab_id: str, folder: Path) -> None:
    """Everything in Docker that carries a laboratory's label, then its folder."""
    mine = {"label": f"{LABEL}={lab_id}"}
    outer.api.timeout = max(outer.api.timeout, _REMOVAL_S)
    with ThreadPoolExecutor(max_workers=8) as pool:
        list(pool.map(remove_container, outer.containers.list(all=True, filters=mine, ignore_removed=True)))
    for volume in outer.volumes.list(filters=mine):
        with contextlib.suppress(docker.errors.NotFound):
            volume.remove(force=True)
    for network in outer.networks.list(filters=mine):
        with contextlib.suppress(docker.errors.NotFound):
            network.remove()
    if folder.name.startswith(_PREFIX):
        shutil.rmtree(folder, ignore_errors=True)


def _in_use(folder: Path) -> bool:
    """Does a living process hold the laboratory of this folder?"""
    try:
        with (folder / "lock").open() as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


def sweep(docker_url: str, *, kept: bool = False) -> list[str]:
    """Remove laboratories that killed test runs left, with `kept` also that of `make lab`; never one in use. Returns their IDs."""
    outer = docker.DockerClient(base_url=docker_url, timeout=60)
    with contextlib.closing(outer), tools.machine_lock("lab-sweep"):
        filters = {"label": LABEL_FOLDER}
        resources = [
            *((container.labels, container) for container in outer.containers.list(all=True, filters=filters, ignore_removed=True)),
            *((volume.attrs.get("Labels") or {}, volume) for volume in outer.volumes.list(filters=filters)),
            *((network.attrs.get("Labels") or {}, network) for network in outer.networks.list(filters=filters)),
        ]
        found = {labels[LABEL]: (Path(labels[LABEL_FOLDER]), LABEL_KEEP in labels) for labels, _ in resources}
        for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
            if (folder / "lock").exists():
                found.setdefault(folder.name.removeprefix(_PREFIX), (folder, False))
        gone = [lab_id for lab_id, (folder, keep) in found.items() if not _in_use(folder) and (kept or not keep)]
        for lab_id in gone:
            _remove(outer, lab_id, found[lab_id][0])
        return sorted(gone)
