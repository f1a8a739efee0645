"""Every bad SwarmTask of the list, at the door that people use: real kubectl, real server."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.conformance.conftest import Kubectl
from tests.resources.bad_tasks import bad_tasks

pytestmark = [pytest.mark.kubectl, pytest.mark.embedded]

UNREADABLE = frozenset({"name-number", "label-value-number"})
"""kubectl itself cannot read these; the server's answer to them is tested over plain HTTP."""


def write(folder: Path, namespace: str) -> None:
    for case in bad_tasks():
        metadata = {**case.manifest["metadata"], "namespace": namespace}
        (folder / f"{case.id}.json").write_text(json.dumps({**case.manifest, "metadata": metadata}))


def said_of_each(folder: Path, error: str) -> dict[str, str]:
    """What kubectl said after it named each file."""
    parts = re.split(rf'"{re.escape(str(folder))}/([^/"]+)\.json"', error)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def named(said: str, names: tuple[str, ...]) -> bool:
    """The refusal names the field: the whole path, or, in the words of the old kubectl's own check, its parent and its name."""
    if said.startswith(": error validating data"):
        return any(
            f'"{name.rpartition(".")[2]}"' in said or f"{name})" in said or f"({name}." in said.replace("(SwarmTask.", "(")
            for name in names
        )
    return any(name in said for name in names)


def test_every_bad_task_is_refused_with_the_name_of_the_field(kubectl: Kubectl, tmp_path: Path) -> None:
    write(tmp_path, kubectl.namespace)
    tasks = "/apis/swarmtask.io/v1alpha1/swarmtasks"
    before = json.loads(kubectl("get", "--raw", tasks))["metadata"]["resourceVersion"]
    error = kubectl.fails("create", "-f", str(tmp_path))
    said = said_of_each(tmp_path, error)
    silent = [case.id for case in bad_tasks() if case.id not in said]
    unnamed = {
        case.id: said[case.id]
        for case in bad_tasks()
        if case.id in said and case.id not in UNREADABLE and not named(said[case.id], case.names)
    }
    assert silent == []
    assert unnamed == {}
    assert json.loads(kubectl("get", "st", "-o", "json"))["items"] == []
    assert kubectl("get", "--raw", f"{tasks}?watch=1&timeoutSeconds=1&resourceVersion={before}") == "", "something was stored"


def test_the_server_sees_what_the_current_kubectl_sends(kubectl: Kubectl, tmp_path: Path) -> None:
    """The client of today validates nothing itself, so that the refusals above are the server's; the old one does its part."""
    write(tmp_path, kubectl.namespace)
    error = kubectl.fails("create", "-f", str(tmp_path))
    reached = set(re.findall(r'Error from server \(\w+\): error when creating "[^"]*/([^/"]+)\.json"', error))
    cases = {case.id for case in bad_tasks()} - UNREADABLE
    if kubectl.version == "current":
        assert reached == cases
    else:
        assert len(reached) >= 40
        assert reached <= cases
