"""Documents say what is true: dependencies, examples, exit codes, commands."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from swarmtask.cli.exits import ExitCode
from swarmtask.cli.main import app
from swarmtask.resources.kinds import OWN_KINDS
from swarmtask.resources.meta import Model

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "manifests" / "examples").glob("*.yaml"))


def test_every_dependency_has_its_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    text = (ROOT / "docs" / "dependencies.md").read_text()
    rows = set(re.findall(r"[a-z][a-z0-9-]*\*?", " ".join(re.findall(r"^\| ([^|]+) \|", text, re.MULTILINE))))
    for requirement in project["dependencies"] + project["optional-dependencies"]["dev"]:
        name = re.match(r"[A-Za-z0-9-]+", requirement).group().lower()  # type: ignore[union-attr]
        assert name in rows or (name.startswith("types-") and "types-*" in rows), name


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_example_is_valid(path: Path) -> None:
    models: dict[str, type[Model]] = {kind.kind: kind.model for kind in OWN_KINDS if kind.model is not None}
    documents = list(yaml.safe_load_all(path.read_text()))
    assert documents
    for document in documents:
        if document["kind"] in models:
            models[document["kind"]].model_validate(document)


def test_the_exit_codes_are_documented() -> None:
    text = (ROOT / "docs" / "cli.md").read_text()
    documented = {int(number) for number in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)}
    assert documented == {code.value for code in ExitCode}


def test_every_command_is_documented_and_explains_itself() -> None:
    text = (ROOT / "docs" / "cli.md").read_text()
    runner = CliRunner(env={"COLUMNS": "100", "TERM": "dumb"})
    names = [command.name for command in app.registered_commands]
    assert set(names) >= {
        "up", "apiserver", "operator", "status", "kubeconfig", "join", "apply", "run", "get", "explain",
        "logs", "cancel", "retry", "demo",
        "version",
    }  # fmt: skip
    for name in names:
        assert name is not None
        assert f"`{name}" in text, name
        result = runner.invoke(app, [name, "--help"])
        assert result.exit_code == 0
        assert "Usage: " in result.stdout and result.stdout.count("\n") > 5


def test_the_kustomization_names_every_crd() -> None:
    listed = set(yaml.safe_load((ROOT / "manifests" / "kustomization.yaml").read_text())["resources"])
    assert listed == {f"crds/{kind.crd_name}.yaml" for kind in OWN_KINDS}
