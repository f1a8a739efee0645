"""Where the API server keeps what in its data directory, and the lock of the directory.

Called by the server, and by backup and restore, which must agree with it. Makes nothing but the lock file.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from swarmtask.errors import ConfigurationError

DATABASE = "swarmtask.db"
KUBECONFIG = "kubeconfig"
OPERATOR_KUBECONFIG = "operator.kubeconfig"
SECRETS_KEY = "secrets.key"
AUDIT = Path("audit") / "audit.log"
ATTEMPT_LOGS = "attempt-logs"
"""Where the output of attempts lies, beside the database."""
LOCK = "apiserver.lock"
PKI = "pki"


@contextlib.contextmanager
def locked(data_dir: Path) -> Iterator[None]:
    """One server, or one restore, per data directory. The lock goes with the process, however it ends.

    Raises:
        ConfigurationError: another process has it.
    """
    descriptor = os.open(data_dir / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigurationError(
                f"another API server uses {data_dir}: stop it first, or choose another directory with --data-dir"
            ) from error
        yield
    finally:
        os.close(descriptor)


def credentials_of(data_dir: Path) -> list[Path]:
    """The files that make a database this very cluster: keys and authority, tokens. Relative paths, in order; those that exist.

    The server's own certificate is not among them: it is made from the authority.
    """
    found = [*data_dir.glob("*.token"), *(data_dir / PKI).glob("*.key"), *(data_dir / PKI).glob("*.crt"), data_dir / SECRETS_KEY]
    return sorted(path.relative_to(data_dir) for path in found if path.stem != "server" and path.is_file())
