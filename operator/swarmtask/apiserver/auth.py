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

import structlog
import yaml

from swarmtask.apiserver.access.users import ADMINISTRATOR, OPERATOR, User
from swarmtask.apiserver.issued import SIGNING_KEY, Issue, issue_here, stands
from swarmtask.apiserver.places import PKI, locked
from swarmtask.apiserver.private_files import prepare_data_dir, write_private
from swarmtask.apiserver.switchover import PENDING, finish
from swarmtask.errors import ConfigurationError

log = structlog.get_logger(__name__)

CONTEXT = "swarmtask"
ADMIN_TOKEN, OPERATOR_TOKEN = "admin.token", "operator.token"
_INTERNET = (socket.AF_INET, socket.AF_INET6)


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
        token, operator_token = _token(data_dir / ADMIN_TOKEN), _token(data_dir / OPERATOR_TOKEN)
        for path in (data_dir / ADMIN_TOKEN, data_dir / OPERATOR_TOKEN, *folder.glob("*.key")):
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
    """Addresses of this machine, when the server listens on all of them: of its interfaces, and those that its name stands for.

    The name alone would not do: on Debian and Ubuntu it stands for 127.0.1.1. Link-local addresses are left out: nobody writes them
    in a URL, and every container that starts brings one.
    """
    if not listens_everywhere(host):
        return []
    texts = interface_addresses()
    try:
        texts += [str(entry[4][0]) for entry in socket.getaddrinfo(socket.gethostname(), None, type=socket.SOCK_STREAM)]
    except OSError as error:
        log.debug("the machine's name stands for no address", error=str(error))
    found = {ipaddress.ip_address(text.partition("%")[0]) for text in texts}
    return sorted(str(address) for address in found if not address.is_link_local)


def listens_everywhere(host: str) -> bool:
    """On all addresses of the machine, whichever it has at a time."""
    return host in ("0.0.0.0", "::", "")


def interface_addresses() -> list[str]:
    """What the machine's interfaces have now, loopback and link-local addresses too. Cheap: asks nobody but the kernel."""
    import psutil  # noqa: PLC0415 - a server that listens on loopback alone does without

    return [address.address for listed in psutil.net_if_addrs().values() for address in listed if address.family in _INTERNET]


def _token(path: Path) -> str:
    """A token of the server's own; made on first start, kept in a file of mode 0600."""
    if path.exists():
        token = path.read_text().strip()
        if len(token) < 32:
            raise ValueError(f"{path} holds no token")
        return token
    return _new_token(path)


def _new_token(path: Path) -> str:
    token = secrets.token_urlsafe(32)
    write_private(path, token.encode() + b"\n")
    return token


def renew_tokens(data_dir: Path) -> None:
    """Make the tokens of the administrator and of the operator anew. The next start knows only these, and writes the kubeconfigs.

    Raises:
        ConfigurationError: no server has ever started there, or one runs now. OSError.
        InsufficientStorage, InternalError: a restore that was cut off there cannot be finished.
    """
    paths = [data_dir / ADMIN_TOKEN, data_dir / OPERATOR_TOKEN]
    if not any(path.exists() for path in (*paths, data_dir / PENDING)):
        raise ConfigurationError(f"{data_dir} holds no tokens: name the data directory of a control plane with --data-dir")
    with locked(data_dir):
        finish(data_dir)  # the next start would put the restored tokens over the new ones
        for path in paths:
            _new_token(path)


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
