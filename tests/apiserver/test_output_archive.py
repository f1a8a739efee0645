"""The output of attempts in a backup: what is packed while agents write, what is refused, and what comes back."""

from __future__ import annotations

import asyncio
import io
import tarfile
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from swarmtask.apiserver.output_archive import check, pack, unpack
from swarmtask.apiserver.restore import restore
from swarmtask.cli.main import app
from swarmtask.errors import ConfigurationError
from tests.apiserver.logs import UID, body, line
from tests.apiserver.projections.swarm import TASKS, attempt, store_task
from tests.apiserver.server import http_client, running_api_server

OTHER = "99999999-2222-4333-8444-000000000001"


def stored(folder: Path, *attempts: tuple[str, int, bytes]) -> Path:
    """A directory of output."""
    for uid, number, content in attempts:
        path = folder / uid / str(number)
        path.mkdir(parents=True)
        (path / f"{0:020d}.log").write_bytes(content)
    return folder


def packed(folder: Path, target: Path) -> Path:
    target.write_bytes(b"".join(pack(folder)))
    return target


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def stage(tmp_path: Path) -> Path:
    folder = tmp_path / "stage"
    folder.mkdir(exist_ok=True)
    return folder


def test_it_comes_back_as_it_was(tmp_path: Path) -> None:
    source = stored(tmp_path / "a", (UID, 1, body(0, 3)), (UID, 12, body(0, 1)), (OTHER, 1, body(0, 2)))
    archive = packed(source, tmp_path / "o")
    assert check(archive) == 3
    target = tmp_path / "b"
    assert unpack(archive, tmp_path / "none", target) == 3
    assert tree(target) == tree(source)
    assert not [path for path in target.rglob("*") if path.stat().st_mode & 0o077]


def test_only_whole_records_and_nothing_else_go_in(tmp_path: Path) -> None:
    source = stored(tmp_path / "a", (UID, 1, body(0, 2) + line(2)[:7]), (UID, 2, line(0)[:7]))
    (source / "notes.txt").write_text("somebody's own")
    (source / UID / "1" / "x.log").write_text("somebody's own")
    archive = packed(source, tmp_path / "o")
    assert check(archive) == 1
    unpack(archive, tmp_path / "none", tmp_path / "b")
    assert tree(tmp_path / "b") == {f"{UID}/1/{0:020d}.log": body(0, 2)}


def test_what_vanishes_meanwhile_is_left_out(tmp_path: Path) -> None:
    source = stored(tmp_path / "a", (UID, 1, body(0, 2)), (UID, 2, body(0, 2)))
    pieces = pack(source)
    first = next(pieces)
    (source / UID / "2" / f"{0:020d}.log").unlink()
    archive = tmp_path / "o"
    archive.write_bytes(first + b"".join(pieces))
    assert check(archive) == 1


def test_nothing_is_an_archive_too(tmp_path: Path) -> None:
    archive = packed(tmp_path / "none", tmp_path / "o")
    assert (check(archive), unpack(archive, tmp_path / "b", stage(tmp_path))) == (0, 0)


def test_what_is_there_stays(tmp_path: Path) -> None:
    archive = packed(stored(tmp_path / "a", (UID, 1, body(0, 2)), (UID, 2, body(0, 2))), tmp_path / "o")
    present = stored(tmp_path / "b", (UID, 1, body(0, 9)))
    assert unpack(archive, present, stage(tmp_path)) == 1
    assert tree(present) == {f"{UID}/1/{0:020d}.log": body(0, 9)}
    assert tree(stage(tmp_path)) == {f"{UID}/2/{0:020d}.log": body(0, 2)}


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.9])
def test_one_that_was_cut_off_is_refused_and_unpacks_nothing(tmp_path: Path, share: float) -> None:
    archive = packed(stored(tmp_path / "a", (UID, 1, body(0, 200)), (UID, 2, body(0, 200))), tmp_path / "o")
    content = archive.read_bytes()
    archive.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ConfigurationError):
        check(archive)
    with pytest.raises(ConfigurationError):
        unpack(archive, tmp_path / "b", stage(tmp_path))
    assert not (tmp_path / "b").exists()


def test_one_that_was_changed_is_refused(tmp_path: Path) -> None:
    archive = packed(stored(tmp_path / "a", (UID, 1, body(0, 20))), tmp_path / "o")
    archive.write_bytes(archive.read_bytes().replace(b"line 7", b"line 8"))
    with pytest.raises(ConfigurationError, match="damaged"):
        check(archive)


@pytest.mark.parametrize(("name", "kind"), [
    ("../x/1/00000000000000000000.log", tarfile.REGTYPE), ("/etc/passwd", tarfile.REGTYPE), ("u/1/x.log", tarfile.REGTYPE),
    ("u/0/00000000000000000000.log", tarfile.REGTYPE), ("u/1/00000000000000000000.log", tarfile.SYMTYPE),
    ("u/1/00000000000000000000.log", tarfile.LNKTYPE), ("u/1/00000000000000000000.log", tarfile.DIRTYPE),
    ("u/1/00000000000000000000.log", tarfile.FIFOTYPE), ("end", tarfile.SYMTYPE),
])  # fmt: skip
def test_names_and_kinds_that_no_output_has(tmp_path: Path, name: str, kind: bytes) -> None:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:") as archive:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, "/etc/passwd"
        archive.addfile(info, io.BytesIO())
    path = tmp_path / "o"
    path.write_bytes(made.getvalue())
    with pytest.raises(ConfigurationError):
        unpack(path, tmp_path / "b", stage(tmp_path))
    assert not (tmp_path / "b").exists()


async def test_only_who_may_do_everything_gets_it(tmp_path: Path) -> None:
    async with running_api_server(tmp_path) as server, http_client(server) as api:
        refused = await api.post("/swarmtask/backup?part=output", headers={"impersonate-user": "anna"})
        assert refused.status_code == 403, refused.text
        assert (await api.post("/swarmtask/backup?part=rest")).status_code == 400
        assert (await api.get("/swarmtask/backup?part=output")).status_code == 405


async def append(api: httpx.AsyncClient, position: int, content: bytes) -> None:
    uid = (await api.get(f"{TASKS}/lint")).json()["metadata"]["uid"]
    answer = await api.post(
        f"{TASKS}/lint/log", params={"uid": uid, "attempt": "1", "position": str(position)}, content=content,
        headers={"content-type": "application/vnd.swarmtask.log"},
    )  # fmt: skip
    assert answer.status_code == 201, answer.text


async def test_on_a_new_machine_the_output_is_there_and_goes_on(tmp_path: Path) -> None:
    file = tmp_path / "b"
    async with running_api_server(tmp_path / "one") as server, http_client(server) as api:
        await store_task(api, attempt(1))
        await append(api, 0, body(0, 3))
        arguments = ["backup", str(file), "--without-keys", "--with-output", "--data-dir", str(server.kubeconfig.parent)]
        made = await asyncio.to_thread(CliRunner(env={"COLUMNS": "200", "TERM": "dumb"}).invoke, app, arguments)
        assert made.exit_code == 0, made.output
        assert "output of 1 attempts" in made.stdout
    output = file.with_name("b.output")
    assert output.stat().st_mode & 0o777 == 0o600
    done = restore(file, tmp_path / "two" / "apiserver", None, label="now", output=output)
    assert done.output == 1
    async with running_api_server(tmp_path / "two") as server, http_client(server) as api:
        assert (await api.get(f"{TASKS}/lint/log")).text == "line 0\nline 1\nline 2\n"
        await append(api, 3, line(3))
        assert (await api.get(f"{TASKS}/lint/log", params={"tailLines": "1"})).text == "line 3\n"
