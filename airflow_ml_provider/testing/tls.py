"""Certificates for servers of tests. Needs `cryptography`, which Airflow brings."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from ipaddress import ip_address
from pathlib import Path


def self_signed(path: Path) -> tuple[Path, Path]:
    """Write a certificate for 127.0.0.1 that is its own authority, and its key; return both paths.

    Parameters:
        path: of the certificate (PEM); the key is `NAME.key` beside it. Both are good for an hour.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
    from cryptography.x509.oid import NameOID

    made, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(timezone.utc)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, path.stem)])
    here = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    body = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(made.public_key())
    body = body.serial_number(x509.random_serial_number()).add_extension(here, critical=False)
    body = body.not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(hours=1))
    body = body.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    path.write_bytes(body.sign(made, hashes.SHA256()).public_bytes(Encoding.PEM))
    key = path.with_suffix(".key")
    key.write_bytes(made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return path, key
