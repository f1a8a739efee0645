"""The files that `swarmtask backup` leaves: whole, private and checked, or none."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner, Result

from swarmtask.apiserver import downloads, keys_file
from swarmtask.apiserver.backup import read
from swarmtask.cli import backups
from swarmtask.cli.main import app
from tests.apiserver.server import RunningServer

SECRETS = "/api/v1/namespaces/default/secrets"


async def run(server: RunningServer, *arguments: str) -> Result:
    options = ("--data-dir", str(server.kubeconfig.parent))
    return await asyncio.to_thread(CliRunner(env={"COLUMNS": "200", "TERM": "dumb"}).invoke, app, ["backup", *arguments, *options])


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    folder = tmp_path / "place"
    folder.mkdir()
    return folder


async def test_two_private_files_that_are_never_replaced(server: RunningServer, api: httpx.AsyncClient, place: Path) -> None:
    await api.post(SECRETS, json={"metadata": {"name": "s"}, "stringData": {"p": "v"}})
    file, keys = place / "b", place / "b.keys"
    made = await run(server, str(file))
    assert made.exit_code == 0, made.output
    assert set(content(place)) == {"b", "b.keys"}
    assert [path.stat().st_mode & 0o777 for path in (file, keys)] == [0o600, 0o600]
    assert "checked" in made.stdout
    assert "Whoever has this file has the cluster" in made.stderr
    assert set(read(file).keys) <= keys_file.secret_key_ids(keys)
    before = content(place)
    again = await run(server, str(file))
    assert (again.exit_code, content(place)) == (4, before), again.output
    assert "--force" in again.stderr
    assert (await run(server, str(place / "c"), "--keys", str(keys))).exit_code == 4
    assert content(place) == before
    await api.post(SECRETS, json={"metadata": {"name": "t"}, "stringData": {"p": "v"}})
    forced = await run(server, str(file), "--force")
    assert forced.exit_code == 0, forced.output
    assert content(place)["b"] != before["b"]


async def test_without_keys(server: RunningServer, api: httpx.AsyncClient, place: Path) -> None:
    await api.post(SECRETS, json={"metadata": {"name": "s"}, "stringData": {"p": "v"}})
    made = await run(server, str(place / "b"), "--without-keys")
    assert made.exit_code == 0, made.output
    assert set(content(place)) == {"b"}
    assert read(place / "b").keys[0] in made.stderr
    assert (await run(server, str(place / "c"), "--without-keys", "--keys", str(place / "k"))).exit_code == 2


async def test_keys_of_another_control_plane_are_not_written(
    server: RunningServer, api: httpx.AsyncClient, place: Path, tmp_path: Path
) -> None:
    await api.post(SECRETS, json={"metadata": {"name": "s"}, "stringData": {"p": "v"}})
    options = ["backup", str(place / "b"), "--kubeconfig", str(server.kubeconfig), "--data-dir", str(tmp_path / "other")]
    refused = await asyncio.to_thread(CliRunner().invoke, app, options)
    assert refused.exit_code == 6, refused.output
    assert "--without-keys" in refused.stderr
    assert content(place) == {}


async def test_a_full_disk_leaves_nothing(server: RunningServer, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = 0

    def write(descriptor: int, chunk: bytes) -> None:
        nonlocal written
        written += os.write(descriptor, chunk[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(backups, "_write_all", write)
    refused = await run(server, str(place / "b"))
    assert written == 100
    assert refused.exit_code == 6, refused.output
    assert "full" in refused.stderr
    assert content(place) == {}


async def test_a_download_that_is_cut_off_leaves_nothing(
    server: RunningServer, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = downloads._chunks

    async def cut(file: object) -> object:
        async for chunk in real(file):  # type: ignore[arg-type]
            yield chunk[:50_000]
            raise RuntimeError("the server died")

    monkeypatch.setattr(downloads, "_chunks", cut)
    refused = await run(server, str(place / "b"))
    assert refused.exit_code in (5, 6), refused.output
    assert content(place) == {}


async def test_a_place_that_cannot_be_written_is_told(server: RunningServer, place: Path) -> None:
    refused = await run(server, str(place / "no" / "b"))
    assert refused.exit_code == 6
    assert "cannot write" in refused.stderr
