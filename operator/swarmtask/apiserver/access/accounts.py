"""ServiceAccount tokens: short-lived JWTs that the server signs, for agents and runners.

Called by the authenticator (is this one of ours, and does what it is bound to still exist) and by the TokenRequest handler. One
algorithm, ES256, whatever a token's header says; one key, known by its ID. A token ends with its time, its ServiceAccount, and the
object that it is bound to. The cryptography is in `signing`.
Source: Kubernetes documentation, "Managing Service Accounts" (bound tokens); RFC 8725, "JSON Web Token Best Current Practices".
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any

from swarmtask.apiserver.access.tokens import Login
from swarmtask.apiserver.access.users import service_account
from swarmtask.apiserver.index import Index
from swarmtask.apiserver.records import Collection, Key
from swarmtask.clock import Clock

if TYPE_CHECKING:
    from swarmtask.apiserver.access.signing import Signatures

ISSUER = "https://swarmtask"
AUDIENCE = "https://swarmtask"
"""Whom tokens are meant for that name nobody: this server."""
CLAIM = "kubernetes.io"
LEEWAY = timedelta(seconds=10)
"""Between the clock of the moment of signing and that of checking: the same machine's, which may be set back."""
VERIFIED_LIMIT = 4096
TOKEN_LIMIT_BYTES = 8192
SERVICE_ACCOUNTS: Collection = ("", "serviceaccounts")


@dataclass(frozen=True, slots=True)
class Bound:
    """The object with which a token ends."""

    collection: Collection
    kind: str
    name: str
    uid: str


class AccountTokens:
    """Signs and checks. One per server.

    Args:
        pem: the signing key, as `issuing` has made or checked it.
    """

    def __init__(self, pem: bytes, index: Index, clock: Clock) -> None:
        self._pem = pem
        self._index, self._clock = index, clock
        self._verified: dict[bytes, dict[str, Any]] = {}

    def issue(
        self, account: tuple[str, str, str], audiences: list[str], valid: timedelta, bound: Bound | None
    ) -> tuple[str, datetime]:
        """A new token and when it ends. `account`: namespace, name, UID."""
        namespace, name, uid = account
        now = self._clock.now().replace(microsecond=0)
        ends = now + valid
        private: dict[str, Any] = {"namespace": namespace, "serviceaccount": {"name": name, "uid": uid}}
        if bound is not None:
            group, plural = bound.collection
            private["bound"] = {"group": group, "plural": plural, "kind": bound.kind, "name": bound.name, "uid": bound.uid}
        claims = {
            "iss": ISSUER, "sub": f"system:serviceaccount:{namespace}:{name}", "aud": audiences, "jti": secrets.token_hex(16),
            "iat": now, "nbf": now, "exp": ends, CLAIM: private,
        }  # fmt: skip
        return self._signatures.sign(claims), ends

    def login(self, token: str, audiences: tuple[str, ...] = (AUDIENCE,)) -> Login | None:
        """Who comes in with a token; None: it is none of ours, has ended, or is not meant for any of the audiences."""
        if token.count(".") != 2 or len(token) > TOKEN_LIMIT_BYTES:
            return None
        claims = self._claims(token)
        if claims is None or not set(audiences) & set(claims["aud"]):
            return None
        now = self._clock.now().timestamp()
        if not claims["nbf"] - LEEWAY.total_seconds() <= now < claims["exp"]:
            return None
        private = claims[CLAIM]
        account, bound = private["serviceaccount"], private.get("bound")
        if self._gone(SERVICE_ACCOUNTS, private["namespace"], account):
            return None
        extra = {"authentication.kubernetes.io/credential-id": (f"JTI={claims['jti']}",)}
        credential = [account["uid"]]
        if bound is not None:
            if self._gone((bound["group"], bound["plural"]), private["namespace"], bound):
                return None
            extra["swarmtask.io/bound-to"] = (f"{bound['kind']}/{bound['name']}",)
            credential.append(bound["uid"])
        user = service_account(private["namespace"], account["name"], account["uid"], extra)
        return Login(user, datetime.fromtimestamp(claims["exp"], self._clock.now().tzinfo), tuple(credential))

    @cached_property
    def _signatures(self) -> Signatures:
        """Read in with the first token that is signed or checked: clusters without ServiceAccount tokens do without (10 MB)."""
        from swarmtask.apiserver.access.signing import Signatures  # noqa: PLC0415

        return Signatures(self._pem)

    def audiences(self, token: str) -> list[str]:
        """Whom a token that `login` has accepted is meant for."""
        claims = self._claims(token)
        return list(claims["aud"]) if claims is not None else []

    def _gone(self, collection: Collection, namespace: str, reference: Mapping[str, str]) -> bool:
        record = self._index.get(Key(collection, namespace, reference["name"]))
        return record is None or record.uid != reference["uid"] or record.deleting

    def _claims(self, token: str) -> dict[str, Any] | None:
        """The claims of a token with our signature. A signature is checked once: that takes as long as a small request."""
        known = hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
        found = self._verified.get(known)
        if found is not None:
            return found
        claims = self._signatures.claims(token, ISSUER)
        if claims is None:
            return None
        if len(self._verified) >= VERIFIED_LIMIT:
            self._verified.clear()
        self._verified[known] = claims
        return claims
