"""The suite runs against a cluster that it knows by a kubeconfig alone, skips what it cannot ask there, leaves nothing behind."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from tests.apiserver.server import ROOT, RunningServer
from tests.conformance.conftest import ask, definitions, missing_definitions

pytestmark = [pytest.mark.kubectl, pytest.mark.embedded, pytest.mark.slow]
CASES = (
    "test_deletion.py::test_delete_by_file_selector_and_all", "test_custom_kinds.py::test_field_selectors_of_a_custom_kind",
    "test_access.py::test_who_am_i", "test_writing.py::test_many_at_once",
)  # fmt: skip
TIMEOUT_S = 280


def test_against_a_cluster_by_its_kubeconfig(conformance_server: RunningServer) -> None:
    """Another server of ours stands for the cluster: what the suite does not start itself, it cannot tell apart."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rs", *(f"tests/conformance/{case}" for case in CASES)],
        cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
        env={**os.environ, "SWARMTASK_CONFORMANCE_KUBECONFIG": str(conformance_server.kubeconfig),
             "PYTHONPATH": f"{ROOT / 'operator'}{os.pathsep}{ROOT}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\b[36] passed", done.stdout), done.stdout
    assert "asks for the embedded API server" in done.stdout
    left = ask(conformance_server, "get", "ns", "-o", "jsonpath={.items[?(@.status.phase=='Active')].metadata.name}").split()
    assert [name for name in left if name.startswith("swarmtask-conformance-")] == []


def test_a_cluster_without_the_definitions_is_refused_with_what_to_do(conformance_server: RunningServer) -> None:
    """The check itself: the suite must not go on to fail in a hundred ways."""
    told = missing_definitions(conformance_server, {"customresourcedefinition.apiextensions.k8s.io/ships.example.com"})
    assert told is not None
    assert "kubectl apply -f manifests/crds" in told
    assert conformance_server.url in told
    assert missing_definitions(conformance_server, definitions(conformance_server)) is None
