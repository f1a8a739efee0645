"""What the CLI's tests share: the program run in this process against an in-memory API."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from swarmtask import wiring
from swarmtask.cli.main import app
from swarmtask.clock import SystemClock
from tests.fakes.engine import FakeEngine, Timings
from tests.fakes.kube import FakeKube

KUBECONFIG = """\
apiVersion: v1
kind: Config
current-context: swarmtask
contexts:
- name: swarmtask
  context: {cluster: swarmtask, user: admin, namespace: default}
- name: other
  context: {cluster: swarmtask, user: admin, namespace: elsewhere}
clusters:
- name: swarmtask
  cluster: {server: "https://127.0.0.1:1"}
users:
- name: admin
  user: {token: secret}
"""

Swarmtask = Callable[..., Result]


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data directory with a kubeconfig, and nothing of this machine's own configuration."""
    for name in ("KUBECONFIG", "SWARMTASK_CONFIG", "SWARMTASK_DATA_DIR", "SWARMTASK_DEBUG", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "kubeconfig").write_text(KUBECONFIG)
    return folder


@pytest.fixture
def kube(monkeypatch: pytest.MonkeyPatch) -> FakeKube:
    """The API that every command reaches, whatever its kubeconfig says."""
    fake = FakeKube(SystemClock())

    async def connect(kubeconfig: Path, context: str | None = None, *, for_person: bool = False) -> FakeKube:
        assert for_person
        assert kubeconfig.is_file()  # noqa: ASYNC240 - a local file
        return fake

    async def cluster_id(api: object) -> str:
        assert api is fake
        return "test-cluster"

    monkeypatch.setattr(wiring, "kube_client", connect)
    monkeypatch.setattr(wiring, "cluster_id", cluster_id)
    return fake


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    """The engine from which `logs` reads, under the name `local`."""
    fake = FakeEngine(name="local", clock=SystemClock(), timings=Timings(visible_s=0.0, prepare_s=0.0))

    def build(name: str, settings: object, cluster: str, clock: object) -> FakeEngine:
        assert (name, cluster) == ("local", "test-cluster")
        return fake

    monkeypatch.setattr(wiring, "engine", build)
    return fake


@pytest.fixture
def swarmtask(data_dir: Path) -> Swarmtask:
    """Run a command: `swarmtask("get", "tasks")`. The data directory is given by the environment."""
    runner = CliRunner(env={"SWARMTASK_DATA_DIR": str(data_dir), "COLUMNS": "120", "TERM": "dumb"})

    def run(*arguments: str, input: str | None = None) -> Result:
        return runner.invoke(app, list(arguments), input=input)

    return run
