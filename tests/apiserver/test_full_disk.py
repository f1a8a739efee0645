"""A disk without room, over HTTP: 507 that says what to do, reads go on, and writes go on once there is room."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from swarmtask.apiserver.server import keep_kubeconfig
from tests.apiserver.server import api_server_process, http_client

CONFIG_MAPS = "/api/v1/namespaces/default/configmaps"


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A file system of 4 MB."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m,mode=700", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"[missing: the right to mount] {mounted.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill_up(path: Path) -> None:
    """Take what room is left, to the last byte."""
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while file.write(b"x" * 512):
            pass


async def fill(api: httpx.AsyncClient) -> tuple[list[str], httpx.Response]:
    """Create objects until one is refused; the names that were acknowledged, and the refusal."""
    acknowledged: list[str] = []
    for number in range(1000):
        body = {"metadata": {"name": f"c{number}"}, "data": {"x": "y" * 100_000}}
        response = await api.post(CONFIG_MAPS, json=body)
        if response.status_code != 201:
            return acknowledged, response
        acknowledged.append(f"c{number}")
    raise AssertionError("the disk was never full")


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="[missing: root] a small file system is mounted")
async def test_a_full_disk_is_said_and_survived(tmp_path: Path) -> None:
    disk = tmp_path / "apiserver"
    with small_disk(disk):
        async with api_server_process(tmp_path) as process:
            server = await process.start()
            ballast = disk / "ballast"
            ballast.write_bytes(b"x" * 2**20)
            async with http_client(server) as api:
                acknowledged, refusal = await fill(api)
                assert refusal.status_code == 507, refusal.text
                assert "Free some space" in refusal.json()["message"]
                listed = (await api.get(CONFIG_MAPS)).json()
                assert [item["metadata"]["name"] for item in listed["items"]] == sorted(acknowledged)
            await process.kill()
            fill_up(disk / "filler")
            async with http_client(await process.start()) as api:  # the port, and so the kubeconfig, is another one
                listed = (await api.get(CONFIG_MAPS)).json()
                assert [item["metadata"]["name"] for item in listed["items"]] == sorted(acknowledged)
                ballast.unlink()
                (disk / "filler").unlink()
                assert (await api.post(CONFIG_MAPS, json={"metadata": {"name": "after"}})).status_code == 201
            await process.kill()
            async with http_client(await process.start()) as api:
                listed = (await api.get(CONFIG_MAPS)).json()
            assert [item["metadata"]["name"] for item in listed["items"]] == sorted([*acknowledged, "after"])


def test_a_kubeconfig_that_says_the_same_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "kubeconfig"
    keep_kubeconfig(path, b"one")
    first = path.stat().st_ino
    path.chmod(0o644)
    keep_kubeconfig(path, b"one")
    assert (path.stat().st_ino, path.stat().st_mode & 0o777) == (first, 0o600)
    keep_kubeconfig(path, b"two")
    assert path.read_bytes() == b"two"
    keep_kubeconfig(tmp_path / "none" / "kubeconfig", b"three")  # it is logged, and the server serves
