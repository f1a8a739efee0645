"""The processes that stay: they load what they need and nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest

from swarmtask.cli import main, serving
from swarmtask.cli.child import Orders
from swarmtask.cli.exits import ExitCode

HEAVY = (
    "docker", "requests", "kopf", "numpy", "lightkube", "httpx2", "aiohttp", "psutil", "swarmtask.cli.main",
    "rich", "pygments", "cel", "re2", "prompt_toolkit", "kubernetes", "oauthlib", "kubernetes_asyncio", "pykube",
    "cryptography", "jwt", "pydantic_settings", "h2", "tarfile", "typer",
)  # fmt: skip
API_SERVER = ("swarmtask.apiserver.server", "swarmtask.engines.swarm.shells")
OPERATOR = ("swarmtask.controllers.operator", "swarmtask.kube", "swarmtask.engines.local")
OPERATES_WITH = {"kopf", "numpy", "lightkube", "httpx2", "aiohttp", "psutil"}


def loaded_by(arguments: list[str], *modules: str) -> set[str]:
    """Which of the heavy modules a fresh interpreter has when the program was read in for these arguments, and after these imports.
    The clients that tests bring are installed here: kopf would load them."""
    program = f"""
import importlib, sys
from swarmtask.cli.start import read_in
read_in({arguments!r})
for name in {modules!r}:
    importlib.import_module(name)
print(*[name for name in {HEAVY!r} if name in sys.modules])
"""
    return set(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split())


def child(part: Literal["apiserver", "operator"]) -> list[str]:
    return Orders(part=part, data_dir=Path("/nowhere"), log_level="info", log_json=False).argv()[3:]


@pytest.mark.slow
def test_the_api_server_loads_no_engine_and_no_client() -> None:
    assert loaded_by(["apiserver"], *API_SERVER) == {"typer"}


@pytest.mark.slow
def test_the_operator_on_the_local_engine_loads_no_docker_and_no_other_client() -> None:
    assert loaded_by(["operator"], *OPERATOR, "swarmtask.cli.session") == {*OPERATES_WITH, "typer"}


@pytest.mark.slow
def test_children_load_no_commands_either() -> None:
    assert loaded_by(child("apiserver"), *API_SERVER) == set()
    assert loaded_by(child("operator"), *OPERATOR) == OPERATES_WITH


def test_who_supervises_both_loads_neither() -> None:
    assert loaded_by(["up"], "swarmtask.cli.controlplane") == {"typer"}


def test_orders_arrive_as_they_were_given() -> None:
    given = Orders(
        part="apiserver", data_dir=Path("/a b/ü"), log_level="debug", log_json=True, config=Path("c.yaml"), listen=("::1", 0)
    )
    assert Orders.of(given.argv()[3:]) == given
    assert Orders.of(["apiserver"]) is None
    assert Orders.of(["operator", "--log-level", "debug"]) is None
    assert Orders.of(["operator", "--supervised", "by hand"]) is None


def test_a_child_that_cannot_start_says_why_and_ends_with_the_code_of_the_error(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    orders = Orders(part="apiserver", data_dir=file / "below", log_level="info", log_json=False)
    done = subprocess.run(orders.argv(), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (ExitCode.REFUSED, "")
    assert "choose another one with --data-dir" in done.stderr and "Traceback" not in done.stderr


def test_both_programs_have_the_same_commands() -> None:
    every = {command.name: command.callback for command in main.app.registered_commands}
    staying = {command.name: command.callback for command in serving.app.registered_commands}
    assert staying.keys() == {"up", "apiserver", "operator"}
    assert all(every[name].__doc__ == callback.__doc__ for name, callback in staying.items() if callback is not None)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["up", "apiserver", "operator"])
def test_they_start_from_the_package(name: str) -> None:
    done = subprocess.run([sys.executable, "-m", "swarmtask", name, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"swarmtask {name}" in done.stdout
