"""Tokens, certificates, files, the lock, and routes that are not about objects."""

from __future__ import annotations

import asyncio
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog
import yaml
from cryptography import x509

from swarmtask.apiserver import auth
from swarmtask.apiserver.server import main, run_api_server
from swarmtask.clock import SystemClock
from swarmtask.errors import ConfigurationError
from swarmtask.settings import ApiServerSettings, Settings
from tests.apiserver.server import RunningServer, api_server_process, http_client, running_api_server, tls

NOW = datetime(2026, 1, 1, tzinfo=UTC)


class TestTokens:
    @pytest.mark.parametrize("header", [
        None, "", "Bearer", "Bearer wrong", "Basic YTpi", "Bearer \u00e4", "Bearer {token}x", "{token}", "Bearer {token} x",
    ])  # fmt: skip
    async def test_without_the_right_one_nothing_is_told(self, server: RunningServer, header: str | None) -> None:
        headers = {} if header is None else {"authorization": header.replace("{token}", server.token).encode("utf-8")}
        async with httpx.AsyncClient(base_url=server.url, verify=tls(server)) as client:
            for path in ("/api/v1/namespaces", "/apis", "/version", "/nonsense", "/openapi/v2"):
                response = await client.get(path, headers=headers)
                assert (response.status_code, response.json()["reason"]) == (401, "Unauthorized")
            for path in ("/healthz", "/readyz", "/livez"):
                assert (await client.get(path)).text == "ok"

    async def test_tokens_in_queries_do_not_count(self, server: RunningServer) -> None:
        async with httpx.AsyncClient(base_url=server.url, verify=tls(server)) as client:
            assert (await client.get("/api", params={"access_token": server.token})).status_code == 401

    async def test_reviews(self, server: RunningServer, api: httpx.AsyncClient) -> None:
        async def review(group: str, kind: str, plural: str, spec: dict[str, Any]) -> dict[str, Any]:
            body = {"apiVersion": f"{group}/v1", "kind": kind, "spec": spec}
            response = await api.post(f"/apis/{group}/v1/{plural}", json=body)
            assert response.status_code == 201, response.text
            status: dict[str, Any] = response.json()["status"]
            return status

        access = {"resourceAttributes": {"verb": "create", "resource": "swarmtasks", "group": "swarmtask.io"}}
        authorization, authentication = "authorization.k8s.io", "authentication.k8s.io"
        assert (await review(authorization, "SelfSubjectAccessReview", "selfsubjectaccessreviews", access))["allowed"] is True
        rules = await review(authorization, "SelfSubjectRulesReview", "selfsubjectrulesreviews", {"namespace": "default"})
        assert rules["resourceRules"] == [{"verbs": ["*"], "resources": ["*"], "apiGroups": ["*"]}]
        me = await review(authentication, "SelfSubjectReview", "selfsubjectreviews", {})
        assert me["userInfo"]["username"] == "swarmtask-admin"
        good = await review(authentication, "TokenReview", "tokenreviews", {"token": server.token})
        assert (good["authenticated"], good["user"]["username"]) == (True, "swarmtask-admin")
        assert (await review(authentication, "TokenReview", "tokenreviews", {"token": "other"}))["authenticated"] is False
        assert (await api.get(f"/apis/{authentication}/v1/tokenreviews")).status_code == 405


class TestFiles:
    async def test_are_private_and_work(self, tmp_path: Path) -> None:
        async with running_api_server(tmp_path) as server:
            data_dir = server.kubeconfig.parent
            assert data_dir.stat().st_mode & 0o777 == 0o700
            for path in data_dir.rglob("*"):
                assert path.stat().st_mode & 0o077 == 0, path
            config = yaml.safe_load(server.kubeconfig.read_text())
            assert config["current-context"] == "swarmtask"
            assert config["clusters"][0]["cluster"]["server"] == server.url
            assert config["users"][0]["user"]["token"] == server.token
            first = server
        async with running_api_server(tmp_path) as server:
            assert (server.token, server.ca.read_bytes()) == (first.token, first.ca.read_bytes())

    async def test_files_that_were_open_are_closed(self, tmp_path: Path) -> None:
        async with running_api_server(tmp_path) as server:
            folder = server.kubeconfig.parent
        names = ["kubeconfig", "operator.kubeconfig", "admin.token", "operator.token", "swarmtask.db", "secrets.key"]
        private = [*(folder / name for name in names), folder / "audit" / "audit.log", *(folder / "pki").glob("*.key")]
        assert len(private) == 10
        for path in private:
            path.chmod(0o666)
        async with running_api_server(tmp_path):
            assert {path.name: path.stat().st_mode & 0o777 for path in private} == {path.name: 0o600 for path in private}

    async def test_nothing_secret_is_logged(self, tmp_path: Path) -> None:
        with structlog.testing.capture_logs() as entries:
            async with running_api_server(tmp_path) as server, http_client(server) as api:
                secret = {"metadata": {"name": "s"}, "stringData": {"password": "hunter2-plain"}}
                assert (await api.post("/api/v1/namespaces/default/secrets", json=secret)).status_code == 201
                assert (await api.post("/api/v1/namespaces/default/secrets", content=b'{"hunter2-plain')).status_code == 400
                assert (await api.get("/version?token=hunter2-plain", headers={"authorization": "Bearer x"})).status_code == 401
                token = server.token
        assert entries
        assert token not in str(entries)
        assert "hunter2-plain" not in str(entries)

    def test_the_authority_stays_and_the_certificate_follows(self, tmp_path: Path) -> None:
        one, _ = auth.prepare(tmp_path, "127.0.0.1", NOW)
        certificate = one.certificate.read_bytes()
        again, _ = auth.prepare(tmp_path, "127.0.0.1", NOW + timedelta(days=200))
        assert again.certificate.read_bytes() == certificate
        other, _ = auth.prepare(tmp_path, "192.0.2.7", NOW)
        renewed = other.certificate.read_bytes()
        assert renewed != certificate
        late, _ = auth.prepare(tmp_path, "192.0.2.7", NOW + timedelta(days=320))
        assert late.certificate.read_bytes() != renewed
        assert one.ca_pem == late.ca_pem
        loaded = x509.load_pem_x509_certificate(late.certificate.read_bytes())
        names = loaded.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert "localhost" in names.get_values_for_type(x509.DNSName)
        assert {"192.0.2.7", "127.0.0.1"} <= {str(address) for address in names.get_values_for_type(x509.IPAddress)}

    def test_damaged_ones_are_named(self, tmp_path: Path) -> None:
        auth.prepare(tmp_path, "127.0.0.1", NOW)
        (tmp_path / "pki" / "ca.key").write_text("nonsense")
        with pytest.raises(ConfigurationError, match="pki"):
            auth.prepare(tmp_path, "127.0.0.1", NOW)

    async def test_other_authorities_are_not_trusted(self, server: RunningServer, tmp_path: Path) -> None:
        other, _ = auth.prepare(tmp_path / "other", "127.0.0.1", datetime.now(UTC))
        context = ssl.create_default_context(cadata=other.ca_pem.decode())
        async with httpx.AsyncClient(base_url=server.url, verify=context) as client:
            with pytest.raises(httpx.ConnectError):
                await client.get("/healthz")


class TestStarting:
    async def test_one_server_per_data_directory(self, tmp_path: Path) -> None:
        async with running_api_server(tmp_path):
            with pytest.raises(ConfigurationError, match="another API server uses"):
                async with running_api_server(tmp_path):
                    pass

    async def test_a_port_in_use(self, tmp_path: Path) -> None:
        async with running_api_server(tmp_path / "one") as server:
            port = int(server.url.rpartition(":")[2])
            with pytest.raises(ConfigurationError, match="cannot listen"):
                async with running_api_server(tmp_path / "two", port=port):
                    pass

    async def test_a_data_directory_that_is_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        settings = Settings(data_dir=tmp_path / "file", apiserver=ApiServerSettings(port=0))
        with pytest.raises(ConfigurationError, match="cannot be used"):
            await run_api_server(settings, clock=SystemClock(), stop=asyncio.Event(), on_ready=lambda url: None)

    @pytest.mark.slow
    async def test_as_a_process(self, tmp_path: Path) -> None:
        async with api_server_process(tmp_path) as process:
            server = await process.start()
            async with http_client(server) as api:
                assert (await api.get("/version")).json()["gitVersion"].startswith("v1.")
            assert await process.terminate() == 0

    def test_bad_addresses_are_explained(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        try:
            assert main(["--data-dir", str(tmp_path), "--listen", "nowhere"]) == 1
        finally:
            structlog.reset_defaults()  # `main` sends the log to a stderr that belongs to this test
        assert "write HOST:PORT" in capsys.readouterr().err


class TestPaths:
    @pytest.mark.parametrize("path", [
        "/", "/nonsense", "/api/v2", "/api/v1/podz", "/apis/none", "/apis/none/v1", "/apis/swarmtask.io/v9/swarmtasks",
        "/api/v1/configmaps/x", "/api/v1/namespaces/default/namespaces",
        "/api/v1/namespaces/default/configmaps/a/b", "/api/v1/namespaces/default/configmaps/a/b/c/d/e", "/openapi", "/openapi/v4",
        "/openapi/v3/api/v9", "/api/v1//configmaps", "/apis/swarmtask.io/v1alpha1/namespaces/default/swarmnodes",
        "/api/v1/namespaces/default/configmaps/%00", "/api/v1/namespaces/default/configmaps/%ff",
        "/api/v1/namespaces/%2e%2e/configmaps/a",
        "/api/v1/namespaces/default/configmaps/a%2fb",
    ])  # fmt: skip
    async def test_unknown_ones_are_a_status(self, api: httpx.AsyncClient, path: str) -> None:
        response = await api.get(path)
        assert response.status_code == 404, response.text
        assert (response.json()["kind"], response.json()["reason"]) == ("Status", "NotFound")
        assert response.content.endswith(b"\n")

    @pytest.mark.parametrize(("method", "path"), [
        ("POST", "/api"), ("DELETE", "/version"), ("PUT", "/api/v1/namespaces/default/configmaps"), ("PATCH", "/api/v1/namespaces"),
        ("POST", "/api/v1/namespaces/default/configmaps/a"), ("POST", "/api/v1/configmaps"), ("OPTIONS", "/api/v1/namespaces"),
        ("DELETE", "/apis/swarmtask.io/v1alpha1/namespaces/default/swarmtasks/a/status"),
    ])  # fmt: skip
    async def test_methods_that_are_not_served(self, api: httpx.AsyncClient, method: str, path: str) -> None:
        response = await api.request(method, path)
        assert (response.status_code, response.json()["reason"]) == (405, "MethodNotAllowed")

    async def test_version_with_and_without_a_slash(self, api: httpx.AsyncClient) -> None:
        plain = (await api.get("/version")).json()
        assert (await api.get("/version/")).json() == plain
        fields = {"major", "minor", "gitVersion", "gitCommit", "gitTreeState", "buildDate", "goVersion", "compiler", "platform"}
        assert plain.keys() == fields

    async def test_discovery_forms(self, api: httpx.AsyncClient) -> None:
        wanted = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
        older = wanted.replace("v=v2", "v=v2beta1")
        response = await api.get("/apis", headers={"accept": f"{wanted},{older},application/json"})
        assert response.headers["content-type"] == wanted
        assert response.json()["apiVersion"] == "apidiscovery.k8s.io/v2"
        response = await api.get("/api", headers={"accept": f"{older},application/json"})
        assert response.json()["apiVersion"] == "apidiscovery.k8s.io/v2beta1"
        assert (await api.get("/apis")).json()["kind"] == "APIGroupList"
        assert (await api.get("/api")).json()["kind"] == "APIVersions"
        assert (await api.get("/apis/swarmtask.io")).json()["kind"] == "APIGroup"
        assert (await api.get("/api", headers={"accept": "text/html"})).status_code == 406

    async def test_openapi(self, api: httpx.AsyncClient) -> None:
        assert (await api.get("/openapi/v2")).json()["swagger"] == "2.0"
        accept = {"accept": "application/com.github.proto-openapi.spec.v2@v1.0+protobuf"}
        response = await api.get("/openapi/v2", headers=accept)
        assert response.headers["content-type"] == "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"
        index = (await api.get("/openapi/v3")).json()["paths"]
        for path in ("api/v1", "apis/swarmtask.io/v1alpha1"):
            assert (await api.get(index[path]["serverRelativeURL"])).json()["openapi"].startswith("3.0")
