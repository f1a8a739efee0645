"""What `KubeClient` keeps with every server: a test class says which one, by a fixture `api`."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from swarmtask.kube import KubeClient
from swarmtask.resources.tenure import Tenure
from tests.kube.contract import ObjectApiContract, Under


class ClientContract(ObjectApiContract):
    @pytest.fixture
    async def under(self, api: KubeClient) -> AsyncIterator[Under]:
        clients: list[KubeClient] = []

        def client(tenure: Tenure) -> KubeClient:
            clients.append(KubeClient(api.connection, tenure=tenure))
            return clients[-1]

        yield client
        for made in clients:
            await made.aclose()
