"""Distribution over TLS with real nodes and certificates, good, expired, foreign and missing."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from deployex_cli.config import AppConfig
from deployex_cli.errors import (
    LostBefore,
    NodeError,
    NodeTimeout,
    NodeUnreachable,
    TlsRefused,
    WrongCookie,
)
from deployex_cli.otp.identity import Cookie, Target, TlsFiles, target_of
from deployex_cli.otp.node import connect
from deployex_cli.otp.terms import Atom
from tests.beam import Beam, Certificates, beam

pytestmark = pytest.mark.beam


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("tls") / "certificates")


@pytest.fixture(scope="module")
def erl(
    tmp_path_factory: pytest.TempPathFactory, epmd_port: int, certificates: Certificates
) -> Iterator[Beam]:
    folder, name = tmp_path_factory.mktemp("erl"), f"tls_{os.getpid()}"
    with beam(folder, "-sname", name, *certificates.flags(), epmd_port=epmd_port) as made:
        yield made


def target(erl: Beam, certificates: Certificates) -> Target:
    return target_of(erl.app, erl.pid, {"DEPLOYEX_OTP_TLS_CERT_PATH": str(certificates.folder)})


def certificates_of(certificates: Certificates, erl: Beam) -> AppConfig:
    """The node's app, with the three keys set."""
    folder = certificates.folder
    return erl.app._replace(
        tls_ca=f"{folder}/ca.crt",
        tls_cert=f"{folder}/deployex.crt",
        tls_key=f"{folder}/deployex.key",
    )


def refused(target: Target) -> str:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(TlsRefused) as caught:
        connect(target)
    assert len(os.listdir("/proc/self/fd")) == before
    assert "\n" not in caught.value.message
    return caught.value.message


def test_a_node_that_speaks_tls_is_called_with_the_folder_of_the_variable(
    erl: Beam, certificates: Certificates
) -> None:
    with connect(target(erl, certificates)) as node:
        assert node.call("erlang", "node", []) == erl.name
        assert node.evaluate("net_kernel:get_net_ticktime(), nodes()") == []
        big = node.call("binary", "copy", [b"x", 500_000])
        assert big == b"x" * 500_000
        with connect(target(erl, certificates)) as other:
            other.call("erlang", "disconnect_node", [Atom(node._own)])
        assert node._link is not None
        assert select.select([node._link._socket], [], [], 5.0)[0], "its end has come"
        with pytest.raises(LostBefore):
            node.call("erlang", "node", [])
        assert node.call("erlang", "node", []) == erl.name


def test_own_keys_count_over_the_folder(
    certificates: Certificates, erl: Beam, tmp_path: Path
) -> None:
    made = target_of(
        certificates_of(certificates, erl), erl.pid, {"DEPLOYEX_OTP_TLS_CERT_PATH": str(tmp_path)}
    )
    with connect(made) as node:
        assert node.name == erl.name


def test_a_wrong_cookie_is_told_over_tls_too(erl: Beam, certificates: Certificates) -> None:
    with pytest.raises(WrongCookie):
        connect(target(erl, certificates)._replace(cookie=Cookie(b"wrong")))


def test_without_certificates_it_says_which_keys_to_set(erl: Beam) -> None:
    message = refused(erl.target)
    assert "tls_ca is not set: set DEPLOYEX_OTP_TLS_CERT_PATH" in message


def test_each_way_in_which_our_files_are_wrong_is_told_with_its_path(
    erl: Beam, certificates: Certificates, tmp_path: Path
) -> None:
    good = target(erl, certificates)
    assert good.tls is not None
    assert None not in good.tls
    ca, cert, key = (str(path) for path in good.tls)
    (tmp_path / "text").write_text("no certificate")
    readable = tmp_path / "readable.key"
    readable.write_bytes(Path(key).read_bytes())
    readable.chmod(0o644)
    with_password = tmp_path / "password.key"
    with_password.write_text(
        "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n"
        f"DEK-Info: AES-128-CBC,{'0' * 32}\n\nAAAA\n-----END RSA PRIVATE KEY-----\n"
    )
    with_password.chmod(0o600)
    text, missing = str(tmp_path / "text"), str(tmp_path / "missing")
    (tmp_path / "text").chmod(0o600)
    other_key = str(certificates.folder / "node.key")
    for files, said in (
        (TlsFiles(missing, cert, key), f"tls_ca {missing} cannot be read: No such file"),
        (TlsFiles(ca, missing, key), f"tls_cert {missing} cannot be read"),
        (TlsFiles(ca, cert, missing), f"tls_key {missing} cannot be read"),
        (TlsFiles(text, cert, key), f"tls_ca {text} holds no certificate in PEM"),
        (TlsFiles(ca, text, key), f"tls_cert {text} or tls_key {key} holds none in PEM"),
        (TlsFiles(ca, cert, text), f"tls_key {text} holds none in PEM"),
        (TlsFiles(ca, cert, other_key), f"tls_key {other_key} is not the key of"),
        (TlsFiles(ca, cert, str(readable)), "can be read by everybody: chmod 600"),
        (TlsFiles(ca, cert, str(with_password)), "or the key has a password"),
    ):
        assert said in refused(good._replace(tls=files))


@pytest.mark.parametrize("version", ["tlsv1.2", "tlsv1.3"])
def test_expired_and_foreign_certificates_of_either_side_are_told_apart(
    tmp_path: Path, epmd_port: int, version: str
) -> None:
    certificates = Certificates(tmp_path / "certificates")
    flags = certificates.flags()
    config = tmp_path / "certificates/inet_tls.conf"
    config.write_text(
        config.read_text().replace("[{server, [", f"[{{server, [{{versions, ['{version}']}}, ")
    )
    name = f"tls_{version[-1]}_{os.getpid()}"

    def said() -> str:
        with beam(tmp_path, "-sname", name, *flags, epmd_port=epmd_port) as erl:
            try:
                with connect(target(erl, certificates)) as node:
                    return str(node.call("erlang", "node", []))
            except NodeError as error:
                assert type(error) is TlsRefused
                return error.message

    assert said().startswith(name)
    certificates.issue("deployex", days=-1)
    assert "our certificate (tls_cert) has expired" in said()
    certificates.issue("deployex", authority=trustme.CA())
    assert "the node does not trust the authority of our certificate" in said()
    certificates.issue("deployex")
    certificates.issue("node", days=-1)
    assert "the node's certificate has expired" in said()
    certificates.issue("node", authority=trustme.CA())
    assert "the node's certificate is not from the authority that tls_ca names" in said()


def test_a_node_that_does_not_speak_tls_is_told(
    tmp_path: Path, epmd_port: int, certificates: Certificates
) -> None:
    with beam(tmp_path, "-sname", f"plain_{os.getpid()}", epmd_port=epmd_port) as erl:
        plain = target(erl, certificates)
        assert plain.tls is None  # the certificates are there, and the node speaks none
        files = target_of(certificates_of(certificates, erl), 0, {}).tls
        with pytest.raises(NodeTimeout):  # it waits for the rest of what it takes for a name
            connect(plain._replace(tls=files), 1.0)


def test_a_node_that_speaks_tls_does_not_answer_a_plain_client(
    erl: Beam, certificates: Certificates
) -> None:
    plain = target(erl, certificates)._replace(tls=None)
    with pytest.raises(NodeUnreachable) as caught:
        connect(plain, 3.0)
    assert not isinstance(caught.value, WrongCookie)
