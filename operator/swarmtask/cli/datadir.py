"""The data directory: made private, held by one process at a time, and where things lie in it.

Called by the commands that start something. The API server owns the database and the certificates in it; nothing here reads those.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from swarmtask.errors import AlreadyExists, ConfigurationError

_OURS = frozenset({"kubeconfig", "swarmtask.db", "up.pid", "apiserver.pid", "operator.pid", "pki", "logs", "local"})
"""What marks a directory as one of ours: only such a one, or an empty one, is made private."""


def kubeconfig_path(data_dir: Path) -> Path:
    """Where the API server writes the administrator's kubeconfig."""
    return data_dir / "kubeconfig"


def operator_kubeconfig_path(data_dir: Path) -> Path:
    """Where the API server writes the kubeconfig with which the operator comes in."""
    return data_dir / "operator.kubeconfig"


def prepare(data_dir: Path) -> Path:
    """Make the directory, readable by its owner alone, and return it as an absolute path.

    Raises:
        ConfigurationError: it cannot be made or written.
    """
    path = data_dir.expanduser().absolute()
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        mine = path.stat().st_uid == os.getuid()
        shared = bool(path.stat().st_mode & 0o077)
        content = {entry.name for entry in path.iterdir()}
        if shared and content and not content & _OURS:
            raise ConfigurationError(
                f"{path} holds other things and is open to other users, so it is no data directory: name an empty or a new one "
                "with --data-dir"
            )
        if mine and shared:
            path.chmod(0o700)
    except OSError as error:
        raise ConfigurationError(
            f"cannot use the data directory {path}: {error.strerror}; choose another one with --data-dir"
        ) from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise ConfigurationError(f"cannot write to the data directory {path}; choose another one with --data-dir")
    return path


@contextlib.contextmanager
def hold(data_dir: Path, component: str, *, patience_s: float = 0.0) -> Iterator[None]:
    """Be the only `component` of this data directory. The lock ends with the process, however it ends.

    Args:
        patience_s: how long to wait for a predecessor that is just going away.

    Raises:
        AlreadyExists: another process holds it; names the process.
    """
    path = data_dir / f"{component}.pid"
    deadline = time.monotonic() + patience_s
    with path.open("a+", encoding="ascii") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() < deadline:
                    time.sleep(0.05)
                    continue
                file.seek(0)
                holder = file.read(20).strip() or "unknown"
                raise AlreadyExists(
                    f"`swarmtask {component}` (process {holder}) already uses {data_dir}: stop it first, "
                    "or choose another directory with --data-dir"
                ) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def probe_writable(path: Path) -> None:
    """Raises OSError when `write_atomically` could not write here. `path` itself does not appear, not even for a moment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(path)
    os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600))
    partial.unlink()


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}")


def write_atomically(path: Path, data: bytes, mode: int = 0o600) -> None:
    """A reader sees the old file, the new file or none, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(path)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
