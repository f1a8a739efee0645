"""Documents say what is true: dependencies, examples, exit codes, commands."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
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


@pytest.mark.slow
def test_every_command_is_documented_and_explains_itself() -> None:
    text = (ROOT / "docs" / "cli.md").read_text()
    runner = CliRunner(env={"COLUMNS": "100", "TERM": "dumb"})
    names = [command.name for command in app.registered_commands] + [group.name for group in app.registered_groups]
    assert set(names) >= {
        "up", "apiserver", "operator", "status", "kubeconfig", "join", "apply", "run", "get", "explain",
        "logs", "cancel", "retry", "demo", "queue",
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


CONNECTION = {"--data-dir", "--kubeconfig", "--context", "--namespace", "-n"}


def test_every_option_is_documented_and_every_documented_one_exists() -> None:
    section = (ROOT / "docs" / "cli.md").read_text().partition("## Options\n")[2].partition("\n## ")[0]
    documented = {
        row[0]: set(re.findall(r"`(-[^`]+)`", row[1])) - CONNECTION
        for row in re.findall(r"^\| `([a-z -]+)` \| (.*)\|$", section, re.MULTILINE)
    }
    root = typer.main.get_command(app)
    commands: dict[str, Any] = {}
    for name, command in root.commands.items():  # type: ignore[attr-defined]
        inner = getattr(command, "commands", None)
        commands |= {name: command} if inner is None else {f"{name} {part}": one for part, one in inner.items()}
    actual: dict[str, set[str]] = {}
    for name, command in commands.items():
        shown = [item for item in command.params if item.param_type_name == "option" and not item.hidden and item.name != "help"]
        actual[name] = {spelling for item in shown for spelling in [*item.opts, *item.secondary_opts]}
    assert documented == {name: options - CONNECTION for name, options in actual.items()}
    speaking = {"status", "run", "apply", "get", "explain", "logs", "cancel", "retry"} | {
        f"queue {verb}" for verb in ("list", "position", "front", "hold", "release", "drain")
    }
    everywhere = {"status", "token list", "token revoke", "secrets rotate-key", "backup", "image push"}
    speaking |= everywhere | {"token create"}
    of_nodes = {"cordon", "uncordon", "drain", "undrain"}
    speaking |= of_nodes
    assert {name for name, options in actual.items() if "--data-dir" not in options} == {"demo", "version", "node-agent"}
    assert {name for name, options in actual.items() if {"--kubeconfig", "--context"} <= options} == speaking | {"operator"}
    assert {name for name, options in actual.items() if {"--namespace", "-n"} <= options} == speaking - everywhere - of_nodes


def test_the_index_names_every_document_and_every_link_leads_somewhere() -> None:
    docs = ROOT / "docs"
    index = (docs / "README.md").read_text()
    for path in docs.rglob("*.md"):
        assert path.name == "README.md" or f"({path.relative_to(docs)})" in index, f"docs/README.md does not name {path.name}"
    for path in [*docs.rglob("*.md"), *ROOT.glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)", path.read_text()):
            assert "://" in target or (path.parent / target).exists(), f"{path.relative_to(ROOT)} links to {target}"


def test_every_path_that_a_document_names_exists() -> None:
    pattern = re.compile(r"`((?:operator/swarmtask|tests|manifests|docs)/[\w./-]+)`")
    never = {"operator/__init__.py", "operator/conftest.py", "tests/operator/__init__.py"}  # CONTRIBUTING says so
    for path in [*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")]:
        for named in pattern.findall(path.read_text()):
            assert named in never or (ROOT / named).exists() or "NAME" in named, f"{path.relative_to(ROOT)} names {named}"


def test_help_fits_a_narrow_terminal() -> None:
    result = CliRunner(env={"COLUMNS": "40", "TERM": "dumb"}).invoke(app, ["--help"])
    assert result.exit_code == 0
    assert max(map(len, result.stdout.splitlines())) <= 40
