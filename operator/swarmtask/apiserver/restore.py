"""Restoring a backup into a data directory that no server uses.

Called by `swarmtask restore`. Everything is made ready and checked in a folder of its own; what was there is kept aside; then one
rename decides (`switchover`). A restore that fails or is cut off before that has changed nothing and is simply run again; one that
is cut off after it is finished by the next start, or by the next restore. All of it blocks.

Every object gets a new resourceVersion far above all that the cluster can have given out: whoever watches is told to list again
(410), whoever compares versions takes what was restored, and no write that was decided on the state before goes through.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from swarmtask.apiserver import backup, layout, output_archive, schemas_since, switchover
from swarmtask.apiserver.access.vault import Vault, is_sealed, key_ids_in
from swarmtask.apiserver.backup import Facts
from swarmtask.apiserver.places import ATTEMPT_LOGS, DATABASE, PKI, SECRETS_KEY, credentials_of, locked
from swarmtask.apiserver.private_files import prepare_data_dir, sync, write_private
from swarmtask.errors import ConfigurationError
from swarmtask.resources.kinds import SWARM_TASK
from swarmtask.resources.restored import mark_restored
from swarmtask.resources.task import TERMINAL_PHASES

VERSION_GAP = 10**12
"""How far resourceVersions jump: more than a cluster gives out in ten years of 3,000 writes a second."""
UNFINISHED = "unfinished-tasks.json"


@dataclass(frozen=True, slots=True)
class Restored:
    """What was done.

    Attributes:
        resource_version: with which the cluster goes on.
        aside: folder with what was there before; None: there was nothing.
        unfinished: tasks of the old database that are not in the backup and had not ended: to be submitted again from the file
            `UNFINISHED` in `aside`. None: there was no old database that could be read.
        new_authority: the certificates of before are not there: every kubeconfig has to be made anew.
        output: of how many attempts output was put back.
    """

    facts: Facts
    resource_version: int
    aside: Path | None
    unfinished: int | None
    new_authority: bool
    output: int = 0


def restore(
    source: Path, data_dir: Path, credentials: Mapping[str, bytes] | None, *, label: str, output: Path | None = None
) -> Restored:
    """Put a backup in the place of the database.

    Args:
        credentials: content by path in the data directory, from the keys file; None: those that are there stay.
        label: part of the name of the folder in which the present files are kept.
        output: an archive of attempts' output that was made with the backup; what of it is not there is put back.

    Raises:
        ConfigurationError: a server uses the directory; a file is not whole, or newer; the key of the Secrets is missing.
        InsufficientStorage, InternalError: nothing was changed, or, where the message says so, what is left is to be finished; run
            it again.
    """
    facts = backup.read(source)
    prepare_data_dir(data_dir)
    with locked(data_dir):
        switchover.finish(data_dir)
        stage = data_dir / f"{switchover.STAGE_PREFIX}{secrets.token_hex(6)}"
        aside: Path | None = None
        try:
            ready = stage / "ready"
            ready.mkdir(mode=0o700, parents=True)
            vault = _vault(facts, data_dir, credentials, stage)
            old = _Old.read(data_dir / DATABASE)
            base = max(facts.resource_version, old.resource_version if old is not None else 0) + VERSION_GAP
            version, uids = _database(source, ready, base, vault, facts.created)
            unfinished = None if old is None else [task for uid, task in old.unfinished.items() if uid not in uids]
            _stage_credentials(ready, credentials or {})
            new_authority = not any((folder / PKI / "ca.key").exists() for folder in (ready, data_dir))
            shown = 0 if output is None else output_archive.unpack(output, data_dir / ATTEMPT_LOGS, ready / ATTEMPT_LOGS)
            aside = _place_aside(data_dir, label)
            if aside is not None:
                _set_aside(data_dir, aside, unfinished or [])
            switchover.decide(ready, data_dir)
        except (sqlite3.Error, OSError) as error:
            raise layout.map_error(error, data_dir / DATABASE) from error
        finally:
            shutil.rmtree(stage, ignore_errors=True)
            if aside is not None and not (data_dir / switchover.PENDING).exists():
                shutil.rmtree(aside, ignore_errors=True)
        switchover.finish(data_dir)
    return Restored(facts, version, aside, None if unfinished is None else len(unfinished), new_authority, shown)


def _database(source: Path, ready: Path, base: int, vault: Vault | None, created: str) -> tuple[int, set[str]]:
    """The database as it is to be; returns as `_renumber`."""
    path = ready / DATABASE
    shutil.copyfile(source, path)
    path.chmod(0o600)
    return _renumber(path, base, vault, created)


def _stage_credentials(ready: Path, credentials: Mapping[str, bytes]) -> None:
    for name, content in credentials.items():
        prepare_data_dir((ready / name).parent)
        write_private(ready / name, content)


def _vault(facts: Facts, data_dir: Path, credentials: Mapping[str, bytes] | None, stage: Path) -> Vault | None:
    """What opens the Secrets of the backup. Raises ConfigurationError: the key is not there."""
    if not facts.keys:
        return None
    given = (credentials or {}).get(SECRETS_KEY)
    present = data_dir / SECRETS_KEY
    content = given if given is not None else present.read_bytes() if present.exists() else None
    missing = set(facts.keys) - (key_ids_in(content, present) if content is not None else frozenset())
    if missing or content is None:
        raise ConfigurationError(
            f"the Secrets in the backup are encrypted with the key {', '.join(sorted(missing))}, which "
            f"{'the keys file' if given is not None else present} does not hold: name the keys file that was made with this backup "
            "(--keys)"
        )
    write_private(stage / SECRETS_KEY, content)
    return Vault(stage / SECRETS_KEY)


@dataclass(frozen=True, slots=True)
class _Old:
    """What can still be read of the database that is replaced. `unfinished`: tasks by UID, as they may be applied again."""

    resource_version: int
    unfinished: Mapping[str, dict[str, Any]]

    @classmethod
    def read(cls, path: Path) -> _Old | None:
        """None: there is none, or it cannot be read."""
        if not path.exists():
            return None
        try:
            with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
                (version,) = db.execute("SELECT value FROM meta WHERE name = 'resource_version'").fetchone()
                rows = db.execute(
                    "SELECT uid, body FROM objects JOIN revisions USING (rv) WHERE grp = ? AND plural = ?",
                    (SWARM_TASK.group, SWARM_TASK.plural),
                )
                tasks = {uid: task for uid, body in rows if (task := _unfinished(body)) is not None}
                return cls(int(version), tasks)
        except (sqlite3.Error, TypeError, ValueError):
            return None


def _unfinished(body: bytes) -> dict[str, Any] | None:
    """A task as somebody would apply it; None: it has ended, is going, is a run of an array, or cannot be read."""
    try:
        task = orjson.loads(body)
        metadata = task["metadata"]
        if "deletionTimestamp" in metadata or any(owner.get("controller") for owner in metadata.get("ownerReferences") or ()):
            return None
        if (task.get("status") or {}).get("phase") in TERMINAL_PHASES:
            return None
        kept = {name: metadata[name] for name in ("name", "namespace", "labels", "annotations") if metadata.get(name)}
        return {"apiVersion": task["apiVersion"], "kind": task["kind"], "metadata": kept, "spec": task.get("spec") or {}}
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def _renumber(path: Path, base: int, vault: Vault | None, created: str) -> tuple[int, set[str]]:
    """Bring a copy of the backup up to date and give every object a version above `base`, in the order that they had. Tasks of
    which engines may know more are marked (`resources.restored`).

    Returns:
        The version of the newest, and the UIDs.
    """
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("DROP TABLE backup")
        layout.migrate(db)
        db.execute("BEGIN IMMEDIATE")
        rows = db.execute(
            "SELECT objects.rv, uid, body, crc FROM objects LEFT JOIN revisions USING (rv) ORDER BY objects.rv"
        ).fetchall()
        moved = [(version, row[0]) for version, row in enumerate(rows, base + 1)]
        bodies = [
            # A damaged one stays as it is: the server names it at start.
            (version, *(_with_version(body, rv, version, vault, created) if layout.checksum(body) == crc else (body, crc)))
            for version, (rv, _, body, crc) in enumerate(rows, base + 1)
            if body is not None
        ]
        version = base + len(rows)
        db.execute("DELETE FROM revisions")
        db.execute("DELETE FROM log")
        db.executemany("UPDATE objects SET rv = ? WHERE rv = ?", moved)
        db.executemany("INSERT INTO revisions (rv, body, crc) VALUES (?, ?, ?)", bodies)
        db.execute("UPDATE meta SET value = ? WHERE name IN ('resource_version', 'floor')", (version,))
        db.execute("COMMIT")
        db.execute("VACUUM")
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return version, {uid for _, uid, _, _ in rows}


def _with_version(stored: bytes, rv: int, version: int, vault: Vault | None, created: str) -> tuple[bytes, int]:
    """A body that says its new version, and its checksum."""
    sealed = vault if vault is not None and is_sealed(stored) else None
    obj = orjson.loads(sealed.open(rv, stored) if sealed is not None else stored)
    obj["metadata"]["resourceVersion"] = str(version)
    mark_restored(obj, created)
    schemas_since.forget(obj)
    body = orjson.dumps(obj)
    if sealed is not None:
        body = sealed.seal(version, body)
    return body, layout.checksum(body)


def _place_aside(data_dir: Path, label: str) -> Path | None:
    """Where to keep what is about to be replaced; None: there is nothing. Does not exist yet."""
    if not _replaced(data_dir):
        return None
    folder = data_dir / f"before-restore-{label}"
    number = 1
    while folder.exists():
        number += 1
        folder = data_dir / f"before-restore-{label}-{number}"
    return folder


def _replaced(data_dir: Path) -> list[str]:
    """The database, and what belongs to it."""
    names = [name for name in switchover.DATABASE_FAMILY if (data_dir / name).exists()]
    return [*names, *(str(path) for path in credentials_of(data_dir))]


def _set_aside(data_dir: Path, folder: Path, unfinished: list[dict[str, Any]]) -> None:
    """Keep the files that are about to be replaced, which also stay where they are, and tasks for a person to submit again."""
    folder.mkdir(mode=0o700)
    for name in _replaced(data_dir):
        (folder / name).parent.mkdir(mode=0o700, exist_ok=True)
        try:
            os.link(data_dir / name, folder / name)
        except OSError:
            shutil.copy2(data_dir / name, folder / name)  # a file system without links
    if unfinished:
        document = {"apiVersion": "v1", "kind": "List", "items": unfinished}
        write_private(folder / UNFINISHED, orjson.dumps(document, option=orjson.OPT_INDENT_2) + b"\n")
    sync(folder)
