"""The processes that stay: they load what they need and nothing else."""

from __future__ import annotations

import subprocess
import sys

import pytest

from swarmtask.cli import main, serving

HEAVY = (
    "docker", "requests", "kopf", "numpy", "lightkube", "httpx2", "aiohttp", "psutil", "swarmtask.cli.main",
    "rich", "pygments", "cel", "re2", "prompt_toolkit", "kubernetes", "oauthlib", "kubernetes_asyncio", "pykube",
    "cryptography", "jwt", "pydantic_settings", "h2", "tarfile",
)  # fmt: skip
API_SERVER = ("swarmtask.apiserver.server", "swarmtask.engines.swarm.shells")
OPERATOR = ("swarmtask.cli.session", "swarmtask.controllers.operator", "swarmtask.engines.local")


def loaded_by(command: str, *modules: str) -> set[str]:
    """Which of the heavy modules a fresh interpreter has when the program was read in for this command, and after these imports.
    The clients that tests bring are installed here: kopf would load them."""
    program = f"""
import importlib, sys
from swarmtask.cli.start import read_in
read_in([{command!r}])
for name in {modules!r}:
    importlib.import_module(name)
print(*[name for name in {HEAVY!r} if name in sys.modules])
"""
    return set(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split())


def test_the_api_server_loads_no_engine_and_no_client() -> None:
    assert loaded_by("apiserver", *API_SERVER) == set()


def test_the_operator_on_the_local_engine_loads_no_docker_and_no_other_client() -> None:
    needed = {"kopf", "numpy", "lightkube", "httpx2", "aiohttp", "psutil"}
    assert loaded_by("operator", *OPERATOR) == needed


def test_who_supervises_both_loads_neither() -> None:
    assert loaded_by("up", "swarmtask.cli.controlplane") == set()


def test_both_programs_have_the_same_commands() -> None:
    every = {command.name: command.callback for command in main.app.registered_commands}
    staying = {command.name: command.callback for command in serving.app.registered_commands}
    assert staying.keys() == {"up", "apiserver", "operator"}
    assert all(every[name].__doc__ == callback.__doc__ for name, callback in staying.items() if callback is not None)


@pytest.mark.parametrize("name", ["up", "apiserver", "operator"])
def test_they_start_from_the_package(name: str) -> None:
    done = subprocess.run([sys.executable, "-m", "swarmtask", name, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"swarmtask {name}" in done.stdout
