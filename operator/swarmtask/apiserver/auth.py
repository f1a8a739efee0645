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
import os
import secrets
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from swarmtask.apiserver.access.users import ADMINISTRATOR, OPERATOR, User
from swarmtask.errors import ConfigurationError

CA_DAYS = 3650
SERVER_DAYS = 365
RENEW_BEFORE = timedelta(days=60)
CONTEXT = "swarmtask"
SIGNING_KEY = "accounts.key"
_BACKDATED = timedelta(hours=1)
"""Clocks of laptops differ."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """What the server serves with, and what clients need.

    Attributes:
        ca_pem: the authority's certificate, for the kubeconfig.
        token: of the administrator, for the kubeconfig.
        operator_token: of the operator, for its own kubeconfig.
    """

    ca_pem: bytes
    certificate: Path
    key: Path
    token: str
    operator_token: str


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


def prepare(data_dir: Path, host: str, now: datetime) -> tuple[Credentials, Authenticator]:
    """Make what is missing, renew what has aged, keep the rest.

    Raises:
        ConfigurationError: a file cannot be read or written, or is not what it should be.
    """
    folder = data_dir / "pki"
    prepare_data_dir(data_dir)
    prepare_data_dir(folder)
    try:
        ca_key, ca = _authority(folder, now)
        certificate, key = _server_certificate(folder, ca_key, ca, host, now)
        token, operator_token = _token(data_dir / "admin.token"), _token(data_dir / "operator.token")
        for path in (data_dir / "admin.token", data_dir / "operator.token", *folder.glob("*.key")):
            path.chmod(0o600)  # a copy or a backup may have opened it
    except (OSError, ValueError, TypeError) as error:
        raise ConfigurationError(
            f"the certificates or the token in {data_dir} cannot be used: {error}; restore the files, or remove them "
            f"({folder} and admin.token) to have new ones made"
        ) from error
    credentials = Credentials(ca.public_bytes(serialization.Encoding.PEM), certificate, key, token, operator_token)
    return credentials, Authenticator([digest(token)], {digest(operator_token): OPERATOR})


def server_certificate(data_dir: Path, host: str, now: datetime) -> tuple[Path, Path]:
    """The paths of the server's certificate and key; made anew where they are missing or have aged.

    Raises:
        ConfigurationError: a file cannot be read or written, or is not what it should be.
    """
    folder = data_dir / "pki"
    try:
        return _server_certificate(folder, *_authority(folder, now), host, now)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigurationError(f"the certificates in {folder} cannot be used: {error}; restore the files") from error


def signing_key_pem(data_dir: Path) -> bytes:
    """The key that signs ServiceAccount tokens; made on first start, kept in a file of mode 0600. Raises ConfigurationError."""
    path = data_dir / "pki" / SIGNING_KEY
    try:
        if not path.exists():
            write_private(path, _pem(ec.generate_private_key(ec.SECP256R1())))
        path.chmod(0o600)
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"the signing key {path} cannot be used: {error}") from error


def _authority(folder: Path, now: datetime) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    certificate_path, key_path = folder / "ca.crt", folder / "ca.key"
    if certificate_path.exists() and key_path.exists():
        key = serialization.load_pem_private_key(key_path.read_bytes(), None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ValueError(f"{key_path} is no ECDSA key")
        return key, x509.load_pem_x509_certificate(certificate_path.read_bytes())
    key = ec.generate_private_key(ec.SECP256R1())
    # The random part keeps authorities of several servers apart in one trust store.
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"swarmtask-ca-{secrets.token_hex(4)}")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + timedelta(days=CA_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    write_private(key_path, _pem(key))
    write_private(certificate_path, certificate.public_bytes(serialization.Encoding.PEM))
    return key, certificate


def _server_certificate(
    folder: Path, ca_key: ec.EllipticCurvePrivateKey, ca: x509.Certificate, host: str, now: datetime
) -> tuple[Path, Path]:
    certificate_path, key_path = folder / "server.crt", folder / "server.key"
    names = subject_names(host)
    if certificate_path.exists() and key_path.exists() and _still_good(certificate_path, ca, names, now):
        return certificate_path, key_path
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "swarmtask-apiserver")]))
        .issuer_name(ca.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(min(now + timedelta(days=SERVER_DAYS), ca.not_valid_after_utc))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    write_private(key_path, _pem(key))
    write_private(certificate_path, certificate.public_bytes(serialization.Encoding.PEM))
    return certificate_path, key_path


def _still_good(path: Path, ca: x509.Certificate, names: list[x509.GeneralName], now: datetime) -> bool:
    certificate = x509.load_pem_x509_certificate(path.read_bytes())
    if certificate.issuer != ca.subject or certificate.not_valid_after_utc - now < RENEW_BEFORE:
        return False
    present = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return set(present) == set(names)


def subject_names(host: str) -> list[x509.GeneralName]:
    """What clients may call the server: the listen address, the loopback addresses and the machine's own names."""
    texts = dict.fromkeys([host, "localhost", "127.0.0.1", "::1", socket.gethostname(), "swarmtask", *_own_addresses(host)])
    names: list[x509.GeneralName] = []
    for text in texts:
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(text)))
        except ValueError:
            if text and text.isascii():
                names.append(x509.DNSName(text))
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


def _key_usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True, content_commitment=False, key_encipherment=False, data_encipherment=False, key_agreement=False,
        key_cert_sign=signs, crl_sign=signs, encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


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
