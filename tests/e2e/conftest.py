"""Fixtures of the end-to-end tests: a fresh control plane per test, on the shared laboratory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.product import Product
from tests.e2e.recorder import Recorder
from tests.e2e.stage import FENCE_S, SETTINGS, House, Stage, opened
from tests.lab.cluster import Lab
from tests.lab.images import TASK_TAG
from tests.lab.tools import any_kubectl, or_skip


def _kubectl() -> Path:
    with or_skip():
        return any_kubectl()


@pytest.fixture
def product(clean_lab: Lab, tmp_path: Path) -> Iterator[Product]:
    """A control plane of its own on the laboratory's Swarm; the task image is on every node."""
    clean_lab.load_image(TASK_TAG)
    product = Product(tmp_path / "data", engine="swarm", kubectl=_kubectl(), docker_host=clean_lab.docker_host(clean_lab.manager))
    try:
        product.start()
        yield product
    finally:
        product.stop()


@pytest.fixture
def recorder(product: Product, clean_lab: Lab) -> Iterator[Recorder]:
    with Recorder(product.kubeconfig, clean_lab) as recorder:
        yield recorder


@pytest.fixture(scope="module")
def house(lab: Lab, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A control plane with an agent on every node, for all tests of a module; its times are those of `stage`. Other settings are
    those of the module's `MORE_SETTINGS`."""
    lab.restore()
    lab.load_image(TASK_TAG)
    settings = SETTINGS | getattr(request.module, "MORE_SETTINGS", {})
    house = House(lab, tmp_path_factory.mktemp("house") / "data", _kubectl(), settings, fence_s=FENCE_S)
    try:
        house.start()
        yield house
    finally:
        house.stop()
        lab.restore()


@pytest.fixture
def stage(house: House) -> Iterator[Stage]:
    """The house with everything whole and nothing running, watched by the recorder."""
    with or_skip(), opened(house) as stage:
        yield stage
