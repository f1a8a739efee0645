"""Fixtures of the end-to-end tests: a fresh control plane per test, on the shared laboratory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.product import Product
from tests.e2e.recorder import Recorder
from tests.lab.cluster import Lab
from tests.lab.images import TASK_TAG
from tests.lab.tools import kubectl_binaries


@pytest.fixture
def product(clean_lab: Lab, tmp_path: Path) -> Iterator[Product]:
    """A control plane of its own on the laboratory's Swarm; the task image is on every node."""
    clean_lab.load_image(TASK_TAG)
    programs = kubectl_binaries()
    kubectl = programs.get("current") or programs.get("debian")
    if kubectl is None:
        pytest.skip("no kubectl")
    product = Product(tmp_path / "data", engine="swarm", kubectl=kubectl, docker_host=clean_lab.docker_host(clean_lab.manager))
    try:
        product.start()
        yield product
    finally:
        product.stop()


@pytest.fixture
def recorder(product: Product, clean_lab: Lab) -> Iterator[Recorder]:
    with Recorder(product.kubeconfig, clean_lab) as recorder:
        yield recorder
