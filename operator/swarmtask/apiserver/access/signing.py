"""The signatures of ServiceAccount tokens: JSON Web Tokens with one algorithm and one key.

Called by `accounts` when the first token is met; imported by nobody else, because of what it needs. Knows nothing of what they say.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

ALGORITHM = "ES256"


class Signatures:
    """Of one key.

    Args:
        pem: the private key.

    Raises:
        ValueError, TypeError: it is none, or of another kind.
    """

    def __init__(self, pem: bytes) -> None:
        key = serialization.load_pem_private_key(pem, None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise TypeError("the signing key of ServiceAccount tokens is no ECDSA key")
        self._key, self._public = key, key.public_key()
        self._key_id = key_id(self._public)

    def sign(self, claims: Mapping[str, Any]) -> str:
        """A token that says this."""
        return jwt.encode(dict(claims), self._key, algorithm=ALGORITHM, headers={"kid": self._key_id})

    def claims(self, token: str, issuer: str) -> dict[str, Any] | None:
        """What a token says that was signed with this key; None: it was not. Its times and its audience are not looked at."""
        try:
            if jwt.get_unverified_header(token).get("kid") != self._key_id:
                return None
            claims: dict[str, Any] = jwt.decode(
                token, self._public, algorithms=[ALGORITHM], issuer=issuer,
                # Times and audience are checked at every use, by the server's own clock.
                options={
                    "require": ["exp", "nbf", "iat", "aud", "sub", "jti"], "verify_aud": False, "verify_exp": False,
                    "verify_nbf": False, "verify_iat": False,
                },
            )  # fmt: skip
        except (jwt.PyJWTError, ValueError):
            return None
        return claims


def key_id(public: ec.EllipticCurvePublicKey) -> str:
    """The ID of a signing key: the start of the SHA-256 of its public half."""
    return hashlib.sha256(
        public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    ).hexdigest()[:32]  # fmt: skip
