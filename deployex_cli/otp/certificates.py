"""A certificate authority for distribution over TLS, and what it signs. Bytes come out, no file.

EC P-256 with SHA-256, which every OTP release takes with TLS 1.2 and 1.3; profile: RFC 5280.
The only module that imports `cryptography`: nothing but `tls init` pays for it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_PEM = serialization.Encoding.PEM


class Period(NamedTuple):
    """When a certificate is valid: seconds since the epoch."""

    begin: float
    end: float


class Pair(NamedTuple):
    """A certificate and its private key, both PEM."""

    certificate: bytes
    key: bytes


class Authority(NamedTuple):
    """Who signs."""

    name: x509.Name
    key: ec.EllipticCurvePrivateKey
    pair: Pair


def new_authority(period: Period) -> Authority:
    """A certificate authority that signs certificates of hosts, and no other authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    # unlike every other one's: OpenSSL looks an issuer up by its name
    name = _name(f"deployex distribution CA {os.urandom(8).hex()}")
    certificate = _signed(name, key, name, key, period, ())
    return Authority(name, key, Pair(certificate, _pem(key)))


def issue(authority: Authority, hosts: Sequence[str], period: Period) -> Pair:
    """A certificate for both sides of a connection (extended key usage, RFC 5280, 4.2.1.12).

    It names the hosts, for a node that connects to another compares what stands behind the @ (OTP
    25 whatever its options say).
    """
    key = ec.generate_private_key(ec.SECP256R1())
    both_sides = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    extensions = (x509.ExtendedKeyUsage(both_sides), _alternative_names(hosts))
    certificate = _signed(_name("deployex"), key, authority.name, authority.key, period, extensions)
    return Pair(certificate, _pem(key))


def _signed(
    subject: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Name,
    issuer_key: ec.EllipticCurvePrivateKey,
    period: Period,
    extensions: Sequence[x509.ExtensionType],
) -> bytes:
    """A certificate as PEM; without `extensions` of its own it is an authority's."""
    is_ca = not extensions
    usage = x509.KeyUsage(
        digital_signature=not is_ca,
        key_cert_sign=is_ca,
        crl_sign=is_ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    own_id = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    issuer_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key())
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.fromtimestamp(period.begin, UTC))
        .not_valid_after(datetime.fromtimestamp(period.end, UTC))
        .add_extension(x509.BasicConstraints(is_ca, 0 if is_ca else None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(own_id, critical=False)
        .add_extension(issuer_id, critical=False)
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(issuer_key, hashes.SHA256()).public_bytes(_PEM)


def _alternative_names(hosts: Sequence[str]) -> x509.SubjectAlternativeName:
    """The hosts; an address also as a name, for so it stands in a node's name and is compared."""
    names: list[x509.GeneralName] = [x509.DNSName(host) for host in hosts]
    for host in hosts:
        try:
            names.append(x509.IPAddress(ip_address(host)))
        except ValueError:
            continue
    return x509.SubjectAlternativeName(names)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
