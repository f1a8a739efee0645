"""Fixtures of the conformance suite: one API server for all tests of a run, real kubectl programs, a namespace per test.

The programs are Debian's (1.20) and a current one. A test that takes `kubectl` runs with each that is here; none is fetched.

The server is a process of the run's own. SWARMTASK_CONFORMANCE_KUBECONFIG names a kubeconfig instead: then the suite speaks to that
cluster, which must have the definitions of `manifests/crds`. Tests marked `embedded` ask for what only this repository's server has
(or start one) and are skipped; what the others made is removed when the run ends.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import queue
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from tests.apiserver.server import ROOT, RunningServer, describe
from tests.lab.tools import kubectl_binaries

TIMEOUT_S = 60
HISTORY_ROWS = 100
"""Changes that the forgetful server remembers."""
BINARIES = kubectl_binaries()
FOREIGN = os.environ.get("SWARMTASK_CONFORMANCE_KUBECONFIG", "")
RUN = f"swarmtask-conformance-{secrets.token_hex(3)}" if FOREIGN else "test"
"""Begins every name outside of a namespace that the tests make."""
OWN_GROUPS = (".example.com", ".example.org")
"""Of the definitions that the tests make."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """On somebody else's cluster, leave out what only our own server can be asked."""
    for item in items:
        if FOREIGN and item.get_closest_marker("embedded"):
            item.add_marker(pytest.mark.skip(reason="asks for the embedded API server: SWARMTASK_CONFORMANCE_KUBECONFIG is set"))


@dataclass(frozen=True)
class Result:
    """What a kubectl said."""

    code: int
    out: str
    err: str


class Follow:
    """A kubectl that goes on running; its lines are read as they come."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self._lines: queue.Queue[str | None] = queue.Queue()
        self.seen: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line.rstrip("\n"))
        self._lines.put(None)

    def until(self, wanted: Callable[[str], bool]) -> str:
        """The next line that fits. Fails when the program ends or is silent for too long."""
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"nothing fits, seen so far: {self.seen}") from None
            if line is None:
                raise AssertionError(f"the program ended, it said: {self.seen}")
            self.seen.append(line)
            if wanted(line):
                return line

    def wait(self) -> int:
        """Wait until the program ends by itself; its exit code."""
        code = self._process.wait(TIMEOUT_S)
        self._reader.join(TIMEOUT_S)
        while not self._lines.empty():
            line = self._lines.get()
            if line is not None:
                self.seen.append(line)
        return code

    def stop(self) -> None:
        self._process.kill()
        self._process.wait(TIMEOUT_S)
        self._reader.join(TIMEOUT_S)


@dataclass
class Kubectl:
    """A kubectl program, bound to a server and to one namespace."""

    version: str
    binary: Path
    server: RunningServer
    home: Path
    namespace: str
    _following: list[Follow] = field(default_factory=list)

    def _command(self, arguments: tuple[str, ...]) -> list[str]:
        return [str(self.binary), f"--namespace={self.namespace}", f"--cache-dir={self.home / 'cache'}", *arguments]

    def _environment(self, more: dict[str, str]) -> dict[str, str]:
        keep = {key: os.environ[key] for key in ("PATH", "TMPDIR") if key in os.environ}
        return {**keep, "KUBECONFIG": str(self.server.kubeconfig), "HOME": str(self.home), "LC_ALL": "C", **more}

    def run(self, *arguments: str, stdin: str = "", env: dict[str, str] | None = None) -> Result:
        """Run to the end, whatever the exit code."""
        done = subprocess.run(
            self._command(arguments), input=stdin, env=self._environment(env or {}), capture_output=True, text=True,
            timeout=TIMEOUT_S, check=False,
        )  # fmt: skip
        return Result(done.returncode, done.stdout, done.stderr)

    def __call__(self, *arguments: str, stdin: str = "", env: dict[str, str] | None = None) -> str:
        """Run, expect success, give what was printed."""
        result = self.run(*arguments, stdin=stdin, env=env)
        assert result.code == 0, f"kubectl {' '.join(arguments)}: {result.code}\n{result.out}\n{result.err}"
        return result.out

    def fails(self, *arguments: str, stdin: str = "") -> str:
        """Run, expect failure, give the error."""
        result = self.run(*arguments, stdin=stdin)
        assert result.code != 0, f"kubectl {' '.join(arguments)} succeeded:\n{result.out}"
        return result.err

    def follow(self, *arguments: str) -> Follow:
        """Start a kubectl that goes on running; it is stopped with the test."""
        following = Follow(self._command(arguments), self._environment({}))
        self._following.append(following)
        return following

    def close(self) -> None:
        for following in self._following:
            following.stop()


def foreign_server(kubeconfig: Path) -> RunningServer:
    """The cluster that a kubeconfig's current context names. `ca` and `token` are empty where the file has them in another form."""
    config = yaml.safe_load(kubeconfig.read_text())
    context = next(item["context"] for item in config["contexts"] if item["name"] == config["current-context"])
    cluster = next(item["cluster"] for item in config["clusters"] if item["name"] == context["cluster"])
    user = next((item["user"] for item in config["users"] if item["name"] == context["user"]), {})
    return RunningServer(cluster["server"], kubeconfig, Path(cluster.get("certificate-authority", "")), user.get("token", ""))


def ask(server: RunningServer, *arguments: str) -> str:
    """A kubectl of the fixtures' own."""
    binary = next(iter(BINARIES.values()), None)
    if binary is None:
        pytest.skip("[missing: kubectl] `python -m tests.lab.setup` fetches it")
    command = [str(binary), "--kubeconfig", str(server.kubeconfig), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, f"{arguments}: {done.stderr}"
    return done.stdout


def definitions(server: RunningServer) -> set[str]:
    return set(ask(server, "get", "crd", "-o", "name").split())


def missing_definitions(server: RunningServer, known: set[str]) -> str | None:
    """What to say when the cluster does not know our kinds; None when it does."""
    if "customresourcedefinition.apiextensions.k8s.io/swarmtasks.swarmtask.io" in known:
        return None
    return f"{server.url} does not know SwarmTasks: `kubectl apply -f manifests/crds` first"


def on_foreign_server() -> Iterator[RunningServer]:
    """Somebody else's cluster: looked at before, cleaned after."""
    server = foreign_server(Path(FOREIGN).expanduser())
    before = definitions(server)
    if missing := missing_definitions(server, before):
        pytest.fail(missing, pytrace=False)
    try:
        yield server
    finally:
        left = ask(server, "get", "ns,clusterrole,clusterrolebinding", "-o", "name").split()
        mine = [name for name in left if name.partition("/")[2].startswith((RUN, f"r-{RUN}"))]
        mine += [name for name in definitions(server) - before if name.endswith(OWN_GROUPS)]
        if mine:
            ask(server, "delete", "--wait=false", *sorted(mine))
        shared = ask(server, "get", "cm,st", "-n", "default", "-o", "name").split()
        if mine := [name for name in shared if name.partition("/")[2].startswith(RUN)]:
            ask(server, "delete", "--wait=false", "-n", "default", *mine)


@contextlib.contextmanager
def serve(folder: Path, **environment: str) -> Iterator[RunningServer]:
    """An API server in a process of its own, which ends with the block."""
    ready, log = folder / "ready", folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "swarmtask.apiserver.server", "--data-dir", str(folder / "data"), "--listen", "127.0.0.1:0",
             "--ready-file", str(ready)],
            env={**os.environ, "PYTHONPATH": f"{ROOT / 'operator'}{os.pathsep}{ROOT}", **environment}, stderr=output,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + TIMEOUT_S
        while not ready.exists():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
        yield describe(folder / "data", ready.read_text().strip())
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(20)


@pytest.fixture(scope="session")
def conformance_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """An API server in a process of its own, or the one that was named."""
    if FOREIGN:
        yield from on_foreign_server()
    else:
        with serve(tmp_path_factory.mktemp("conformance")) as server:
            yield server


@pytest.fixture(scope="session")
def forgetful_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """An API server that keeps a short history, so that clients soon come too late. For tests marked `embedded`."""
    with serve(tmp_path_factory.mktemp("forgetful"), SWARMTASK_APISERVER__EVENT_LOG_ROWS=str(HISTORY_ROWS)) as server:
        yield server


_numbers = itertools.count(1)


@pytest.fixture(params=["debian", "current"])
def kubectl(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, conformance_server: RunningServer
) -> Iterator[Kubectl]:
    """Each kubectl that is here, with a fresh namespace."""
    name = request.param
    if name not in BINARIES:
        pytest.skip(f"[missing: kubectl ({name})] `python -m tests.lab.setup` fetches it")
    program = Kubectl(name, BINARIES[name], conformance_server, tmp_path_factory.mktemp(name), f"{RUN}-{next(_numbers)}")
    program("create", "namespace", program.namespace)
    try:
        yield program
    finally:
        program.close()
