"""The keys file of a backup: what makes a database this very cluster again. Secret as a whole.

Called by `swarmtask backup` and `restore`. It holds the key of the encrypted Secrets, the authority of the certificates, the key of
ServiceAccount tokens, and the tokens of administrator and operator, so that kubeconfigs and agents go on working. It never travels
over the network: it is read from the data directory.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import orjson

from swarmtask.apiserver.access.vault import key_ids_in
from swarmtask.apiserver.places import SECRETS_KEY, credentials_of
from swarmtask.errors import ConfigurationError

_FORMAT = "swarmtask-keys/1"


def pack(data_dir: Path) -> bytes:
    """The keys of a data directory as the content of a keys file.

    Raises:
        ConfigurationError: there are none.
    """
    files = {path.as_posix(): (data_dir / path).read_bytes() for path in credentials_of(data_dir)}
    if SECRETS_KEY not in files:
        raise ConfigurationError(f"{data_dir} holds no {SECRETS_KEY}: it is not the data directory of the control plane")
    encoded = {name: base64.b64encode(content).decode() for name, content in files.items()}
    document = {"format": _FORMAT, "files": encoded, "digest": _digest(files)}
    return orjson.dumps(document, option=orjson.OPT_INDENT_2) + b"\n"


def unpack(path: Path) -> dict[str, bytes]:
    """Content by path in the data directory.

    Raises:
        ConfigurationError: it is no keys file, or damaged. OSError: it cannot be read.
    """
    content = path.read_bytes()
    try:
        document = orjson.loads(content)
        known = document["format"] == _FORMAT
        files = {str(name): base64.b64decode(text, validate=True) for name, text in document["files"].items()}
        whole = document["digest"] == _digest(files)
    except (ValueError, TypeError, KeyError, AttributeError, binascii.Error) as error:
        raise ConfigurationError(f"{path} is no keys file of `swarmtask backup` ({type(error).__name__})") from error
    if not known:
        raise ConfigurationError(f"{path} was written by a newer SwarmTask: upgrade SwarmTask")
    if not whole or not all(_is_inside(name) for name in files):
        raise ConfigurationError(f"{path} is damaged: use another copy of it")
    return files


def secret_key_ids(path: Path) -> frozenset[str]:
    """The IDs of the keys of Secrets in a keys file. Raises as `unpack`."""
    return key_ids_in(unpack(path).get(SECRETS_KEY, b""), path)


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


def _digest(files: Mapping[str, bytes]) -> str:
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(b"%s %d:" % (name.encode(), len(files[name])))
        digest.update(files[name])
    return digest.hexdigest()
