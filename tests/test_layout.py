"""The shape of the repository: what must never exist, what every tracked file may say, and that the wheel works elsewhere."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Spelled in pieces, so that this file does not find itself.
_MACHINE_PATHS = re.compile(
    "(?<![A-Za-z0-9_.])/(?:" + "|".join(["ro" + "ot/", "wo" + "rk/(?:main|wt|shared)", "ho" + "me/[a-z]"]) + ")"
)
_TEXT_SUFFIXES = {".py", ".md", ".toml", ".yaml", ".yml", ".json", ".sh", ".lock", ".cfg", ".txt", ""}


def tracked() -> list[Path]:
    """The files that git knows, or all but the built ones in a tree without git."""
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listing.returncode == 0:
        return [ROOT / name for name in listing.stdout.split("\0") if name and (ROOT / name).is_file()]
    skipped = {".venv", "build", "dist", ".git"}
    return [path for path in ROOT.rglob("*") if path.is_file() and not skipped & set(path.relative_to(ROOT).parts)]


@pytest.mark.parametrize("name", ["operator/__init__.py", "operator/conftest.py", "tests/operator/__init__.py"])
def test_the_folder_operator_never_shadows_the_standard_library(name: str) -> None:
    assert not (ROOT / name).exists()


def test_no_tracked_file_names_a_path_of_one_machine() -> None:
    found = []
    for path in tracked():
        if path.suffix not in _TEXT_SUFFIXES:
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
            if _MACHINE_PATHS.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}")
    assert not found, "\n".join(found)


def test_every_module_of_the_package_says_what_lives_in_it() -> None:
    silent = [
        str(path.relative_to(ROOT))
        for path in (ROOT / "operator" / "swarmtask").rglob("*.py")
        if not path.read_text(encoding="utf-8").lstrip().startswith(('"""', "#!"))
    ]
    assert not silent


_NO_INDEX = re.compile("NewConnectionError|NameResolutionError|ConnectTimeoutError|ProxyError|Network is unreachable|timed out")


def _install(python: Path, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(python), "-m", "pip", "--disable-pip-version-check", "install", "-q", "--retries", "1", *arguments],
        capture_output=True, text=True, timeout=280, check=False, cwd=folder,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_what_the_product_imports_is_what_it_installs() -> None:
    """The tests' own environment has more: an import of that would fail on every machine but this one."""
    locked = set(re.findall(r"^([a-z0-9-]+)==", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
    brought = {name: {one.lower().replace("_", "-") for one in of} for name, of in packages_distributions().items()}
    missing = set()
    for path in (ROOT / "operator").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
            for name in (one.partition(".")[0] for one in names):
                if name not in sys.stdlib_module_names and name != "swarmtask" and not brought.get(name, set()) & locked:
                    missing.add((path.relative_to(ROOT).as_posix(), name))
    assert missing == set()


@pytest.mark.slow
def test_the_wheel_works_in_an_empty_environment(tmp_path: Path) -> None:
    """Built by hatchling from this tree; installed with the locked dependencies where nothing of this tree is on the path."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "dist")],
        cwd=ROOT, check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "swarmtask/cli/main.py" in names and "swarmtask/py.typed" in names
    assert "swarmtask/cli/demo/scripts/count_lines.py" in names
    assert not [name for name in names if name.startswith(("operator", "tests"))]

    environment = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True, timeout=120)
    python = environment / "bin" / "python"
    locked = _install(python, "--require-hashes", "-r", str(ROOT / "requirements.lock"), folder=tmp_path)
    if locked.returncode != 0 and _NO_INDEX.search(locked.stderr):
        pytest.skip("[missing: a package index] the locked dependencies cannot be fetched. Run it where pip reaches an index.")
    assert locked.returncode == 0, locked.stderr
    installed = _install(python, "--no-deps", str(wheel), folder=tmp_path)
    assert installed.returncode == 0, installed.stderr
    # The lock is complete: nothing that the wheel asks for is missing or of a wrong version.
    checked = subprocess.run([str(python), "-m", "pip", "check"], capture_output=True, text=True, timeout=60, check=False)
    assert checked.returncode == 0, checked.stdout

    def run(*command: str) -> str:
        result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path, env={})
        assert result.returncode == 0, result.stderr
        return result.stdout

    program = str(environment / "bin" / "swarmtask")
    assert re.fullmatch(r"swarmtask \d+\.\d+\.\d+\S*\n", run(program, "version"))
    assert "Start the control plane" in run(program, "up", "--help")
    (site,) = environment.glob("lib/python*/site-packages")
    assert run(str(python), "-c", "import swarmtask; print(swarmtask.__file__)").startswith(str(site))
    # Everything that a server, an engine and a client need can be imported from what the lock names.
    rooms = "swarmtask.apiserver.server, swarmtask.controllers.operator, swarmtask.engines.swarm, swarmtask.engines.local"
    run(str(python), "-c", f"import {rooms}, swarmtask.kube")
