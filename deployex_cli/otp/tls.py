"""Distribution over TLS, as the one who connects: files -> context, errors -> what to do.

Both sides show a certificate of the same authority. The names in them are not compared: the peers
send none (SSL Application, "Using TLS for Erlang Distribution"). Imported only for such nodes.
"""

from __future__ import annotations

import os
import ssl
from typing import TYPE_CHECKING

from deployex_cli.errors import TlsRefused

if TYPE_CHECKING:
    from deployex_cli.otp.identity import TlsFiles

_READ_BY_OTHERS = 0o007
# X509_verify_cert_error_string(3)
_NOT_YET_VALID, _EXPIRED = 9, 10
_FOREIGN = (18, 19, 20, 21)

# the peer's alert (RFC 8446, 6.2) -> what it means for us
_ALERTS = {
    "CERTIFICATE_EXPIRED": "our certificate (tls_cert) has expired: make a new one",
    "UNKNOWN_CA": (
        "the node does not trust the authority of our certificate (tls_cert): let both be of the"
        " same one"
    ),
    "CERTIFICATE_REQUIRED": "the node asks for a certificate, and we have shown none",
    "CERTIFICATE_REVOKED": "our certificate (tls_cert) is revoked: make a new one",
    "BAD_CERTIFICATE": "the node cannot use our certificate (tls_cert)",
    "UNSUPPORTED_CERTIFICATE": "the node cannot use our certificate (tls_cert) for a client",
    "CERTIFICATE_UNKNOWN": "the node refuses our certificate (tls_cert): its log says why",
    "WRONG_VERSION_NUMBER": "what answers there does not speak TLS",
    "PROTOCOL_VERSION": "the node speaks no TLS that we do: 1.2 or 1.3 is needed",
}


def client_context(files: TlsFiles) -> ssl.SSLContext:
    """What connects with our certificate, and trusts the authority. Raises TlsRefused."""
    paths = []
    for name, path in zip(("tls_ca", "tls_cert", "tls_key"), files, strict=True):
        if path is None:
            raise TlsRefused(
                f"the node speaks TLS and {name} is not set: set DEPLOYEX_OTP_TLS_CERT_PATH to a"
                " folder with ca.crt, deployex.crt and deployex.key, or the app's tls_ca, tls_cert"
                " and tls_key"
            )
        _check(name, path)
        paths.append(path)
    authority, certificate, key = paths
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_verify_locations(authority)
    except ssl.SSLError:
        raise TlsRefused(f"tls_ca {authority} holds no certificate in PEM format") from None
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise TlsRefused(
                f"tls_key {key} is not the key of the certificate {certificate}"
            ) from None
        raise TlsRefused(
            f"tls_cert {certificate} or tls_key {key} holds none in PEM format, or the key has a"
            " password"
        ) from None
    return context


def in_words(error: BaseException) -> str:
    """What went wrong, and what to do."""
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code == _EXPIRED:
            return "the node's certificate has expired: make a new one and restart the app"
        if error.verify_code == _NOT_YET_VALID:
            return "the node's certificate is not valid yet: is one of the clocks wrong?"
        if error.verify_code in _FOREIGN:
            return "the node's certificate is not from the authority that tls_ca names"
        return f"the node's certificate does not hold: {error.verify_message}"
    reason = (getattr(error, "reason", None) or "").upper()
    for alert, words in _ALERTS.items():
        if reason.endswith(alert):
            return words
    if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError | ConnectionError):
        return "the node closed the connection when TLS should begin: its log says why"
    return f"TLS failed: {reason.lower().replace('_', ' ') or type(error).__name__}"


def _check(name: str, path: str) -> None:
    try:
        found = os.stat(path)
        with open(path, "rb"):
            pass
    except OSError as error:
        raise TlsRefused(f"{name} {path} cannot be read: {error.strerror}") from None
    if name == "tls_key" and found.st_mode & _READ_BY_OTHERS:
        raise TlsRefused(f"tls_key {path} can be read by everybody: chmod 600")


def _no_password() -> str:
    return ""  # else OpenSSL would ask the terminal
