"""The files of access: the certificate authority, the server's certificate, tokens of administrator and operator, kubeconfigs.

Called by the server at start and when certificates age, and by `access.identities` for each request (`Authenticator`). Everything
lives in the data directory, readable by its owner alone. Requests are checked against the SHA-256 of the token, never against the
token itself.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
import secrets
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import yaml

from swarmtask.apiserver.access.users import ADMINISTRATOR, OPERATOR, User
from swarmtask.apiserver.issued import SIGNING_KEY, Issue, issue_here, stands
from swarmtask.apiserver.places import PKI
from swarmtask.apiserver.private_files import prepare_data_dir, write_private
from swarmtask.errors import ConfigurationError

CONTEXT = "swarmtask"


@dataclass(frozen=True, slots=True)
class Credentials:
    """What the server serves with, and what clients need.

    Attributes:
        ca_pem: the authority's certificate, for the kubeconfig.
        token: of the administrator, for the kubeconfig.
        operator_token: of the operator, for its own kubeconfig.
        signing_pem: the key of ServiceAccount tokens.
    """

    ca_pem: bytes
    certificate: Path
    key: Path
    token: str
    operator_token: str
    signing_pem: bytes


class Authenticator:
    """The tokens that lie in files of the data directory: token -> user. Holds digests, never tokens.

    Args:
        digests: of the administrator's tokens.
        others: of tokens of others.
    """

    def __init__(self, digests: Iterable[bytes], others: Mapping[bytes, User] | None = None) -> None:
        self._users = (*((known, ADMINISTRATOR) for known in digests), *(others or {}).items())

    def user_of(self, token: str) -> User | None:
        """The user of a token. Compares in constant time, against every digest."""
        presented = digest(token)
        matches = [user for known, user in self._users if hmac.compare_digest(presented, known)]
        return matches[0] if matches else None


def digest(token: str) -> bytes:
    """SHA-256; tokens are 256 random bits, so no salt and no stretching is needed."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def prepare(data_dir: Path, host: str, now: datetime, issue: Issue = issue_here) -> tuple[Credentials, Authenticator]:
    """Make what is missing, renew what has aged, keep the rest.

    Args:
        issue: makes certificates and keys where that is needed.

    Raises:
        ConfigurationError: a file cannot be read or written, or is not what it should be.
    """
    folder = data_dir / PKI
    prepare_data_dir(data_dir)
    prepare_data_dir(folder)
    try:
        certificate, key = _issued(folder, host, now, issue)
        ca_pem, signing_pem = (folder / "ca.crt").read_bytes(), (folder / SIGNING_KEY).read_bytes()
        token, operator_token = _token(data_dir / "admin.token"), _token(data_dir / "operator.token")
        for path in (data_dir / "admin.token", data_dir / "operator.token", *folder.glob("*.key")):
            path.chmod(0o600)  # a copy or a backup may have opened it
    except (OSError, ValueError, TypeError) as error:
        raise ConfigurationError(
            f"the certificates or the token in {data_dir} cannot be used: {error}; restore the files, or remove them "
            f"({folder} and admin.token) to have new ones made"
        ) from error
    credentials = Credentials(ca_pem, certificate, key, token, operator_token, signing_pem)
    return credentials, Authenticator([digest(token)], {digest(operator_token): OPERATOR})


def server_certificate(data_dir: Path, host: str, now: datetime, issue: Issue = issue_here) -> tuple[Path, Path]:
    """The paths of the server's certificate and key; made anew where they are missing or have aged.

    Raises:
        ConfigurationError: a file cannot be read or written, or is not what it should be.
    """
    folder = data_dir / PKI
    try:
        return _issued(folder, host, now, issue)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigurationError(f"the certificates in {folder} cannot be used: {error}; restore the files") from error


def _issued(folder: Path, host: str, now: datetime, issue: Issue) -> tuple[Path, Path]:
    names = subject_names(host)
    if not stands(folder, names, now):
        issue(folder, names, now)
    return folder / "server.crt", folder / "server.key"


def subject_names(host: str) -> list[str]:
    """What clients may call the server: the listen address, the loopback addresses and the machine's own names."""
    texts = dict.fromkeys([host, "localhost", "127.0.0.1", "::1", socket.gethostname(), "swarmtask", *_own_addresses(host)])
    names = []
    for text in texts:
        try:
            names.append(str(ipaddress.ip_address(text)))
        except ValueError:
            if text and text.isascii():
                names.append(text)
    return names


def _own_addresses(host: str) -> list[str]:
    """Addresses of this machine, when the server listens on all of them."""
    if host not in ("0.0.0.0", "::", ""):
        return []
    try:
        found = socket.getaddrinfo(socket.gethostname(), None, type=socket.SOCK_STREAM)
    except OSError:
        return []
    return sorted({str(entry[4][0]).partition("%")[0] for entry in found})


def _token(path: Path) -> str:
    """A token of the server's own; made on first start, kept in a file of mode 0600."""
    if path.exists():
        token = path.read_text().strip()
        if len(token) < 32:
            raise ValueError(f"{path} holds no token")
        return token
    token = secrets.token_urlsafe(32)
    write_private(path, token.encode() + b"\n")
    return token


def kubeconfig(url: str, credentials: Credentials, *, operator: bool = False) -> str:
    """The text of a kubeconfig with everything embedded: of the administrator, or of the operator."""
    user = f"{CONTEXT}-operator" if operator else f"{CONTEXT}-admin"
    token = credentials.operator_token if operator else credentials.token
    authority = base64.b64encode(credentials.ca_pem).decode()
    return yaml.safe_dump(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": CONTEXT, "cluster": {"server": url, "certificate-authority-data": authority}}],
            "users": [{"name": user, "user": {"token": token}}],
            "contexts": [{"name": CONTEXT, "context": {"cluster": CONTEXT, "user": user, "namespace": "default"}}],
            "current-context": CONTEXT,
        },
        sort_keys=False,
    )
