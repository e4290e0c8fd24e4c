"""Sign and verify releases by Ed25519, in the envelope of DSSE.

The signature is over the bytes as they are sent, with their type (DSSE's pre-authentication encoding, see
https://github.com/secure-systems-lab/dsse/blob/master/protocol.md), so nothing is parsed before it is verified.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from typing import Any

from airflow_ml_provider import codec
from airflow_ml_provider.exceptions import IntegrityError, SpecError
from airflow_ml_provider.stages.edge.logic import Release

TYPE = "application/vnd.airflow-ml.release+json"


def public_key(private_pem: str) -> str:
    """Return the public key (PEM) that devices need.

    Raises:
        SpecError: it is no private Ed25519 key.
    """
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    made = _private(private_pem).public_key()
    return str(made.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode())


def sign(release: Release, private_pem: str) -> bytes:
    """Return the signed envelope of a release.

    Raises:
        SpecError: it is no private Ed25519 key.
    """
    body = codec.canonical(release).encode()
    signature = base64.b64encode(_private(private_pem).sign(_encoded(body))).decode()
    signatures = [{"keyid": key_id(public_key(private_pem)), "sig": signature}]
    envelope = {"payloadType": TYPE, "payload": base64.b64encode(body).decode(), "signatures": signatures}
    return json.dumps(envelope, indent=1).encode() + b"\n"


def verify(envelope: bytes, public_pems: Sequence[str]) -> Release:
    """Return the release of an envelope that one of the keys has signed.

    Parameters:
        envelope: as it was fetched.
        public_pems: the keys that are trusted, PEM; two while keys are changed.

    Raises:
        IntegrityError: none of them has signed this, or it is no envelope.
        SpecError: a key is none.
    """
    from cryptography.exceptions import InvalidSignature

    try:
        found = json.loads(envelope)
        body = base64.b64decode(found["payload"], validate=True)
        signatures = [base64.b64decode(one["sig"], validate=True) for one in found["signatures"]]
        is_ours = found["payloadType"] == TYPE
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"this is no signed release: {error}") from error
    for key in map(_public, public_pems):
        for signature in signatures if is_ours else ():
            try:
                key.verify(signature, _encoded(body))
            except InvalidSignature:
                continue
            return codec.decode(Release, json.loads(body), "release")
    raise IntegrityError("the release is signed by none of the keys that are trusted, or was changed")


def key_id(public_pem: str) -> str:
    """Return a short name of a public key."""
    return hashlib.sha256("".join(public_pem.split()).encode()).hexdigest()[:16]


def _encoded(body: bytes) -> bytes:
    return b"DSSEv1 %d %s %d %s" % (len(TYPE), TYPE.encode(), len(body), body)


def _private(pem: str) -> Any:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(pem.encode(), None)
    except (ValueError, TypeError) as error:
        # What was given is not repeated: it may be a key all the same.
        raise SpecError("the signing key must be a private Ed25519 key in PEM, without a password") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise SpecError(f"the signing key must be a private Ed25519 key in PEM, got {type(key).__name__}")
    return key


def _public(pem: str) -> Any:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(pem.encode())
    except ValueError as error:
        raise SpecError(f"a trusted key must be a public Ed25519 key in PEM: {error}") from error
    if not isinstance(key, Ed25519PublicKey):
        raise SpecError(f"a trusted key must be a public Ed25519 key in PEM, got {type(key).__name__}")
    return key
