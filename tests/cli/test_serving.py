"""The processes that stay: they load what they need and nothing else."""

from __future__ import annotations

import subprocess
import sys

import pytest

from swarmtask.cli import main, serving

HEAVY = ("docker", "requests", "kopf", "numpy", "lightkube", "httpx2", "aiohttp", "psutil", "swarmtask.cli.main")


def loaded_by(*modules: str) -> set[str]:
    """Which of the heavy modules a fresh interpreter has after these imports, where people run it: without the clients that tests
    bring, which kopf loads if they are there."""
    shown = f"print(*[name for name in {HEAVY!r} if name in sys.modules])"
    program = f"import sys\nsys.modules['kubernetes'] = None\nimport {', '.join(modules)}\n{shown}"
    return set(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split())


def test_the_api_server_loads_no_engine_and_no_client() -> None:
    assert loaded_by("swarmtask.cli.serving", "swarmtask.wiring", "swarmtask.apiserver.server") == set()


def test_the_operator_on_the_local_engine_loads_no_docker() -> None:
    loaded = loaded_by("swarmtask.cli.serving", "swarmtask.controllers.operator", "swarmtask.engines.local")
    assert loaded.isdisjoint({"docker", "requests", "swarmtask.cli.main"})


def test_both_programs_have_the_same_commands() -> None:
    every = {command.name: command.callback for command in main.app.registered_commands}
    staying = {command.name: command.callback for command in serving.app.registered_commands}
    assert staying.keys() == {"apiserver", "operator"}
    assert all(every[name].__doc__ == callback.__doc__ for name, callback in staying.items() if callback is not None)


@pytest.mark.parametrize("name", ["apiserver", "operator"])
def test_they_start_from_the_package(name: str) -> None:
    done = subprocess.run([sys.executable, "-m", "swarmtask", name, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"swarmtask {name}" in done.stdout
