"""The client's side of distribution over TLS (SSL User's Guide, "Using TLS for Erlang
Distribution"): both sides show a certificate of the same authority."""

from __future__ import annotations

import ssl

from deployex_cli.errors import TlsRefused


def client_context(files: object) -> ssl.SSLContext:
    raise TlsRefused("not yet")


def in_words(error: BaseException) -> str:
    return str(error)
