"""Putting prepared files in the place of those of a data directory: all of them or none, whenever it is cut off.

Called by `restore`, which prepares a folder with everything, and by the server at start, which finishes what was cut off. The one
step that counts is a rename (`decide`): before it all is as it was, after it the new files count, and moving them to their
places (`finish`) goes on where it ended. The caller holds the lock of the directory. All of it blocks.
"""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from swarmtask.apiserver.places import ATTEMPT_LOGS, DATABASE
from swarmtask.apiserver.private_files import sync
from swarmtask.errors import InsufficientStorage, InternalError

PENDING = "restore.pending"
STAGE_PREFIX = ".restore-"
DATABASE_FAMILY = (DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm")


def decide(ready: Path, data_dir: Path) -> None:
    """From here on the files in `ready` are those of the directory; `finish` has to follow. Raises OSError: nothing has changed."""
    sync_tree(ready)
    ready.rename(data_dir / PENDING)


def finish(data_dir: Path) -> bool:
    """Move what was decided on to its place, and remove what was prepared and never decided on.

    Returns:
        Whether there was something to move.

    Raises:
        InsufficientStorage, InternalError: it could not be finished; calling this again goes on.
    """
    pending = data_dir / PENDING
    try:
        for left in data_dir.glob(f"{STAGE_PREFIX}*"):
            shutil.rmtree(left)
        if not pending.exists():
            return False
        sync(data_dir)
        _move_all(pending, data_dir)
        shutil.rmtree(pending)
        sync(data_dir)
    except OSError as error:
        text = (
            f"the restored files in {pending} could not be put in their places ({error}): see to that, free some space if there is "
            "none, and run `swarmtask restore` again or start the control plane, which goes on with it"
        )
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise InsufficientStorage(text) from error
        raise InternalError(text) from error
    return True


def _move_all(pending: Path, data_dir: Path) -> None:
    output = pending / ATTEMPT_LOGS
    for attempt in sorted(output.glob("*/*")):
        place = data_dir / attempt.relative_to(pending)
        if not place.exists():
            for folder in (data_dir / ATTEMPT_LOGS, place.parent):
                folder.mkdir(mode=0o700, exist_ok=True)
            _move(attempt, place)
            sync(place.parent)
    rest = [path for path in pending.rglob("*") if path.is_file() and output not in path.parents and path.name != DATABASE]
    for path in sorted(rest):
        place = data_dir / path.relative_to(pending)
        place.parent.mkdir(mode=0o700, exist_ok=True)
        _move(path, place)
        sync(place.parent)
    if (pending / DATABASE).exists():
        for name in DATABASE_FAMILY[1:]:
            (data_dir / name).unlink(missing_ok=True)  # a journal of the old one must not be found beside the new one
        _move(pending / DATABASE, data_dir / DATABASE)
        sync(data_dir)


def _move(source: Path, place: Path) -> None:
    """At once, also to another disk."""
    try:
        source.replace(place)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        partial = place.with_name(".restoring")
        if partial.is_dir():
            shutil.rmtree(partial)
        (shutil.copytree if source.is_dir() else shutil.copy2)(source, partial)
        sync_tree(partial)
        partial.replace(place)
        (shutil.rmtree if source.is_dir() else os.unlink)(source)


def sync_tree(path: Path) -> None:
    """See to it that a file, or a folder and all that is in it, is on the disk."""
    if path.is_dir():
        for below in path.iterdir():
            sync_tree(below)
    sync(path)
