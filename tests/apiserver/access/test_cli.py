"""`swarmtask token` and `swarmtask secrets` against a real server."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import httpx
import pytest
import yaml
from typer.testing import CliRunner, Result

from swarmtask.apiserver.switchover import PENDING, finish
from swarmtask.cli.main import app
from tests.apiserver.access.people import RBAC, TASKS, TOKENS, client, new_token, task
from tests.apiserver.server import RunningServer, http_client, running_api_server

WHOAMI = "/apis/authentication.k8s.io/v1/selfsubjectreviews"


async def run(server: RunningServer, *arguments: str) -> Result:
    """The program in a thread: the server is on this loop."""
    runner = CliRunner(env={"TERM": "dumb", "COLUMNS": "160"})
    return await asyncio.to_thread(runner.invoke, app, [*arguments, "--kubeconfig", str(server.kubeconfig)])


async def create(server: RunningServer, *arguments: str) -> str:
    result = await run(server, "token", "create", *arguments)
    assert result.exit_code == 0, result.stderr
    return result.stdout.strip()


async def codes(server: RunningServer, token: str) -> tuple[int, int, int, int]:
    """Listing tasks, creating one, listing nodes, listing Secrets of another namespace."""
    path = TASKS.format("default")
    async with client(server, token) as holder:
        return (
            (await holder.get(path)).status_code,
            (await holder.post(f"{path}?dryRun=All", json=task("x"))).status_code,
            (await holder.get("/apis/swarmtask.io/v1alpha1/swarmnodes")).status_code,
            (await holder.get("/api/v1/namespaces/kube-system/secrets")).status_code,
        )


@pytest.mark.parametrize(("arguments", "expected"), [
    (("--role", "viewer"), (200, 403, 403, 403)),
    (("--role", "viewer", "-A"), (200, 403, 200, 403)),
    (("--role", "editor", "-n", "default"), (200, 201, 403, 403)),
    (("--role", "editor", "-n", "kube-public"), (403, 403, 403, 403)),
    (("--role", "admin", "-A"), (200, 201, 200, 200)),
    (("--role", "cluster-admin"), (200, 201, 200, 200)),
    (("--role", "node"), (403, 403, 200, 403)),
])  # fmt: skip
async def test_what_the_roles_are_good_for(
    server: RunningServer, arguments: tuple[str, ...], expected: tuple[int, int, int, int]
) -> None:
    assert await codes(server, await create(server, "anna", *arguments)) == expected


async def test_the_servers_own_tokens_are_made_anew(tmp_path: Path) -> None:
    runner, folder = CliRunner(env={"TERM": "dumb", "COLUMNS": "160"}), tmp_path / "apiserver"
    nothing = runner.invoke(app, ["token", "rotate", "--data-dir", str(folder)])
    assert nothing.exit_code != 0
    assert "holds no tokens" in nothing.stderr
    async with running_api_server(tmp_path) as server, http_client(server) as api:
        before = [(folder / name).read_text().strip() for name in ("admin.token", "operator.token")]
        kept = await new_token(api, "vera")
        running = await asyncio.to_thread(runner.invoke, app, ["token", "rotate", "--data-dir", str(folder)])
        assert running.exit_code != 0
        assert "stop it first" in running.stderr
        assert (folder / "admin.token").read_text().strip() == server.token
    done = runner.invoke(app, ["token", "rotate", "--data-dir", str(folder)])
    assert done.exit_code == 0, done.stderr
    async with running_api_server(tmp_path) as server:
        after = [(folder / name).read_text().strip() for name in ("admin.token", "operator.token")]
        assert len({*before, *after}) == 4
        assert not set(before) & set(done.stdout.split()) and not set(after) & set(done.stdout.split())
        for token, code in [*((token, 401) for token in before), *((token, 201) for token in (*after, kept))]:
            async with client(server, token) as someone:
                assert (await someone.post(WHOAMI, json={})).status_code == code
        for name, token in zip(("kubeconfig", "operator.kubeconfig"), after, strict=True):
            assert yaml.safe_load((folder / name).read_text())["users"][0]["user"]["token"] == token
        assert all((folder / name).stat().st_mode & 0o777 == 0o600 for name in ("admin.token", "operator.token"))


@pytest.mark.parametrize("before", [("admin.token", "operator.token"), ()])
def test_new_tokens_outlive_a_restore_that_was_cut_off(tmp_path: Path, before: tuple[str, ...]) -> None:
    runner, pending = CliRunner(env={"TERM": "dumb", "COLUMNS": "160"}), tmp_path / PENDING
    pending.mkdir()
    (pending / "admin.token").write_text("restored" * 8)
    for name in before:
        (tmp_path / name).write_text("present" * 8)
    done = runner.invoke(app, ["token", "rotate", "--data-dir", str(tmp_path)])
    assert done.exit_code == 0, done.stderr
    rotated = (tmp_path / "admin.token").read_text()
    assert "restored" not in rotated and "present" not in rotated
    assert not finish(tmp_path), "nothing is left to be moved at the next start"
    assert (tmp_path / "admin.token").read_text() == rotated


@pytest.mark.slow
async def test_revoking_takes_token_and_bindings_away(server: RunningServer, api: httpx.AsyncClient) -> None:
    token = await create(server, "anna", "--role", "editor", "-A")
    assert (await api.get(f"{RBAC}/clusterrolebindings/token-anna-edit")).status_code == 200
    listed = json.loads((await run(server, "token", "list", "-o", "json")).stdout)
    assert [(item["name"], item["user"], item["for"]) for item in listed] == [("anna", "anna", "editor in all namespaces")]
    assert token not in (await api.get(TOKENS)).text
    result = await run(server, "token", "revoke", "anna", "nobody")
    assert (result.exit_code, "token anna revoked\n" in result.stdout) == (3, True)
    assert await codes(server, token) == (401, 401, 401, 401)
    async with asyncio.timeout(20):
        while (await api.get(f"{RBAC}/clusterrolebindings/token-anna-edit")).status_code != 404:
            pass
    assert "No tokens yet" in (await run(server, "token", "list")).stderr


async def test_a_kubeconfig_to_carry_away(server: RunningServer, tmp_path: Path) -> None:
    path = tmp_path / "laptop.kubeconfig"
    result = await run(server, "token", "create", "laptop", "--role", "node", "--expires", "never", "--write-kubeconfig", str(path))
    assert result.exit_code == 0, result.stderr
    assert result.stdout == ""
    assert path.stat().st_mode & 0o777 == 0o600
    document = yaml.safe_load(path.read_text())
    assert document["clusters"][0]["cluster"]["server"] == server.url
    assert "certificate-authority-data" in document["clusters"][0]["cluster"]
    assert await codes(server, document["users"][0]["user"]["token"]) == (403, 403, 200, 403)
    lines = (await run(server, "token", "list")).stdout.splitlines()
    assert "laptop system:node:laptop the agent of node laptop never" in " ".join(lines[-1].split())


async def test_nothing_is_left_when_a_binding_cannot_be_made(server: RunningServer, api: httpx.AsyncClient) -> None:
    result = await run(server, "token", "create", "anna", "--role", "viewer", "-n", "no-such-namespace")
    assert result.exit_code == 3
    assert "no-such-namespace" in result.stderr
    assert (await api.get(TOKENS)).json()["items"] == []


@pytest.mark.parametrize("arguments", [
    ("--role", "node", "-n", "default"), ("--role", "node", "--user", "x"), ("--role", "viewer", "--node", "x"),
    ("--role", "viewer", "--expires", "soon"), ("--role", "viewer", "--expires", "0d"), ("--role", "king"),
    ("--role", "viewer", "-A", "-n", "default"),
])  # fmt: skip
async def test_what_makes_no_sense(server: RunningServer, api: httpx.AsyncClient, arguments: tuple[str, ...]) -> None:
    assert (await run(server, "token", "create", "anna", *arguments)).exit_code == 2
    assert (await api.get(TOKENS)).json()["items"] == []


async def test_the_same_name_twice(server: RunningServer) -> None:
    await create(server, "anna", "--role", "viewer")
    assert (await run(server, "token", "create", "anna", "--role", "admin")).exit_code == 4


async def test_rotating_the_key_of_secrets(server: RunningServer, api: httpx.AsyncClient) -> None:
    await api.post("/api/v1/namespaces/default/secrets", json={"metadata": {"name": "s"}, "stringData": {"a": "b"}})
    result = await run(server, "secrets", "rotate-key")
    assert (result.exit_code, "1 stored revisions" in result.stdout) == (0, True), result.stderr
