"""Our own client keeps its contract with whatever server the suite speaks to, so that the operator can run against it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from swarmtask.kube import KubeClient, ObjectApi
from tests.apiserver.server import RunningServer
from tests.conformance.conftest import RUN
from tests.kube import contract
from tests.kube.client_contract import ClientContract
from tests.kube.contract import Under


class TestOurClient(ClientContract):
    @pytest.fixture(autouse=True)
    def names_of_this_run(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(contract, "begins", f"{RUN}-")

    @pytest.fixture
    async def api(self, conformance_server: RunningServer) -> AsyncIterator[KubeClient]:
        async with KubeClient.from_kubeconfig(conformance_server.kubeconfig) as client:
            yield client

    @pytest.mark.embedded  # another server knows no tenures (docs/operator.md)
    async def test_writes_under_a_tenure_are_refused_unless_its_lease_has_that_holder(self, api: ObjectApi, under: Under) -> None:
        await super().test_writes_under_a_tenure_are_refused_unless_its_lease_has_that_holder(api, under)
