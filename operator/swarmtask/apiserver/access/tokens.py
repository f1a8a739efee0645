"""Access tokens: the stored kind `AccessToken`, its rules, and which user a token belongs to.

Called by the authenticator for each request, by admission for what is written, and by the store after commits. Only digests are
known here: whoever makes a token keeps it to himself and sends its SHA-256. Deleting the object revokes the token with that commit,
for good: no two objects have one digest.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from swarmtask.apiserver.access.users import AUTHENTICATED, User
from swarmtask.apiserver.faults import bad_value, invalid, not_allowed, required
from swarmtask.apiserver.records import Change, Collection, Record
from swarmtask.apiserver.store import Store
from swarmtask.apiserver.types import ResourceType
from swarmtask.clock import parse_time
from swarmtask.errors import Cause

TOKENS: Collection = ("access.swarmtask.io", "accesstokens")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_IMMUTABLE = ("user", "groups", "digest")
NAME_LIMIT = 256


@dataclass(frozen=True, slots=True)
class Login:
    """Who has come in, and with what.

    Attributes:
        expires_at: the credential ends then; None: never.
        credential: what it can be revoked by: the UIDs of the objects that it lives with, and the digest of an access token.
    """

    user: User
    expires_at: datetime | None = None
    credential: tuple[str, ...] = ()


class AccessTokens:
    """Digest -> whose token it is. One per server."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._logins: dict[bytes, Login] = {}
        self._digests: dict[str, bytes] = {}
        self._listeners: list[Callable[[], None]] = []

    def load(self) -> None:
        """Take in what is stored; at the start."""
        for record in self._store.index.records(TOKENS):
            self._add(record)

    def subscribe(self, listener: Callable[[], None]) -> None:
        """Call `listener` whenever a token was changed or revoked."""
        self._listeners.append(listener)

    def on_commit(self, changes: Sequence[Change]) -> None:
        """A store listener."""
        ended = False
        for change in changes:
            if change.key.collection != TOKENS:
                continue
            if change.previous is not None:
                ended = True
                self._forget(change.previous)
            if change.type == "DELETED" or change.record.deleting:
                self._logins.pop(bytes.fromhex(digest_of(change.record)), None)  # whichever object it was let in by
            else:
                self._add(change.record)
        if ended:
            for listener in self._listeners:
                listener()

    def login(self, digest: bytes) -> Login | None:
        """Whose token has this SHA-256, expired or not. Found by its digest: how long that takes tells nothing of a token."""
        return self._logins.get(digest)

    def living(self, user: str, now: datetime) -> int:
        """How many tokens of a user have not expired."""
        logins = (login for login in self._logins.values() if login.user.name == user)
        return sum(login.expires_at is None or now < login.expires_at for login in logins)

    def _add(self, record: Record) -> None:
        spec = record.decode()["spec"]
        digest = bytes.fromhex(spec["digest"])
        if record.deleting or digest in self._logins:  # one that `duplicates` could not delete changes nothing
            return
        groups = tuple(dict.fromkeys((*(spec.get("groups") or ()), AUTHENTICATED)))
        expires = spec.get("expirationTimestamp")
        extra = {"access.swarmtask.io/token": (record.key.name,)}
        self._digests[record.uid] = digest
        self._logins[digest] = Login(
            User(spec["user"], groups, extra=extra), parse_time(expires) if expires else None, (record.uid,)
        )  # fmt: skip

    def _forget(self, record: Record) -> None:
        digest = self._digests.pop(record.uid, None)
        login = self._logins.get(digest) if digest is not None else None
        if digest is not None and login is not None and login.credential == (record.uid,):
            del self._logins[digest]


def digest_of(record: Record) -> str:
    """The SHA-256 of a stored token, in hexadecimal digits."""
    return str(record.decode()["spec"]["digest"])


def check_unused(store: Store, rt: ResourceType, obj: Mapping[str, Any]) -> None:
    """Nobody makes a second token of one digest: deleting the first would not end it.

    Raises:
        Invalid: there is one, perhaps on its way to the disk, or revoked and waiting for its finalizers.
    """
    digest = obj["spec"]["digest"]
    written = digest.encode()
    for record in store.heads(TOKENS):
        if written in record.body and digest_of(record) == digest:
            why = "Duplicate value: another AccessToken has this digest: make another token, or delete that one first"
            raise invalid(rt, obj["metadata"]["name"], [Cause("spec.digest", "FieldValueDuplicate", why)])


def token_causes(obj: Mapping[str, Any], old: Mapping[str, Any] | None) -> list[Cause]:
    """What is wrong with an AccessToken; an admission rule."""
    spec = obj.get("spec") or {}
    causes = []
    user, digest = spec.get("user") or "", spec.get("digest") or ""
    if not user:
        causes.append(required("spec.user"))
    for path, name in (("spec.user", user), *((f"spec.groups[{at}]", group) for at, group in enumerate(spec.get("groups") or ()))):
        if path != "spec.user" and not name:
            causes.append(required(path))
        elif len(name) > NAME_LIMIT or not name.isprintable() or "," in name:
            causes.append(bad_value(path, name[:80], f"must be at most {NAME_LIMIT} printable characters without a comma"))
    if not _DIGEST.fullmatch(digest):
        causes.append(bad_value("spec.digest", digest[:80], "must be the SHA-256 of the token as 64 lower case hexadecimal digits"))
    expires = spec.get("expirationTimestamp")
    if expires:
        try:
            parse_time(expires)
        except ValueError:
            causes.append(bad_value("spec.expirationTimestamp", expires, "must be a time as in RFC 3339, 2026-01-31T12:00:00Z"))
    if old is not None:
        before = old.get("spec") or {}
        causes += [
            not_allowed(f"spec.{name}", "is immutable: make another token, and delete this one")
            for name in _IMMUTABLE
            if (spec.get(name) or None) != (before.get(name) or None)
        ]
    return causes
