"""The examples' packages are what the other tests take them for.

Upgrades here are plain calls of release_handler (upgrade.escript), with no line of Deployex but the
RELEASES file that OTP's own way back needs: what goes right or wrong is the package's doing.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from deployex_cli.layout import otp_files
from tests.world import eventually, free_port

pytestmark = pytest.mark.beam

ROOT = Path(__file__).parent.parent
UPGRADE = Path(__file__).parent / "upgrade.escript"


@pytest.fixture(scope="session")
def variants(packages: Path) -> Path:
    """The folder of the packages, with each variant in it."""
    with (packages.parent / "packages.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for example in ("counter", "erlang_counter"):
            subprocess.run([ROOT / "examples" / example / "build", packages, "all"], check=True)
    return packages


class Machine:
    """One release of an example that runs in a folder of its own."""

    def __init__(self, packages: Path, epmd_port: int) -> None:
        self.packages = packages
        self.folder = Path(tempfile.mkdtemp(prefix="dx-"))
        self.root = self.folder / "release"
        self.log = self.folder / "log"
        self.port = free_port()
        self.node = f"example_{self.folder.name[3:].lower()}"
        self.vm: subprocess.Popen[bytes] | None = None
        self.env = {
            **{key: value for key, value in os.environ.items() if not key.startswith("ERL_")},
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(epmd_port),
            "ERL_CRASH_DUMP": "/dev/null",
            "HOME": str(self.folder),
            "PORT": str(self.port),
            "RELEASE_NODE": self.node,
            "RELEASE_COOKIE": "monster",
            "COUNTER_GREETING": "good evening",
        }

    def start(self, app: str, version: str, **env: str) -> None:
        """Unpacks a package, starts it, and waits for its first answer."""
        self.app = app
        self.unpack(version, self.root)
        assert otp_files.write_releases(str(self.root), app)
        word = "foreground" if app == "erlang_counter" else "start"
        with self.log.open("wb") as log:
            self.vm = subprocess.Popen(
                [self.root / "bin" / app, word],
                env={**self.env, **env},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
            )
        eventually(self.answer)

    def unpack(self, version: str, folder: Path, *words: str) -> None:
        """Unpacks a package, and with --exclude=... not all of it."""
        variant, _, number = version.rpartition("/")
        package = self.packages / variant / f"{self.app}-{number}.tar.gz"
        folder.mkdir(parents=True)
        subprocess.run(["tar", "-xzf", package, "-C", folder, *words], check=True)

    def stage(self, version: str) -> None:
        """Puts a package's files beside those that run."""
        number = version.rpartition("/")[2]
        new = self.folder / version.replace("/", "-")
        self.unpack(version, new, "--exclude=./erts-*", "--exclude=erts-*")
        for library in (new / "lib").iterdir():
            if not (self.root / "lib" / library.name).exists():
                shutil.copytree(library, self.root / "lib" / library.name)
        release = self.root / "releases" / number
        shutil.copytree(new / "releases" / number, release)
        for root, version_there in ((self.root, self.boots()), (new, number)):
            shutil.copy(
                root / "releases" / version_there / f"{self.app}.rel",
                self.root / "releases" / f"{self.app}-{version_there}.rel",
            )

    def boots(self) -> str:
        return (self.root / "releases/start_erl.data").read_text().split()[1]

    def upgrade(self, *words: str) -> str:
        """What the upgrade, or `relup`, came to, as text."""
        done = subprocess.run(
            ["escript", UPGRADE, f"{self.node}@{host()}", "monster", self.app, *words],
            env=self.env,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.stdout, done.stderr
        return done.stdout.strip()

    def hot(self, version: str, *options: str) -> str:
        self.stage(version)
        return self.upgrade(version.rpartition("/")[2], *options)

    def get(self, path: str) -> str:
        url = f"http://127.0.0.1:{self.port}{path}"
        with urllib.request.urlopen(url, timeout=5) as answer:
            return str(answer.read().decode())

    def answer(self, path: str = "/") -> Any:
        return json.loads(self.get(path))

    def stop(self) -> None:
        assert self.vm
        self.vm.send_signal(signal.SIGTERM)
        assert self.vm.wait(20) == 0

    def end(self) -> None:
        if self.vm:
            self.vm.kill()
            self.vm.wait()
        shutil.rmtree(self.folder)


def host() -> str:
    return socket.gethostname().partition(".")[0]


@pytest.fixture
def machine(variants: Path, epmd_port: int) -> Iterator[Machine]:
    made = Machine(variants, epmd_port)
    yield made
    made.end()


# --- what is in the packages --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("0.1.1", []),
        ("0.1.2", [("counter-0.1.2", "project", "0.1.1")]),
        ("0.1.3", [("counter-0.1.3", "project", "0.1.2")]),
        (
            "0.1.4",
            [("counter-0.1.4", "project", "0.1.3"), ("phrase-1.1.0", "dependency", "1.0.0")],
        ),
    ],
)
def test_a_jellyfish_json_and_one_appup_stand_in_each_library_that_goes_hot(
    machine: Machine, version: str, expected: list[tuple[str, str, str]]
) -> None:
    machine.app = "counter"
    machine.unpack(version, machine.root)

    found = []
    for path in sorted(machine.root.glob("lib/*/ebin/jellyfish.json")):
        library = path.parent.parent.name
        name, _, to = library.partition("-")
        told = json.loads(path.read_text())
        assert (told["name"], told["to"]) == (name, to)
        assert [appup.name for appup in path.parent.glob("*.appup")] == [f"{name}.appup"]
        found.append((library, told["type"], told["from"]))
    assert found == expected
    assert (machine.root / f"releases/counter-{version}.rel").is_file()


def test_what_two_versions_share_is_the_same_to_the_byte(machine: Machine) -> None:
    machine.app = "counter"
    trees = []
    for version in ("0.1.1", "0.1.2", "raises/0.1.2"):
        machine.unpack(version, machine.folder / version)
        trees.append(machine.folder / version)

    def contents(tree: Path) -> dict[str, bytes]:
        inside = [*tree.glob("lib/*/ebin/*"), *tree.glob("releases/*/consolidated/*")]
        return {
            re.sub(r"releases/[^/]*", "releases/V", str(path.relative_to(tree))): path.read_bytes()
            for path in inside
            if not path.match("lib/counter-*/ebin/*")
        }

    first = contents(trees[0])
    assert len(first) > 300
    assert first == contents(trees[1]) == contents(trees[2])


# --- upgrades that work -------------------------------------------------------------------------


@pytest.mark.parametrize("app", ["counter", "erlang_counter"])
def test_a_chain_goes_up_and_down_in_one_vm_and_the_counter_goes_on(
    machine: Machine, app: str
) -> None:
    machine.start(app, "0.1.1")
    first = machine.answer("/increment")
    assert (first["counter"], first["state"]) == (1, 1)

    machine.stage("0.1.2")
    machine.stage("0.1.3")
    shapes = {"0.1.1": 1, "0.1.2": 2, "0.1.3": 3}
    for counter, version in enumerate(("0.1.2", "0.1.3", "0.1.2", "0.1.1", "0.1.2"), 2):
        assert machine.upgrade(version).startswith("{ok,")
        answer = machine.answer("/increment")
        assert (answer["version"], answer["counter"]) == (version, counter)
        assert answer["state"] == shapes[version]
        assert answer["os_pid"] == first["os_pid"]
        if app == "counter":  # upgrade.escript knows Elixir's providers alone
            assert answer["configured_by"] == version
            assert answer["only_runtime"] == answer["greeting"] == "good evening"
            assert answer["port"] == machine.port


def test_without_the_runtime_configuration_the_answer_says_so(machine: Machine) -> None:
    machine.start("counter", "0.1.1")

    assert machine.hot("0.1.2", "no_config").startswith("{ok,")
    answer = machine.answer()
    assert (answer["version"], answer["port"]) == ("0.1.2", 4999)
    assert answer["greeting"] == "hello from build time"
    assert answer["only_runtime"] is None


def test_a_library_goes_up_and_down_with_the_counter(machine: Machine) -> None:
    machine.start("counter", "0.1.3")
    assert machine.answer()["phrase"] == "0 counted"

    assert machine.hot("0.1.4").startswith("{ok,")
    assert machine.answer()["phrase"] == "0 counted so far"
    assert machine.upgrade("0.1.3").startswith("{ok,")
    assert machine.answer()["phrase"] == "0 counted"


def test_a_fun_in_the_configuration_is_called_after_the_upgrade(machine: Machine) -> None:
    machine.start("counter", "0.1.1")

    assert machine.hot("provider_fun/0.1.2").startswith("{ok,")
    assert machine.answer()["shouted"] == "HELLO"


def test_a_slow_code_change_takes_its_time(machine: Machine) -> None:
    machine.start("counter", "0.1.1")
    machine.stage("slow/0.1.2")

    words = ["escript", str(UPGRADE), f"{machine.node}@{host()}", "monster", "counter", "0.1.2"]
    upgrade = subprocess.Popen(words, env=machine.env, stdout=subprocess.DEVNULL)
    longest = 0.0
    while upgrade.poll() is None:  # the server is suspended meanwhile, and nobody is turned away
        begun = time.monotonic()
        machine.answer()
        longest = max(longest, time.monotonic() - begun)
    assert upgrade.returncode == 0
    assert 2.5 < longest < 5.0
    assert machine.answer()["version"] == "0.1.2"


def test_a_regular_expression_in_an_appup_leads_from_both_versions_that_it_matches(
    machine: Machine,
) -> None:
    machine.start("erlang_counter", "0.1.0")

    assert machine.hot("regex/0.1.2").startswith("{ok,")
    assert machine.answer()["state"] == 2


def test_an_appup_under_priv_has_to_be_copied_before_a_relup_can_be_made(machine: Machine) -> None:
    machine.start("erlang_counter", "0.1.1")
    machine.stage("priv_appup/0.1.2")
    assert "erlang_counter.appup" in machine.upgrade("relup", "0.1.2")

    library = machine.root / "lib/erlang_counter-0.1.2"
    shutil.copy(library / "priv/appup/erlang_counter.appup", library / "ebin")
    assert machine.upgrade("0.1.2").startswith("{ok,")
    assert machine.answer()["state"] == 2


# --- upgrades that cannot begin -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("package", "reason"),
    [
        ("bad_appup/0.1.2", "counter.appup"),
        ("no_relup/0.1.2", "phrase.appup"),
        ("other_runtime/0.1.2", "sasl.appup|No release upgrade script entry for sasl"),
    ],
)
def test_no_relup_can_be_made(machine: Machine, package: str, reason: str) -> None:
    machine.start("counter", "0.1.1")
    machine.stage(package)

    outcome = machine.upgrade("relup", "0.1.2")
    assert outcome.startswith("{error,")
    assert re.search(reason, outcome)


@pytest.mark.parametrize(
    ("package", "reason"),
    [
        ("provider_no_list/0.1.2", "no_list"),
        ("provider_raises/0.1.2", "this provider raises, on purpose"),
        ("new_provider/0.1.2", "undef"),  # its module comes with the version it configures
    ],
)
def test_a_provider_fails_before_anything_is_installed(
    machine: Machine, package: str, reason: str
) -> None:
    machine.start("counter", "0.1.1")
    before = machine.answer()

    outcome = machine.hot(package)
    assert outcome.startswith("{badrpc,")
    assert reason in outcome
    assert machine.answer() == before


def test_modules_without_attributes_are_refused_by_the_check(machine: Machine) -> None:
    machine.start("erlang_counter", "0.1.1")
    before = machine.answer()

    outcome = machine.hot("stripped/0.1.2")
    assert outcome.startswith("{error,")
    assert "missing_chunk" in outcome
    assert machine.answer() == before


# --- upgrades that fail -------------------------------------------------------------------------


@pytest.mark.parametrize("app", ["counter", "erlang_counter"])
def test_a_code_change_that_raises_ends_the_vm_with_exit_code_0(machine: Machine, app: str) -> None:
    machine.start(app, "0.1.1")

    # the answer may still get out before the VM ends
    assert machine.hot("raises/0.1.2").startswith(("{error,{code_change_failed,", "{badrpc,"))
    assert machine.vm
    assert machine.vm.wait(20) == 0
    assert machine.boots() == "0.1.1"


def test_a_refused_install_leaves_the_new_environment_on_the_old_code(machine: Machine) -> None:
    machine.start("counter", "0.1.1")

    assert machine.hot("refused/0.1.2").startswith("{error,")
    answer = machine.answer()
    assert (answer["state"], answer["version"], answer["port"]) == (1, "0.1.2", 4999)


def test_an_application_stops_on_trial_and_is_not_started_on_the_way_back(machine: Machine) -> None:
    machine.start("counter", "0.1.1")

    assert machine.hot("stops/0.1.2").startswith("{ok,")
    eventually(lambda: is_silent(machine))
    assert machine.upgrade("0.1.1").startswith("{ok,")
    assert is_silent(machine)


def test_an_application_stops_on_trial_and_starts_on_the_way_back(machine: Machine) -> None:
    machine.start("counter", "0.1.1")

    assert machine.hot("restarts_down/0.1.2").startswith("{ok,")
    eventually(lambda: is_silent(machine))
    assert machine.upgrade("0.1.1").startswith("{ok,")
    assert machine.answer()["version"] == "0.1.1"


def is_silent(machine: Machine) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", machine.port)) != 0


def test_a_way_back_that_leaves_a_wrong_state_loses_the_count(machine: Machine) -> None:
    machine.start("counter", "0.1.1")
    machine.answer("/increment")

    assert machine.hot("wrong_down/0.1.2").startswith("{ok,")
    assert machine.answer()["counter"] == 1
    assert machine.upgrade("0.1.1").startswith("{ok,")
    answer = eventually(closed_is_none(machine))
    assert (answer["version"], answer["counter"]) == ("0.1.1", 0)


def closed_is_none(machine: Machine) -> Callable[[], Any]:
    """The answer, where a server that crashes closes the connection without one."""

    def look() -> Any:
        try:
            return machine.answer()
        except (OSError, ValueError, urllib.error.URLError):
            return None

    return look


def test_a_way_back_that_says_ok_ends_the_vm_a_moment_later(machine: Machine) -> None:
    machine.start("counter", "0.1.1")

    assert machine.hot("fatal_down/0.1.2").startswith("{ok,")
    assert machine.upgrade("0.1.1").startswith("{ok,")
    assert machine.vm
    assert machine.vm.wait(20) == 1


# --- upgrades with something left to do ---------------------------------------------------------


def test_a_new_implementation_of_a_protocol_is_not_known_after_the_upgrade_but_after_a_boot(
    machine: Machine,
) -> None:
    machine.start("counter", "0.1.1")
    assert describes(machine) == 501

    assert machine.hot("protocol/0.1.2", "permanent").startswith("{ok,")
    assert machine.answer()["version"] == "0.1.2"
    assert describes(machine) == 501

    machine.stop()
    shutil.rmtree(machine.root)
    machine.start("counter", "protocol/0.1.2")
    assert describes(machine) == 200


def describes(machine: Machine) -> int:
    try:
        machine.get("/describe")
    except urllib.error.HTTPError as error:
        return error.code
    return 200


def test_who_lingers_in_old_code_is_killed_by_make_permanent(machine: Machine) -> None:
    machine.start("counter", "0.1.1")
    machine.get("/linger")

    assert machine.hot("0.1.2").startswith("{ok,")
    assert machine.get("/lingering") == "yes"
    assert machine.upgrade("0.1.2", "only_permanent") == "{ok,permanent}"
    assert machine.get("/lingering") == "no"


def test_with_soft_purge_who_lingers_in_old_code_refuses_the_next_upgrade(machine: Machine) -> None:
    machine.start("counter", "0.1.1")
    machine.get("/linger")

    assert machine.hot("soft_purge/0.1.2", "permanent").startswith("{ok,")
    assert machine.get("/lingering") == "yes"
    assert "old_processes" in machine.hot("soft_purge/0.1.3")
    assert machine.answer()["version"] == "0.1.2"


# --- a stop -------------------------------------------------------------------------------------


@pytest.mark.parametrize("app", ["counter", "erlang_counter"])
def test_a_stop_leaves_a_file_of_each_callback_and_every_line(machine: Machine, app: str) -> None:
    notes = machine.folder / "notes"
    notes.mkdir()
    lines = {"COUNTER_SHUTDOWN_DIR": str(notes), "COUNTER_SHUTDOWN_LINES": "1500"}
    machine.start(app, "0.1.1", **lines)
    machine.answer("/increment")

    machine.stop()
    assert {path.name: path.read_text() for path in notes.iterdir()} == {
        "prep_stop": "",
        "terminate": "1",
        "stop": "1500",
    }
    log = machine.log.read_text()
    for word in ("logged", "printed"):
        assert re.findall(rf"shutdown {word} (\d+)", log) == [str(n) for n in range(1, 1501)]
