"""Secrets at rest: AES-256-GCM with a key that lies beside the database, not in it.

Called by the store, in its threads, for the revisions of sealed collections as they go to and come from the disk; and by the
rotation of the key. A sealed body is bound to its resourceVersion: one copied over another does not open. The key file holds the
present key first and, while a rotation is under way, the one before it. The library that encrypts (10 MB) is read in with the first
Secret.

What this protects: copies of the database, backups, a disk that is given away. Not from whoever can read the key file too.
"""

from __future__ import annotations

import base64
import binascii
import secrets
from dataclasses import dataclass
from pathlib import Path

import orjson

from swarmtask.apiserver.private_files import write_private
from swarmtask.apiserver.records import Collection
from swarmtask.errors import ConfigurationError

SEALED: frozenset[Collection] = frozenset({("", "secrets")})
MAGIC = b"\x00swtk1"
"""No JSON begins so: what is sealed and what is not can be told apart."""
ID_BYTES = 8
NONCE_BYTES = 12
KEY_BYTES = 32
_HEADER = len(MAGIC) + ID_BYTES + NONCE_BYTES


@dataclass(frozen=True, slots=True)
class _Key:
    id: bytes
    secret: bytes


class Vault:
    """The keys of one data directory. May be used from several threads: `_keys` is replaced, never changed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fresh = not path.exists()
        self._keys = (_new_key(),) if self._fresh else _read(path)
        self._retired: tuple[_Key, ...] = ()
        if not self._fresh:
            path.chmod(0o600)  # a copy or a backup may have opened it

    @property
    def key_id(self) -> str:
        """Of the present key."""
        return self._keys[0].id.hex()

    @property
    def rotating(self) -> bool:
        """There is a key besides the present one: a rotation was begun and has not ended."""
        return len(self._keys) > 1

    def keep(self) -> None:
        """Write a new key to its file, before anything is sealed with it. Once, when the database has been read."""
        if self._fresh:
            self._write(self._keys)
            self._fresh = False

    def begin_rotation(self) -> None:
        """Make a new key the present one and keep the others until `end_rotation`. The file comes first."""
        keys = (_new_key(), *self._keys)
        self._write(keys)
        self._keys = keys

    def end_rotation(self) -> None:
        """Forget all keys but the present one. Everything must have been sealed anew."""
        keys = self._keys[:1]
        self._write(keys)
        self._retired = self._keys[1:]  # a reader may hold what it has read just before
        self._keys = keys

    def _write(self, keys: tuple[_Key, ...]) -> None:
        content = [{"id": key.id.hex(), "key": base64.b64encode(key.secret).decode()} for key in keys]
        write_private(self._path, orjson.dumps({"keys": content}, option=orjson.OPT_INDENT_2) + b"\n")

    def seal(self, rv: int, body: bytes) -> bytes:
        """What goes to the disk for a revision."""
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415 - see the module

        key = self._keys[0]
        nonce = secrets.token_bytes(NONCE_BYTES)
        return MAGIC + key.id + nonce + AESGCM(key.secret).encrypt(nonce, body, _context(rv))

    def open(self, rv: int, stored: bytes) -> bytes:
        """What `seal` was given; bodies that are not sealed come back as they are.

        Raises:
            ConfigurationError: the key is missing, or the body was changed.
        """
        if not is_sealed(stored):
            return stored
        from cryptography.exceptions import InvalidTag  # noqa: PLC0415 - see the module
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415

        wanted = stored[len(MAGIC) : len(MAGIC) + ID_BYTES]
        key = next((key for key in (*self._keys, *self._retired) if key.id == wanted), None)
        if key is None:
            raise ConfigurationError(
                f"Secrets in the database are encrypted with the key {wanted.hex()}, which {self._path} does not hold: restore "
                "that file from the backup that the database belongs to"
            )
        try:
            return AESGCM(key.secret).decrypt(stored[_HEADER - NONCE_BYTES : _HEADER], stored[_HEADER:], _context(rv))
        except InvalidTag as error:
            raise ConfigurationError(
                f"a Secret (revision {rv}) cannot be decrypted: the database or {self._path} was changed; restore both"
            ) from error

    def is_current(self, stored: bytes) -> bool:
        """Sealed with the present key."""
        return stored.startswith(MAGIC + self._keys[0].id)


def is_sealed(stored: bytes) -> bool:
    return stored.startswith(MAGIC)


def key_id_of(sealed: bytes) -> str:
    """The ID of the key that a sealed body needs."""
    return sealed[len(MAGIC) : len(MAGIC) + ID_BYTES].hex()


def key_ids_in(content: bytes, path: Path) -> frozenset[str]:
    """The IDs of the keys in the content of a key file. `path`: where it is from, for the message. Raises ConfigurationError."""
    return frozenset(key.id.hex() for key in _parse(content, path))


def _context(rv: int) -> bytes:
    return b"swarmtask/revision/%d" % rv


def _new_key() -> _Key:
    return _Key(secrets.token_bytes(ID_BYTES), secrets.token_bytes(KEY_BYTES))


def _read(path: Path) -> tuple[_Key, ...]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"the key file {path} cannot be read ({error}): restore it from a backup") from error
    return _parse(content, path)


def _parse(content: bytes, path: Path) -> tuple[_Key, ...]:
    try:
        keys = tuple(
            _Key(bytes.fromhex(item["id"]), base64.b64decode(item["key"], validate=True)) for item in orjson.loads(content)["keys"]
        )
    except (ValueError, KeyError, TypeError, binascii.Error) as error:
        raise ConfigurationError(f"the key file {path} cannot be read ({error}): restore it from a backup") from error
    if not keys or any(len(key.id) != ID_BYTES or len(key.secret) != KEY_BYTES for key in keys):
        raise ConfigurationError(f"the key file {path} holds no usable key: restore it from a backup")
    return keys
