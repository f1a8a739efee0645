"""Making the certificate authority, the server's certificate, and the key of ServiceAccount tokens; renewing what has aged.

Called through `issued`, which asks only when something is missing or has changed or aged, and as a program of its own: what is
needed once a year takes 10 MB, which a server that stays for weeks need not hold. Touches nothing but the folder that it is given.
"""

from __future__ import annotations

import ipaddress
import secrets
import sys
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from swarmtask.apiserver.issued import SIGNING_KEY, note
from swarmtask.apiserver.private_files import write_private

CA_DAYS = 3650
SERVER_DAYS = 365
RENEW_BEFORE = timedelta(days=60)
KEPT_NAMES = 32
"""Names that a new certificate takes over from the one before beyond those that it is made for."""
_BACKDATED = timedelta(hours=1)
"""Clocks of laptops differ."""


def issue(folder: Path, names: Sequence[str], now: datetime) -> None:
    """Make what is missing, renew what has aged, keep the rest, and note down what there is.

    Args:
        names: DNS names and IP addresses that the server's certificate must stand for. It goes on standing for those of the one
            before, the latest ones: an address that a network takes away for a moment must not be refused when it is back.

    Raises:
        OSError, ValueError, TypeError: a file cannot be read or written, or is not what it should be.
    """
    ca_key, ca = _authority(folder, now)
    certificate = _server_certificate(folder, ca_key, ca, [_general_name(name) for name in names], now)
    _signing_key(folder / SIGNING_KEY)
    note(folder, [str(name.value) for name in _names_of(certificate)], certificate.not_valid_after_utc - RENEW_BEFORE)


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _signing_key(path: Path) -> None:
    if not path.exists():
        write_private(path, pem_of(ec.generate_private_key(ec.SECP256R1())))
        return
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} holds no signing key ({error}): restore it, or remove it to have a new one made") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ValueError(f"{path} is no ECDSA key of the curve P-256: restore it, or remove it to have a new one made")


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
    write_private(key_path, pem_of(key))
    write_private(certificate_path, certificate.public_bytes(serialization.Encoding.PEM))
    return key, certificate


def _server_certificate(
    folder: Path, ca_key: ec.EllipticCurvePrivateKey, ca: x509.Certificate, names: list[x509.GeneralName], now: datetime
) -> x509.Certificate:
    certificate_path, key_path = folder / "server.crt", folder / "server.key"
    if certificate_path.exists() and key_path.exists():
        present = x509.load_pem_x509_certificate(certificate_path.read_bytes())
        if _still_good(present, ca, names, now):
            return present
        if present.issuer == ca.subject:
            names = names + [name for name in _names_of(present) if name not in names][:KEPT_NAMES]
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
    write_private(key_path, pem_of(key))
    write_private(certificate_path, certificate.public_bytes(serialization.Encoding.PEM))
    return certificate


def _still_good(certificate: x509.Certificate, ca: x509.Certificate, names: list[x509.GeneralName], now: datetime) -> bool:
    if certificate.issuer != ca.subject or certificate.not_valid_after_utc - now < RENEW_BEFORE:
        return False
    return set(names) <= set(_names_of(certificate))


def _names_of(certificate: x509.Certificate) -> list[x509.GeneralName]:
    """Those that it was made for, then those that it took over, the latest first."""
    try:
        return list(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except x509.ExtensionNotFound:
        return []


def _key_usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True, content_commitment=False, key_encipherment=False, data_encipherment=False, key_agreement=False,
        key_cert_sign=signs, crl_sign=signs, encipher_only=False, decipher_only=False,
    )  # fmt: skip


def pem_of(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A private key as it lies in a file."""
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def main(argv: Sequence[str]) -> int:
    """`FOLDER MOMENT NAME...`, the moment in ISO 8601. Exit code 1: it could not be done; the reason is on stderr."""
    folder, now, *names = argv
    try:
        issue(Path(folder), names, datetime.fromisoformat(now))
    except (OSError, ValueError, TypeError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
