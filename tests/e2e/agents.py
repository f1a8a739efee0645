"""Node agents in the laboratory, as people start them on laptops: a `swarmtask node-agent` in each node, with its own token.

Called by `stage`. How an agent gets onto a node is `launch` and nothing else: the process runs in the node's network, process IDs
and cgroups, so that a closed lid freezes it, a partition cuts it off and a power cut ends it, but it sees this machine's files, and
so needs no Python inside the node.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

import psutil

from tests.e2e.product import Process, Product, wait_until
from tests.lab.cluster import Lab
from tests.lab.node import LabNode
from tests.lab.tools import Missing

_JOIN = 'while [ "$1" != -- ]; do echo $$ >"$1/cgroup.procs"; shift; done; shift; exec "$@"'


def launch(node: LabNode, arguments: list[str], log: Path, env: Mapping[str, str]) -> Process:
    """Start `swarmtask ARGUMENTS` on a node. `alive` and `stop` are about the process; it ends with its node too.

    Raises:
        Missing: it cannot be done here.
    """
    if os.getuid() != 0:
        raise Missing("root", "only root can start a process inside a laboratory node", "Run the tests as root.")
    groups = dict.fromkeys(str(path) for path in node.cgroups().values())
    places = ["nsenter", f"--target={node.pid}", "--net", "--pid", "--uts", "--"]
    return Process(f"agent of {node.name}", arguments, log, env, within=["sh", "-c", _JOIN, "sh", *groups, "--", *places])


class Agents:
    """One agent per node, while they are wanted.

    Args:
        fence_s, grace_s: `--fence-seconds` and `--fence-grace`.
    """

    def __init__(self, lab: Lab, product: Product, *, fence_s: int, grace_s: int) -> None:
        self._lab, self._product = lab, product
        self._terms = ["--fence-seconds", str(fence_s), "--fence-grace", str(grace_s)]
        self._folder = product.data_dir / "agents"
        self._folder.mkdir(exist_ok=True)
        self._agents: dict[str, Process] = {}

    def start(self, *names: str) -> None:
        """Start those that do not run; each gets a token at its first start."""
        for name in names:
            kubeconfig = self._folder / f"{name}.kubeconfig"
            if not kubeconfig.exists():
                self._product.swarmtask("token", "create", name, "--role", "node", "--write-kubeconfig", str(kubeconfig))
            if name not in self._agents or not self._agents[name].alive:
                self._agents[name] = self._launch(name, kubeconfig)

    def _launch(self, name: str, kubeconfig: Path) -> Process:
        node = self._lab.node(name)
        arguments = [
            *("node-agent", "--kubeconfig", str(kubeconfig), "--node", name, *self._terms),
            *("--docker", str(node.socket), "--state", str(self._folder / name), "--proc", str(node.proc)),
        ]
        return launch(node, arguments, self._folder / f"{name}.log", self._product.env)

    def kill(self, name: str) -> None:
        """SIGKILL to the agent, as a crash would; its node goes on."""
        process = self._agents[name]
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
        wait_until(f"{process.name} to end", lambda: not process.alive, 10)

    def stop(self, *names: str) -> None:
        """SIGTERM and the end of those (of all)."""
        for name in names or tuple(self._agents):
            process = self._agents.pop(name, None)
            if process is None:
                continue
            with contextlib.suppress(psutil.NoSuchProcess):  # nsenter does not pass a signal on
                for child in psutil.Process(process.pid).children(recursive=True):
                    child.terminate()
            wait_until(f"{process.name} to end", lambda process=process: not process.alive, 15, process.tail)
            process.stop()

    def log(self, name: str) -> str:
        """All that the agents of a node have said."""
        return (self._folder / f"{name}.log").read_text(errors="replace")

    def tails(self) -> str:
        """The last words of each."""
        return "\n".join(f"--- {process.name}\n{process.tail(15)}" for process in self._agents.values())
