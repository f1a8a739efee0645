"""KubeClient and the embedded API server together keep the contract."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest

from swarmtask.errors import BadRequest, ConfigurationError, Expired, Invalid, ServiceUnavailable, TooManyRequests, Unauthorized
from swarmtask.kube import KubeClient, ObjectApi
from swarmtask.resources.kinds import CONFIG_MAP, SWARM_QUEUE, SWARM_TASK
from swarmtask.resources.tenure import HEADER
from tests.kube.client_contract import ClientContract
from tests.kube.contract import config_map, fresh, task
from tests.kube.real import real_api_server


class TestEmbeddedServer(ClientContract):
    @pytest.fixture
    async def api(self, tmp_path: Path) -> AsyncIterator[KubeClient]:
        async with real_api_server(tmp_path) as kubeconfig, KubeClient.from_kubeconfig(kubeconfig) as client:
            yield client

    async def test_more_objects_than_a_page(self, api: ObjectApi, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("swarmtask.kube.client.PAGE_SIZE", 7)
        label = fresh("many")
        for number in range(20):
            await api.create(CONFIG_MAP, config_map(f"{label}-{number}", metadata={"labels": {"many": label}}), "default")
        listed = await api.list(CONFIG_MAP, label_selector=f"many={label}")
        assert len({item["metadata"]["name"] for item in listed.items}) == 20

    async def test_an_invalid_object_names_its_fields(self, api: ObjectApi) -> None:
        body = task(fresh())
        body["spec"]["backoffLimit"] = -1
        with pytest.raises(Invalid) as caught:
            await api.create(SWARM_TASK, body, "default")
        assert any("backoffLimit" in cause.field for cause in caught.value.causes)

    async def test_a_full_queue_is_too_many_requests(self, api: ObjectApi) -> None:
        queue, name = fresh("queue"), fresh()
        body = {"apiVersion": SWARM_QUEUE.api_version, "kind": "SwarmQueue", "metadata": {"name": queue}, "spec": {"maxQueued": 0}}
        await api.create(SWARM_QUEUE, body, "default")
        refused = task(name)
        refused["spec"]["queue"] = queue
        for write in (
            api.create(SWARM_TASK, refused, "default"),
            api.patch(SWARM_TASK, name, refused, "default", type_="apply", field_manager="x"),
        ):
            with pytest.raises(TooManyRequests, match=f"edit swarmqueue {queue}") as caught:
                await write
            assert caught.value.retry_after_s == 1
            assert caught.value.details["name"] == name
            assert [cause.reason for cause in caught.value.causes] == ["QueueFull"]

    async def test_a_header_that_is_no_tenure_is_a_bad_request(self, api: KubeClient) -> None:
        for text in ("", "one", "a/b", "a/b/c/d", "a//c"):
            with pytest.raises(BadRequest, match=HEADER):
                api._http.headers[HEADER] = text
                await api.create(CONFIG_MAP, config_map(fresh()), "default")

    async def test_a_version_of_the_future_is_expired(self, api: ObjectApi) -> None:
        with pytest.raises(Expired):
            await anext(api.watch(CONFIG_MAP, "default", resource_version="999999999"))


@pytest.mark.slow
async def test_a_watch_survives_a_restart_of_the_server(tmp_path: Path) -> None:
    """The client is told another port by nobody: the new server listens on the same one."""
    async with real_api_server(tmp_path) as kubeconfig:
        client = KubeClient.from_kubeconfig(kubeconfig)
        port = int(client.connection.server.rsplit(":", 1)[1])
        since = (await client.list(CONFIG_MAP)).resource_version
        watch = client.watch(CONFIG_MAP, "default", resource_version=since)
        await client.create(CONFIG_MAP, config_map("before"), "default")
        assert (await anext(watch)).object["metadata"]["name"] == "before"
    with pytest.raises(ServiceUnavailable, match="swarmtask up"):
        await client.create(CONFIG_MAP, config_map("between"), "default")
    async with real_api_server(tmp_path, port=port):
        await client.create(CONFIG_MAP, config_map("after"), "default")
        async with aclosing(watch) as events:
            async for event in events:
                if event.type != "BOOKMARK":
                    assert event.object["metadata"]["name"] == "after"
                    break
        await client.aclose()


async def test_a_wrong_token_is_unauthorized(tmp_path: Path) -> None:
    async with real_api_server(tmp_path) as kubeconfig:
        text = kubeconfig.read_text()
        token = KubeClient.from_kubeconfig(kubeconfig).connection.token
        assert token
        kubeconfig.write_text(text.replace(token, "wrong"))
        async with KubeClient.from_kubeconfig(kubeconfig) as client:
            with pytest.raises(Unauthorized):
                await client.list(CONFIG_MAP)


async def test_a_foreign_authority_is_refused(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    async with real_api_server(tmp_path / "one") as ours, real_api_server(tmp_path / "two") as theirs:
        server = KubeClient.from_kubeconfig(ours).connection.server
        other = KubeClient.from_kubeconfig(theirs).connection.server
        theirs.write_text(theirs.read_text().replace(other, server))
        async with KubeClient.from_kubeconfig(theirs) as client:
            with pytest.raises(ConfigurationError, match="not signed"):
                await client.list(CONFIG_MAP)
