from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from swarmtask.resources import crds
from swarmtask.resources.crds import crd_manifest, main, render, written_manifests
from swarmtask.resources.kinds import OWN_KINDS, SECRET, SWARM_TASK, Kind

_MANIFESTS = Path(__file__).parents[2] / "manifests" / "crds"


def _nodes(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from _nodes(child, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield from _nodes(schema[key], f"{path}.{key}")


def _schema(kind: Kind) -> dict[str, Any]:
    return crd_manifest(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]


@pytest.mark.parametrize("kind", OWN_KINDS, ids=lambda kind: kind.kind)
def test_schemas_are_structural(kind: Kind) -> None:
    for path, node in _nodes(_schema(kind)):
        assert "$ref" not in node, path
        assert "title" not in node, path
        assert "const" not in node, path
        assert "type" in node or node.get("x-kubernetes-int-or-string"), path
        if "anyOf" in node:
            assert node.get("x-kubernetes-int-or-string"), path
        assert not ("properties" in node and "additionalProperties" in node), path


@pytest.mark.parametrize("kind", OWN_KINDS, ids=lambda kind: kind.kind)
def test_every_spec_field_is_described(kind: Kind) -> None:
    spec = _schema(kind)["properties"]["spec"]
    undescribed = [
        path
        for path, node in _nodes(spec)
        if path and path.rsplit(".", 1)[1] not in ("items", "additionalProperties") and not node.get("description")
    ]
    assert undescribed == []


def test_nested_defaults_are_reachable() -> None:
    """A default inside an object takes effect only when the object exists, so such an object must default to {}."""
    container = _schema(SWARM_TASK)["properties"]["spec"]["properties"]["container"]["properties"]
    assert container["resources"]["default"] == {}
    assert container["resources"]["properties"]["requests"]["default"] == {}
    requests = container["resources"]["properties"]["requests"]["properties"]
    assert requests["memory"]["default"] == "512Mi"
    for text, memory, cpu in (("auto", True, False), ("1Gi", True, True), ("auto1Gi", False, False), ("1Giauto", False, False)):
        assert bool(re.search(requests["memory"]["pattern"], text)) is memory
        assert bool(re.search(requests["cpu"]["pattern"], text)) is cpu


@pytest.mark.parametrize("kind", OWN_KINDS, ids=lambda kind: kind.kind)
def test_the_committed_manifests_are_those_of_the_models(kind: Kind) -> None:
    text = (_MANIFESTS / f"{kind.crd_name}.yaml").read_text()
    assert text == render(kind)
    assert yaml.safe_load(text) == crd_manifest(kind)
    assert written_manifests()[kind.crd_name] == crd_manifest(kind)


@pytest.mark.slow
@pytest.mark.parametrize("name", [f"{SWARM_TASK.crd_name}.yaml", "together.json"])
def test_stale_manifests_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(crds, "WRITTEN", tmp_path / "together.json")
    assert main([str(tmp_path)]) == 0
    assert main(["--check", str(tmp_path)]) == 0
    stale = tmp_path / name
    stale.write_text(stale.read_text() + "\n")
    assert main(["--check", str(tmp_path)]) == 1
    stale.unlink()
    assert main(["--check", str(tmp_path)]) == 1


def test_foreign_kinds_have_no_manifest() -> None:
    with pytest.raises(ValueError, match="not ours"):
        crd_manifest(SECRET)
