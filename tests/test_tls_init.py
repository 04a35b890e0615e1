"""`deployex tls init`: what it makes, that it overwrites nothing, and what real nodes say to it."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography import x509

from deployex_cli.commands.tls import FILES, init, own_names
from deployex_cli.errors import ConfigError, Locked, Refused, TlsRefused, UnsafeFolder
from deployex_cli.otp.certificates import Period, issue, new_authority
from deployex_cli.otp.identity import target_of
from deployex_cli.otp.node import connect
from tests.beam import Beam, beam
from tests.world import World

DAY = 86400


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of certificates."""
    path = tmp_path / "tls"
    init(str(path), 825, time.time())
    return path


def client_context(folder: Path, *, certificate: Path | None = None) -> ssl.SSLContext:
    """What a client of such a node needs; by default it shows the folder's certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(folder / "ca.crt")
    shown = folder if certificate is None else certificate
    context.load_cert_chain(shown / "deployex.crt", shown / "deployex.key")
    return context


def server_context(folder: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_verify_locations(folder / "ca.crt")
    context.load_cert_chain(folder / "deployex.crt", folder / "deployex.key")
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def shake_hands(client: ssl.SSLContext, server: ssl.SSLContext) -> str | None:
    """The protocol of a handshake in memory, each side having checked the other's certificate."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [
        client.wrap_bio(to_client, to_server),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    for _ in range(4):
        for side in sides:
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    assert all(side.getpeercert() for side in sides)
    return sides[0].version()


# --- the files ----------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])
def test_both_sides_take_the_certificate_by_the_strictest_rules(folder: Path, version: str) -> None:
    client, server = client_context(folder), server_context(folder)
    for context in (client, server):
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        context.minimum_version = context.maximum_version = ssl.TLSVersion[
            version.replace(".", "_")
        ]
    assert shake_hands(client, server) == version


def test_another_folders_ca_does_not_take_it(folder: Path, tmp_path: Path) -> None:
    init(str(tmp_path / "other"), 825, time.time())
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(client_context(folder), server_context(tmp_path / "other"))
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(client_context(folder, certificate=tmp_path / "other"), server_context(folder))


def test_the_folder_and_the_keys_are_for_their_user_alone(folder: Path) -> None:
    assert folder.stat().st_mode & 0o777 == 0o700
    modes = {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}
    assert sorted(modes) == sorted(FILES)
    assert {name for name, mode in modes.items() if mode == 0o600} == {"ca.key", "deployex.key"}


def test_it_is_valid_for_the_days_that_are_asked_for(tmp_path: Path) -> None:
    now = time.time()
    result = init(str(tmp_path / "tls"), 30, now)
    for name in ("ca.crt", "deployex.crt"):
        found = x509.load_pem_x509_certificate((tmp_path / "tls" / name).read_bytes())
        assert abs(found.not_valid_after_utc.timestamp() - (now + 30 * DAY)) < 2
        assert found.not_valid_before_utc.timestamp() < now
    assert result.data["valid_until"] in "\n".join(result.lines)


def test_the_command_says_what_goes_where(bare: World) -> None:
    folder = bare.root / "tls"
    out = bare.ok("tls", "init", str(folder))
    words = f"-proto_dist inet_tls -ssl_dist_optfile {folder}/inet_tls.conf"
    assert f'export ELIXIR_ERL_OPTIONS="{words}"' in out
    assert f"DEPLOYEX_OTP_TLS_CERT_PATH={folder}" in out
    for key, name in (("ca", "ca.crt"), ("cert", "deployex.crt"), ("key", "deployex.key")):
        assert f'tls_{key} = "{folder}/{name}"' in out
    assert "must run as" in out


def test_with_json_the_same_is_there_for_scripts_and_a_second_run_is_refused(bare: World) -> None:
    bare.config.write_text("[broken")  # it needs no configuration
    first = bare.run("tls", "init", "tls", "--json")
    assert (first.code, first.err) == (0, "")
    document = first.json
    assert document["command"] == "tls init"
    assert [os.path.basename(path) for path in document["files"]] == list(FILES)
    assert all(os.path.isabs(path) and os.path.exists(path) for path in document["files"])
    assert document["environment"] == {"DEPLOYEX_OTP_TLS_CERT_PATH": str(bare.root / "tls")}
    before = {path: Path(path).read_bytes() for path in document["files"]}
    second = bare.run("tls", "init", "tls", "--json")
    assert (second.code, second.json["failures"][0]["code"]) == (3, "refused")
    assert {path: Path(path).read_bytes() for path in document["files"]} == before


# --- what it refuses ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_it_names_what_is_there_and_makes_nothing_beside_it(tmp_path: Path, name: str) -> None:
    (tmp_path / name).symlink_to("/nowhere")
    with pytest.raises(Refused, match=name.replace(".", r"\.")):
        init(str(tmp_path), 825, time.time())
    assert os.listdir(tmp_path) == [name]


def test_other_files_in_the_folder_stay_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "deployex.toml").write_text("mine")
    mode = tmp_path.stat().st_mode
    init(str(tmp_path), 825, time.time())
    assert sorted(os.listdir(tmp_path)) == sorted([*FILES, "deployex.toml"])
    assert (tmp_path / "deployex.toml").read_text() == "mine"
    assert tmp_path.stat().st_mode == mode


@pytest.mark.parametrize("name", ["with space", 'quo"te', "ümlaut", "dollar$", "new\nline", "a;b"])
def test_a_path_that_a_shell_or_erlang_would_read_otherwise_is_refused(
    tmp_path: Path, name: str
) -> None:
    with pytest.raises(ConfigError):
        init(str(tmp_path / name), 825, time.time())
    assert os.listdir(tmp_path) == []


def test_a_folder_that_others_may_write_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(UnsafeFolder):
        init(str(tmp_path), 825, time.time())
    assert os.listdir(tmp_path) == []


def test_of_two_at_once_one_makes_the_files_and_the_other_says_so(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(Locked):
        init(str(tmp_path), 825, time.time())
    os.close(descriptor)
    init(str(tmp_path), 825, time.time())


# --- kills --------------------------------------------------------------------------------------

CALLS = ("mkdir", "open", "write", "fchmod", "fsync", "link", "rename", "unlink", "rmdir", "chmod")


def killed_before(call: int, path: Path) -> bool:
    """Runs init in a process of its own that kills itself before its nth call; whether it did."""
    pid = os.fork()
    if pid == 0:
        left = call

        def counted(real: Callable[..., object]) -> Callable[..., object]:
            def wrapper(*args: object, **kwargs: object) -> object:
                nonlocal left
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left -= 1
                return real(*args, **kwargs)

            return wrapper

        for name in CALLS:
            setattr(os, name, counted(getattr(os, name)))
        init(str(path), 825, time.time())
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


def test_a_kill_at_any_call_leaves_no_half_file_and_the_next_run_ends_what_it_began(
    tmp_path: Path,
) -> None:
    call = 0
    partial = 0
    while True:
        path = tmp_path / str(call)
        killed = killed_before(call, path)
        there = sorted(set(os.listdir(path)) & set(FILES)) if path.exists() else []
        for name in there:
            text = (path / name).read_text()
            assert text.endswith(
                ("}].\n", "-----END PRIVATE KEY-----\n", "-----END CERTIFICATE-----\n")
            )
        partial += 0 < len(there) < len(FILES)
        try:
            init(str(path), 825, time.time())
        except Refused:
            assert len(there) == len(FILES)
        assert sorted(os.listdir(path)) == sorted(FILES)
        assert shake_hands(client_context(path), server_context(path)) == "TLSv1.3"
        if not killed:
            break
        call += 1
    assert call > 40
    assert partial > 0


def test_what_came_to_be_after_a_kill_is_not_taken_for_the_killed_runs(tmp_path: Path) -> None:
    call = 0
    while True:  # until a kill leaves some of the files
        path = tmp_path / str(call)
        assert killed_before(call, path)
        if path.exists() and 0 < len(set(os.listdir(path)) & set(FILES)) < len(FILES):
            break
        call += 1
    (path / "inet_tls.conf").write_text("mine")
    with pytest.raises(Refused, match=r"holds inet_tls\.conf already"):
        init(str(path), 825, time.time())
    assert os.listdir(path) == ["inet_tls.conf"]
    assert (path / "inet_tls.conf").read_text() == "mine"


# --- real nodes ---------------------------------------------------------------------------------

ERL = ("erl", "-noshell", "-noinput", "-kernel", "inet_dist_use_interface", "{127,0,0,1}")
TLS = ("-proto_dist", "inet_tls", "-ssl_dist_optfile")


class Nodes:
    """Starts nodes on loopback, with an epmd of the tests' own, and ends them."""

    def __init__(self, epmd_port: int, scratch: Path) -> None:
        self.epmd_port, self.scratch = epmd_port, scratch
        self.env = {**os.environ, "ERL_EPMD_ADDRESS": "127.0.0.1", "ERL_EPMD_PORT": str(epmd_port)}
        self._started: list[subprocess.Popen[str]] = []
        self._count = 0

    def start(self, *words: str | Path, host: str = "127.0.0.1") -> str:
        """A node that answers; its name."""
        name = self._name(host)
        say_up = 'io:format("up~n")'
        process = subprocess.Popen(
            [*ERL, "-name", name, "-setcookie", "monster", *words, "-eval", say_up],
            env=self.env,
            cwd=self.scratch,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._started.append(process)
        assert process.stdout
        assert process.stdout.readline() == "up\n"
        return name

    def ping(self, target: str, *words: str | Path) -> str:
        """What net_adm:ping/1 says on another node that ends with it: pong or pang."""
        ping = f"io:format(\"~s~n\", [net_adm:ping('{target}')]), halt()"
        done = subprocess.run(
            [*ERL, "-name", self._name(), "-setcookie", "monster", *words, "-eval", ping],
            env=self.env,
            cwd=self.scratch,
            capture_output=True,
            text=True,
            timeout=60,
        )
        (answer,) = {"pong", "pang"} & set(done.stdout.split())  # among what it logs
        return answer

    def port(self, name: str) -> int:
        """The distribution port that epmd knows."""
        with socket.create_connection(("127.0.0.1", self.epmd_port)) as epmd:
            short = name.partition("@")[0].encode()
            epmd.sendall(len(short + b"z").to_bytes(2, "big") + b"z" + short)
            answer = epmd.recv(4)
        assert answer[:2] == b"w\0"
        return int.from_bytes(answer[2:4], "big")

    def options(self, server: str, client: str) -> Path:
        """An inet_tls.conf of these options."""
        self._count += 1
        path = self.scratch / f"{self._count}.conf"
        path.write_text(f"[{{server, [{server}]}}, {{client, [{client}]}}].")
        return path

    def end(self) -> None:
        for process in self._started:
            process.kill()
            process.communicate()

    def _name(self, host: str = "127.0.0.1") -> str:
        self._count += 1
        return f"tls{os.getpid()}_{self._count}@{host}"


@pytest.fixture
def nodes(epmd_port: int, tmp_path: Path) -> Iterator[Nodes]:
    made = Nodes(epmd_port, tmp_path)
    yield made
    made.end()


def shows(folder: Path) -> str:
    """Options of a side that shows the folder's certificate and takes anybody's."""
    return (
        f'{{certfile, "{folder}/deployex.crt"}}, {{keyfile, "{folder}/deployex.key"}},'
        " {verify, verify_none}"
    )


@pytest.mark.beam
def test_two_nodes_with_the_generated_options_see_each_other_over_tls(
    nodes: Nodes, folder: Path
) -> None:
    name = nodes.start(*TLS, folder / "inet_tls.conf")
    assert nodes.ping(name, *TLS, folder / "inet_tls.conf") == "pong"
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        context = client_context(folder)
        context.minimum_version = context.maximum_version = version
        with (
            socket.create_connection(("127.0.0.1", nodes.port(name))) as plain,
            context.wrap_socket(plain) as wrapped,
        ):
            assert wrapped.version() == version.name.replace("_", ".")


@pytest.mark.beam
def test_a_node_shuts_out_who_shows_no_certificate_or_a_foreign_one_or_speaks_no_tls(
    nodes: Nodes, folder: Path, tmp_path: Path
) -> None:
    init(str(tmp_path / "other"), 825, time.time())
    name = nodes.start(*TLS, folder / "inet_tls.conf")
    assert nodes.ping(name) == "pang"
    assert nodes.ping(name, *TLS, tmp_path / "other/inet_tls.conf") == "pang"
    # these take any server, so it is the node that refuses them
    nothing = nodes.options(shows(folder), "{verify, verify_none}")
    foreign = nodes.options(shows(folder), shows(tmp_path / "other"))
    ours = nodes.options(shows(folder), shows(folder))
    assert nodes.ping(name, *TLS, nothing) == "pang"
    assert nodes.ping(name, *TLS, foreign) == "pang"
    assert nodes.ping(name, *TLS, ours) == "pong"


@pytest.mark.beam
def test_a_host_that_is_named_is_taken_and_another_is_not(nodes: Nodes, tmp_path: Path) -> None:
    """OTP 25 compares the host's name though the options say that it need not."""
    (tmp_path / "inetrc").write_text('{host, {127,0,0,1}, ["db.example"]}. {lookup, [file]}.')
    resolver = ("-kernel", "inetrc", f'"{tmp_path}/inetrc"')
    init(str(tmp_path / "plain"), 825, time.time())
    init(str(tmp_path / "named"), 825, time.time(), ["db.example"])
    answers = []
    for folder in ("named", "plain"):
        words = (*TLS, tmp_path / folder / "inet_tls.conf", *resolver)
        answers.append(nodes.ping(nodes.start(*words, host="db.example"), *words))
    release = subprocess.check_output(
        [*ERL, "-eval", "io:format(erlang:system_info(otp_release)), halt()."], text=True
    )
    assert answers[0] == "pong"
    assert answers[1] == "pang" or int(release) > 25


@pytest.mark.beam
def test_a_node_does_not_speak_with_a_server_whose_certificate_is_foreign(
    nodes: Nodes, folder: Path, tmp_path: Path
) -> None:
    init(str(tmp_path / "other"), 825, time.time())
    # these servers take any client, so it is the client that refuses them
    foreign = nodes.start(*TLS, nodes.options(shows(tmp_path / "other"), shows(folder)))
    ours = nodes.start(*TLS, nodes.options(shows(folder), shows(folder)))
    assert nodes.ping(foreign, *TLS, folder / "inet_tls.conf") == "pang"
    assert nodes.ping(ours, *TLS, folder / "inet_tls.conf") == "pong"


# --- our own client -----------------------------------------------------------------------------


@contextmanager
def node_with(folder: Path, epmd_port: int) -> Iterator[Beam]:
    """A node with the folder's generated options."""
    words = (*TLS, str(folder / "inet_tls.conf"), "-name", f"tls{os.getpid()}_c@127.0.0.1")
    with beam(folder.parent, *words, epmd_port=epmd_port) as node:
        yield node


def ask(node: Beam, **environ: str) -> object:
    """What the node calls itself, as our client hears it with this environment."""
    with connect(target_of(node.app, node.pid, environ)) as connection:
        return connection.call("erlang", "node", [])


def refused(node: Beam, folder: Path) -> str:
    """Why our client, with the files of this folder, gets no connection."""
    with pytest.raises(TlsRefused) as caught:
        ask(node, DEPLOYEX_OTP_TLS_CERT_PATH=str(folder))
    return caught.value.message


def mixed(folder: Path, ca: Path, pair: Path) -> Path:
    """A folder with the CA of one and the certificate of another."""
    folder.mkdir()
    shutil.copy(ca / "ca.crt", folder)
    for name in ("deployex.crt", "deployex.key"):
        shutil.copy(pair / name, folder)
    return folder


@pytest.mark.beam
def test_our_client_speaks_with_a_node_that_has_the_generated_options(
    folder: Path, epmd_port: int
) -> None:
    with node_with(folder, epmd_port) as node:
        assert ask(node, DEPLOYEX_OTP_TLS_CERT_PATH=str(folder)) == node.name


@pytest.mark.beam
def test_the_lines_for_deployex_toml_that_it_prints_are_those_that_work(
    bare: World, tmp_path: Path, epmd_port: int
) -> None:
    folder = tmp_path / "tls"
    out = bare.ok("tls", "init", str(folder))
    lines = "\n".join(line.strip() for line in out.splitlines() if line.startswith("  tls_"))
    words = (*TLS, str(folder / "inet_tls.conf"), "-name", f"tls{os.getpid()}_d@127.0.0.1")
    with beam(tmp_path, *words, epmd_port=epmd_port, lines=lines) as node:
        assert ask(node) == node.name


@pytest.mark.beam
def test_what_is_wrong_with_a_certificate_is_said_and_each_time_it_is_something_else(
    folder: Path, tmp_path: Path, epmd_port: int
) -> None:
    now = time.time()
    other, missing = tmp_path / "other", mixed(tmp_path / "missing", folder, folder)
    init(str(other), 825, now)
    (missing / "deployex.crt").unlink()
    with node_with(folder, epmd_port) as node:
        with pytest.raises(TlsRefused) as unset:
            ask(node)
        messages = [
            unset.value.message,
            refused(node, missing),
            refused(node, other),
            refused(node, mixed(tmp_path / "foreign", folder, other)),
        ]
        assert ask(node, DEPLOYEX_OTP_TLS_CERT_PATH=str(folder)) == node.name
    for message, word in zip(
        messages,
        (
            "DEPLOYEX_OTP_TLS_CERT_PATH",
            f"{missing}/deployex.crt cannot be read",
            "the node's certificate is not from the authority",
            "the node does not trust the authority of our certificate",
        ),
        strict=True,
    ):
        assert word in message


@pytest.mark.beam
def test_an_expired_certificate_is_said_to_be_expired_and_whose_it_is(
    tmp_path: Path, epmd_port: int
) -> None:
    now = time.time()
    authority = new_authority(Period(now - 9 * DAY, now + 9 * DAY))
    good, old = tmp_path / "good", tmp_path / "old"
    for folder, end in ((good, now + DAY), (old, now - DAY)):
        pair = issue(authority, own_names(), Period(now - 9 * DAY, end))
        init(str(folder), 1, now)  # its options; the certificates are ours
        (folder / "ca.crt").write_bytes(authority.pair.certificate)
        (folder / "deployex.crt").write_bytes(pair.certificate)
        (folder / "deployex.key").write_bytes(pair.key)
    with node_with(good, epmd_port) as node:
        assert ask(node, DEPLOYEX_OTP_TLS_CERT_PATH=str(good)) == node.name
        assert "our certificate (tls_cert) has expired" in refused(node, old)
    with node_with(old, epmd_port) as node:
        assert "the node's certificate has expired" in refused(node, good)
