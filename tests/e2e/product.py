"""The product as its users start it: `swarmtask` as child processes and a real kubectl beside it.

Used by the end-to-end tests. Everything goes through the command line and the API; nothing here imports the product.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

Object = dict[str, Any]
_POLL_S = 0.1


class Timeout(AssertionError):
    """A state was not reached; the message holds the last thing that was seen."""


def wait_until(what: str, probe: Callable[[], Any], timeout_s: float = 60.0, detail: Callable[[], str] = lambda: "") -> Any:
    """Call `probe` until it returns something true; return that."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = probe()
        if value:
            return value
        if time.monotonic() > deadline:
            raise Timeout(f"{what}: not within {timeout_s:.0f} s; last seen: {value!r} {detail()}")
        time.sleep(_POLL_S)


class Process:
    """A child process in a group of its own, with its output in a file."""

    def __init__(self, name: str, args: Iterable[str], log: Path, env: Mapping[str, str], within: Iterable[str] = ()) -> None:
        """`within`: the start of a command line that runs what is behind it somewhere else."""
        self.name = name
        self.log = log
        with log.open("ab") as output:
            self._begin = output.tell()
            self._popen = subprocess.Popen(
                [*within, sys.executable, "-m", "swarmtask", *args],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=dict(env), start_new_session=True,
            )  # fmt: skip

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def alive(self) -> bool:
        return self._popen.poll() is None

    @property
    def returncode(self) -> int | None:
        """None while it runs."""
        return self._popen.poll()

    def await_line(self, pattern: str) -> re.Match[str]:
        """Wait until this process has said so."""

        def probe() -> re.Match[str] | None:
            if not self.alive:
                raise AssertionError(f"{self.name} ended at start:\n{self.tail()}")
            return re.search(pattern, self.log.read_bytes()[self._begin :].decode(errors="replace"))

        said: re.Match[str] = wait_until(f"{self.name}: {pattern}", probe, 60, self.tail)
        return said

    def kill(self) -> None:
        """SIGKILL to this process alone, as a crash would."""
        self._popen.kill()
        self._popen.wait(10)

    def stop(self, timeout_s: float = 30.0) -> int:
        """SIGTERM, and the exit code. What is left of the group after that is killed."""
        if self.alive:
            self._popen.terminate()
        try:
            return self._popen.wait(timeout_s)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            self._popen.wait(10)

    def tail(self, lines: int = 40) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


class Product:
    """One control plane on one data directory.

    Args:
        docker_host: Docker endpoint of the Swarm manager; None with the local engine.
        kubectl: the kubectl program to use.
        address: where the API listens; node agents need one that they can reach.
        settings: environment of both processes, `SWARMTASK_...`.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        engine: str,
        kubectl: Path | None,
        docker_host: str | None = None,
        address: str = "127.0.0.1",
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self.data_dir, self.address = data_dir, address
        self.engine = engine
        self.kubectl_path = kubectl
        self.kubeconfig = data_dir / "kubeconfig"
        self.env = {key: value for key, value in os.environ.items() if not key.startswith(("SWARMTASK_", "DOCKER_", "KUBE"))}
        self.env |= {"NO_COLOR": "1", "PYTHONUNBUFFERED": "1", "HOME": str(data_dir), "KUBECONFIG": str(self.kubeconfig)}
        self.env["PYTHONPATH"] = str(Path(__file__).parents[2] / "operator")
        self.env |= dict(settings or {})
        if docker_host is not None:
            self.env["DOCKER_HOST"] = docker_host
        self.apiserver: Process | None = None
        self.operator: Process | None = None
        self.new_operator: Callable[[str, Iterable[str], Path, Mapping[str, str]], Process] = Process
        self.port = 0

    # --- processes ---------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.start_apiserver()
        self.start_operator()

    def start_apiserver(self) -> None:
        """Start the API server (on the port it had before, as the supervisor does) and wait until it answers."""
        args = ["apiserver", "--data-dir", str(self.data_dir), "--listen", f"{self.address}:{self.port}"]
        self.apiserver = Process("apiserver", args, self.data_dir / "apiserver.log", self.env)
        said = self.apiserver.await_line(rf"The API listens on https://{re.escape(self.address)}:(\d+)")
        self.port = int(said.group(1))

    def start_operator(self, extra_env: Mapping[str, str] | None = None, *, wait: bool = True) -> None:
        """Start the operator; with `wait`, until it reconciles."""
        args = ["operator", "--data-dir", str(self.data_dir), "--kubeconfig", str(self.kubeconfig), "--engine", self.engine]
        self.operator = self.new_operator("operator", args, self.data_dir / "operator.log", self.env | dict(extra_env or {}))
        if wait:
            self.operator.await_line("The operator reconciles")

    def stop(self) -> None:
        for process in (self.operator, self.apiserver):
            if process is not None:
                process.stop()

    def logs_of_the_control_plane(self) -> str:
        return "\n".join(f"--- {p.name}\n{p.tail(80)}" for p in (self.apiserver, self.operator) if p is not None)

    # --- clients -----------------------------------------------------------------------------------------------------------

    def swarmtask(self, *args: str, check: bool = True, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "swarmtask", *args], env=self.env, capture_output=True, text=True, timeout=timeout_s, check=False
        )
        if check and done.returncode != 0:
            raise AssertionError(f"swarmtask {' '.join(args)} ended with {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    def kubectl(
        self, *args: str, stdin: str | None = None, check: bool = True, timeout_s: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        assert self.kubectl_path is not None
        done = subprocess.run(
            [str(self.kubectl_path), *args],
            env=self.env,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if check and done.returncode != 0:
            raise AssertionError(f"kubectl {' '.join(args)} ended with {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    def apply(self, *objects: Object) -> str:
        """kubectl apply of one file with all of them."""
        return self.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(objects)).stdout

    def get(self, kind: str, name: str | None = None, selector: str | None = None) -> Any:
        """One object (None when it is not there), or the items of the list; `status` is {} until somebody has written one."""
        args = ["get", kind, *([name] if name else []), "-o", "json", *(["-l", selector] if selector else [])]
        done = self.kubectl(*args, check=False)
        if done.returncode != 0:
            if name and "NotFound" in done.stderr:
                return None
            raise AssertionError(done.stderr)
        parsed = json.loads(done.stdout)
        for item in [parsed] if name else parsed["items"]:
            item.setdefault("status", {})
        return parsed if name else parsed["items"]

    def event_reasons(self, name: str) -> list[str]:
        """Reasons of a task's Events in the order in which `kubectl describe` shows them."""
        described = self.kubectl("describe", "swarmtask", name).stdout
        rows = described.partition("\nEvents:\n")[2].splitlines()[2:]
        return [row.split()[1] for row in rows if row.strip()]

    def phases(self, selector: str | None = None) -> dict[str, str]:
        return {
            item["metadata"]["name"]: item.get("status", {}).get("phase", "") for item in self.get("swarmtasks", selector=selector)
        }

    def wait_phase(self, name: str, *phases: str, timeout_s: float = 60.0) -> Object:
        """Wait until the task is in one of the phases; return it."""

        def probe() -> Object | None:
            found = self.get("swarmtask", name)
            return found if found and found.get("status", {}).get("phase") in phases else None

        def detail() -> str:
            return json.dumps((self.get("swarmtask", name) or {}).get("status"), indent=1) + self.logs_of_the_control_plane()

        found: Object = wait_until(f"task {name} in {'/'.join(phases)}", probe, timeout_s, detail)
        return found

    def wait_all(self, phase: str, count: int, selector: str | None = None, timeout_s: float = 120.0) -> dict[str, str]:
        """Wait until `count` tasks exist and all are in that phase."""

        def probe() -> dict[str, str] | None:
            seen = self.phases(selector)
            return seen if len(seen) == count and set(seen.values()) == {phase} else None

        def detail() -> str:
            return json.dumps(self.phases(selector)) + self.logs_of_the_control_plane()

        seen: dict[str, str] = wait_until(f"{count} tasks {phase}", probe, timeout_s, detail)
        return seen


def task(
    name: str,
    script: str,
    *,
    image: str,
    cpu: str = "100m",
    memory: str = "64Mi",
    labels: Mapping[str, str] | None = None,
    **spec: Any,
) -> Object:
    """A SwarmTask that runs a shell script."""
    return {
        "apiVersion": "swarmtask.io/v1alpha1",
        "kind": "SwarmTask",
        "metadata": {"name": name, "namespace": "default", **({"labels": dict(labels)} if labels else {})},
        "spec": {
            "container": {
                "image": image,
                "command": ["sh", "-c", script],
                "resources": {"requests": {"cpu": cpu, "memory": memory}},
            },
            "terminationGracePeriodSeconds": 2,
            **spec,
        },
    }
