"""Directories and files that their owner alone may read, written at once and durably.

Called by whatever keeps keys, tokens, kubeconfigs and output. Knows nothing of what is in them.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from swarmtask.errors import ConfigurationError


def prepare_data_dir(data_dir: Path) -> None:
    """Make the directory, closed to others. Raises ConfigurationError."""
    try:
        data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        data_dir.chmod(0o700)
    except OSError as error:
        raise ConfigurationError(
            f"the data directory {data_dir} cannot be used: {error}; choose another with --data-dir"
        ) from error


def write_private(path: Path, content: bytes) -> None:
    """Replace a file at once and durably; only its owner can read it, at no moment anybody else."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def sync(path: Path) -> None:
    """See to it that a file, or the names in a directory, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
