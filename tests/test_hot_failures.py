"""What goes wrong at a hot upgrade's point of no return and after it, on real nodes.

A package of 0.1.2 is made bad by another Counter.CodeChange, appup or runtime.exs in the example's
own; a command is killed exactly at the write or the step that is meant. Each test looks afterwards
at what serves, what would boot, what is ghosted, and that the next check has nothing to do.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from deployex_cli.config import AppConfig, load_config
from deployex_cli.otp import release_handler
from deployex_cli.otp.identity import target_of
from deployex_cli.otp.node import Node, connect
from deployex_cli.otp.terms import Atom
from tests.world import Ran, World, eventually

pytestmark = pytest.mark.beam

BEAM = "lib/counter-0.1.2/ebin/Elixir.Counter.CodeChange.beam"
APPUP = "lib/counter-0.1.2/ebin/counter.appup"
UP = "up(#{counter := C}) -> {ok, #{count => C, increments => 0}}."
DOWN = "down(#{count := C}) -> {ok, #{counter => C}}."
# while the file HOLD is there, whoever comes here waits, and says so with a file beside it
HOLDS = """
hold() -> hold(os:getenv("HOLD")).
hold(Path) ->
    case filelib:is_file(Path) of
        true -> file:write_file(Path ++ ".began", ""), timer:sleep(10), hold(Path);
        false -> ok
    end.
"""
# Once the server goes on, the application ends, and permanent as it is, the VM with it. Not in
# this module's code, which is purged.
ENDS = """
ends() ->
    {ok, Tokens, _} = erl_scan:string("gen_server:call('Elixir.Counter.Server', value, infinity),"
        " exit(whereis('Elixir.Counter.Supervisor'), kill)."),
    {ok, Forms} = erl_parse:parse_exprs(Tokens),
    spawn(erl_eval, exprs, [Forms, []]).
"""
CHANGE = "{update,'Elixir.Counter.Server',{advanced,[]},['Elixir.Counter.CodeChange']}"
WAYS = {
    "up": f"{{add_module,'Elixir.Counter.CodeChange'}},{CHANGE}",
    "down": f"{CHANGE},{{delete_module,'Elixir.Counter.CodeChange'}}",
}


def code_change(*functions: str, more: str = "") -> str:
    """The source of a Counter.CodeChange with these in place of the good ones."""
    ups = [f for f in functions if f.startswith("up(")] or [UP]
    downs = [f for f in functions if f.startswith("down(")] or [DOWN]
    head = "-module('Elixir.Counter.CodeChange'). -compile([export_all, nowarn_export_all])."
    return "\n".join((head, *ups, *downs, more))


def appup(up: str = WAYS["up"], down: str = WAYS["down"]) -> str:
    return f'{{"0.1.2",[{{"0.1.1",[{up}]}}],[{{"0.1.1",[{down}]}}]}}.\n'


# name -> what stands in the package in place of the example's own; an .erl is compiled
VARIANTS: dict[str, dict[str, str]] = {
    "holds": {
        BEAM: code_change(
            "up(#{counter := C}) -> hold(), {ok, #{count => C, increments => 0}}.",
            "down(#{count := C}) -> hold(), {ok, #{counter => C}}.",
            more=HOLDS,
        )
    },
    "holds and raises": {
        BEAM: code_change("up(_) -> hold(), error(on_purpose).", more=HOLDS),
    },
    "down ends it": {
        BEAM: code_change("down(#{count := C}) -> ends(), {ok, #{counter => C}}.", more=ENDS)
    },
    "down raises": {BEAM: code_change("down(_) -> error(on_purpose).")},
    "down starts it": {
        APPUP: appup(down=f"{WAYS['down']},{{apply,{{application,ensure_all_started,[counter]}}}}")
    },
}
Variants = Callable[[str], Path]


@pytest.fixture(scope="session")
def variants(packages: Path, tmp_path_factory: pytest.TempPathFactory) -> Variants:
    """Gives the folder of a variant's package, which is made when it is first asked for."""
    made: dict[str, Path] = {}

    def variant(name: str) -> Path:
        if name not in VARIANTS:
            return packages / name  # one of the example's own
        if name not in made:
            folder = tmp_path_factory.mktemp("variant")
            good, bad = packages / "counter-0.1.2.tar.gz", folder / "counter-0.1.2.tar.gz"
            repack(good, bad, {k: content(k, v, folder) for k, v in VARIANTS[name].items()})
            made[name] = folder
        return made[name]

    return variant


def content(member: str, text: str, scratch: Path) -> bytes:
    if not member.endswith(".beam"):
        return text.encode()
    source = scratch / f"{Path(member).stem}.erl"
    source.write_text(text)
    subprocess.run(["erlc", "-o", scratch, source], check=True)
    return source.with_suffix(".beam").read_bytes()


def repack(source: Path, target: Path, changed: dict[str, bytes]) -> None:
    """A copy of the tarball with other content of some members."""
    with (
        tarfile.open(source) as old,
        gzip.GzipFile(target, "wb", 1) as packed,
        tarfile.open(fileobj=packed, mode="w") as new,
    ):
        names = set(changed)
        for member in old:
            data = changed.get(member.name)
            if data is not None:
                names.remove(member.name)
                member.size = len(data)
            file = io.BytesIO(data) if data is not None else old.extractfile(member)
            new.addfile(member, file)
    assert names == set(), "the example has no such members any more"


# --- the world before and after -----------------------------------------------------------------


class Hot:
    """A world in which 0.1.1 serves, confirmed, with its counter at 3."""

    def __init__(self, world: World, variants: Variants) -> None:
        self.world = world
        self._variants = variants
        self.hold = world.root / "hold"
        self.configure("100ms")
        world.deploy("0.1.1")
        world.confirm()
        for _ in range(3):
            world.get("/increment")
        self.pid = self.pid_of("0.1.1")

    def configure(self, healthy: str = "1h", *lines: str) -> None:
        text = "\n".join((f'min_healthy_time = "{healthy}"', *lines))
        self.world.configure(text, env={"HOLD": str(self.hold)})

    def offer(self, variant: str | None = None, *words: str) -> None:
        """Publishes 0.1.2, or a variant of it."""
        if variant is not None:
            self.world.packages = self._variants(variant)
        self.world.publish("0.1.2", *words)

    def upgrade(self, variant: str | None = None) -> None:
        """Upgrades hot to 0.1.2, which stays on trial."""
        self.configure("1h")
        self.offer(variant)
        self.world.ok("check")
        assert self.serves("0.1.2", counter=3) == self.pid
        assert (self.world.phase(), self.boots()) == ("installed", "0.1.1")

    def confirm(self, *lines: str) -> None:
        self.configure("1ms", *lines)
        self.world.confirm()

    def pid_of(self, version: str) -> int:
        return int(self.world.answers(version)["os_pid"])

    def serves(self, version: str, *, counter: int = 0, pid: int | None = None) -> int:
        """Looks at all that a running version shows; the pid of its one VM.

        With `pid` a VM that was there before and is to be gone.
        """

        def look() -> Any:
            answer = self.world.answers(version)
            return answer if int(answer["os_pid"]) != pid else None

        answer = eventually(look)
        assert answer["counter"] == counter
        assert answer["state"] == {"0.1.1": 1, "0.1.2": 2, "0.1.3": 3}[version]
        # of the running version's runtime.exs, not what the build knew
        assert answer["port"] == self.world.port
        assert answer["greeting"] == answer["only_runtime"] == "hello from runtime"
        assert answer["configured_by"] == version
        assert self.world.vms() == [int(answer["os_pid"])]
        with self.node() as node:
            assert release_handler.which_releases(node).running == version
            assert stash_of(node) == Atom("none"), "secrets were left in the VM"
        return int(answer["os_pid"])

    def boots(self) -> str:
        """What the next start would run, by both of OTP's files."""
        folder = self.world.service / "current/releases"
        version = (folder / "start_erl.data").read_text().split()[1]
        with self.node() as node:
            found = node.call("file", "consult", [str(folder / "RELEASES")])
        assert found[0] == "ok"
        held = {str(release[2]): str(release[5]) for release in found[1][0]}
        assert held[version] == "permanent"
        assert list(held.values()).count("permanent") == 1
        return version

    @property
    def app(self) -> AppConfig:
        return load_config(str(self.world.config), {}).app("counter")

    @contextmanager
    def node(self) -> Iterator[Node]:
        with connect(target_of(self.app, self.world.record()["app"][0], {})) as node:
            yield node

    def stop_application(self) -> None:
        with self.node() as node:
            assert node.call("application", "stop", [Atom("counter")]) == "ok"

    def ghosts(self) -> list[str]:
        return [ghost["version"] for ghost in self.world.state()["ghosts"]]

    def ghost(self) -> tuple[str, str, str]:
        """(version, digest, reason) of the only ghost."""
        (ghost,) = self.world.state()["ghosts"]
        return ghost["version"], ghost["digest"], ghost["reason"]

    def last(self) -> Any:
        """The last entry of the history."""
        return self.world.run("history", "--json").json["entries"][-1]

    def is_calm(self) -> None:
        """The next check has nothing to do, and nothing half-made is left."""
        pids = self.world.vms()
        for _ in range(2):
            ran = self.world.run("check")
            assert (ran.code, ran.out, ran.err) == (0, "", "")
        assert self.world.vms() == pids
        left = [path for path in self.world.leftovers() if not path.endswith(".deployex.hot.json")]
        assert left == []
        assert self.world.link("new") is None

    def held(self) -> list[str]:
        """The releases within `current`."""
        folder = self.world.service / "current/releases"
        return sorted(path.name for path in folder.iterdir() if path.is_dir())


def stash_of(node: Node) -> Any:
    return node.call("persistent_term", "get", [Atom("deployex_configuration"), Atom("none")])


@pytest.fixture
def hot(world: World, variants: Variants) -> Hot:
    return Hot(world, variants)


def digest_of(world: World) -> str:
    return str(json.loads(world.manifest.read_text())["sha256"])


def ended(process: subprocess.Popen[str]) -> Ran:
    out, err = process.communicate(timeout=60)
    return Ran(process.returncode, out, err)


# --- install_release fails ----------------------------------------------------------------------


def test_a_code_change_that_raises_is_followed_by_a_full_deployment_of_the_same_package(
    hot: Hot,
) -> None:
    hot.offer("raises")
    ran = hot.world.run("check")
    assert ran.code == 0, ran
    assert "code_change_failed" in ran.out
    assert "in full, then" in ran.out
    assert hot.serves("0.1.2") != hot.pid
    assert (hot.world.link("current"), hot.world.link("previous")) == ("0.1.2", "0.1.1")
    assert (hot.boots(), hot.held()) == ("0.1.2", ["0.1.2"])
    assert hot.ghosts() == []
    last = hot.last()
    assert (last["event"], last["strategy"]) == ("deployed", "full_deployment")
    assert "install_release: {error,{code_change_failed," in last["reason"]
    assert len(last["reason"]) < 500
    hot.confirm()
    hot.is_calm()


def test_a_code_change_that_raises_ghosts_that_package_where_the_policy_says_so(hot: Hot) -> None:
    hot.configure("100ms", 'on_upgrade_failure = "ghost"')
    hot.offer("raises")
    ran = hot.world.run("check")
    assert ran.code == 4, ran
    assert "0.1.1 serves again" in ran.err
    assert hot.serves("0.1.1") != hot.pid
    assert (hot.world.link("current"), hot.boots()) == ("0.1.1", "0.1.1")
    version, digest, reason = hot.ghost()
    assert (version, digest) == ("0.1.2", digest_of(hot.world))
    assert "code_change_failed" in reason
    assert [e for e, v in hot.world.history() if v == "0.1.2"] == ["failed"]
    hot.confirm('on_upgrade_failure = "ghost"')
    hot.is_calm()


def test_a_ghost_is_one_package_so_that_the_mended_one_of_that_version_is_deployed(
    hot: Hot,
) -> None:
    good = hot.world.packages
    hot.configure("100ms", 'on_upgrade_failure = "ghost"')
    hot.offer("raises")
    assert hot.world.run("check").code == 4
    pid = hot.pid_of("0.1.1")
    ghost = hot.ghost()
    hot.world.packages = good
    hot.offer(None, "--replace")
    assert "upgraded to 0.1.2" in hot.world.ok("check")
    assert hot.serves("0.1.2") == pid
    hot.confirm()
    assert hot.ghost() == ghost, "the package that failed is none the better for it"
    assert hot.boots() == "0.1.2"
    hot.is_calm()


@pytest.mark.parametrize("policy", ["full", "ghost"])
def test_an_install_that_is_refused_leaves_the_new_configuration_on_no_old_code(
    hot: Hot, policy: str
) -> None:
    """change_appl_data has put 0.1.2's build-time values into 0.1.1, and is not undone by OTP."""
    hot.configure("100ms", f'on_upgrade_failure = "{policy}"')
    hot.offer("refused")
    ran = hot.world.run("check")
    assert "install_release: {error" in ran.out + ran.err
    if policy == "full":
        assert ran.code == 0, ran
        hot.serves("0.1.2", pid=hot.pid)
        assert (hot.boots(), hot.ghosts()) == ("0.1.2", [])
        assert hot.world.link("previous") == "0.1.1"
    else:
        assert ran.code == 4, ran
        hot.serves("0.1.1", pid=hot.pid)
        assert (hot.boots(), hot.ghosts()) == ("0.1.1", ["0.1.2"])
        assert "install_release" in hot.ghost()[2]
    hot.confirm()
    hot.is_calm()


# --- the end of a VM in its trial ---------------------------------------------------------------


def test_a_vm_that_is_killed_in_its_trial_boots_the_version_before_and_the_trial_is_over(
    hot: Hot,
) -> None:
    hot.upgrade()
    os.kill(hot.pid, signal.SIGKILL)
    hot.serves("0.1.1", pid=hot.pid)
    ran = hot.world.run("check")
    assert ran.code == 4, ran
    assert "0.1.2 is ghosted and 0.1.1 serves again" in ran.err
    version, digest, reason = hot.ghost()
    assert (version, digest) == ("0.1.2", digest_of(hot.world))
    assert "its VM ended in the trial" in reason
    assert hot.world.history()[-1] == ("failed", "0.1.2")
    assert (hot.boots(), hot.held()) == ("0.1.1", ["0.1.1"])
    assert not (hot.world.service / "current/lib/counter-0.1.2").exists()
    hot.is_calm()


@pytest.mark.parametrize("how", ["restart", "stop and start", "the supervisor's unit"])
def test_whoever_ends_a_vm_in_its_trial_ghosts_nobody(hot: Hot, how: str) -> None:
    hot.upgrade()
    if how == "restart":
        hot.world.ok("restart")
    elif how == "stop and start":
        hot.world.ok("stop")
        hot.world.ok("start")
    else:
        os.kill(hot.world.supervisor(), signal.SIGTERM)
        eventually(lambda: hot.world.processes() == [])
        hot.world.begin("supervise", "--app", "counter")
    second = hot.serves("0.1.1", pid=hot.pid)
    assert "somebody ended its VM in its trial" in hot.world.ok("check")
    assert (hot.ghosts(), hot.held()) == ([], ["0.1.1"])
    # and as 0.1.2 is what is published, it comes again
    assert "upgraded to 0.1.2" in hot.world.ok("check")
    assert hot.serves("0.1.2") == second
    events = [event for event, version in hot.world.history() if version == "0.1.2"]
    assert events == ["upgraded", "failed", "upgraded"]
    hot.confirm()
    assert hot.boots() == "0.1.2"
    hot.is_calm()


def test_an_app_that_is_stopped_in_its_trial_stays_stopped(hot: Hot) -> None:
    hot.upgrade()
    hot.world.ok("stop")
    assert hot.world.is_silent()
    assert hot.world.run("check").code == 0
    assert (hot.world.vms(), hot.ghosts()) == ([], [])


@pytest.mark.parametrize("when", ["on trial", "staged", "while installing"])
def test_a_reboot_of_the_machine_ghosts_nobody(hot: Hot, when: str) -> None:
    policy = 'on_upgrade_failure = "ghost"'
    if when == "on trial":
        hot.upgrade()
    else:
        hot.configure("1h", policy)
        hot.offer()
        killed(hot.world, ("saved", "staged/" if when == "staged" else "staged/install"), "check")
    os.kill(hot.world.supervisor(), signal.SIGKILL)
    os.kill(hot.pid, signal.SIGKILL)
    eventually(lambda: hot.world.processes() == [])
    state = hot.world.state()
    was = state["deployment"]["vm"]
    state["deployment"]["vm"] = "another-boot/" + was.partition("/")[2]
    hot.world.state_file.write_text(json.dumps(state))
    process = hot.world.begin("supervise", "--app", "counter")
    second = hot.serves("0.1.1", pid=hot.pid)
    if when == "on trial":
        assert "the machine was rebooted in its trial" in hot.world.ok("check")
    else:
        eventually(lambda: hot.world.phase() == "abandoned")  # the supervisor has seen to it
    assert hot.ghosts() == []
    assert "upgraded to 0.1.2" in hot.world.ok("check")
    assert hot.serves("0.1.2") == second
    hot.confirm(policy)
    hot.is_calm()
    process.terminate()
    assert ended(process).code == 0


# --- connections and commands that end in the middle --------------------------------------------


class Proxy:
    """Stands between our client and the node's distribution port, until it is cut."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.is_open = True
        self.connections = 0
        self._ends: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                ours, _ = self._listener.accept()
            except OSError:
                return
            if not self.is_open:
                ours.close()
                continue
            self.connections += 1
            theirs = socket.create_connection(("127.0.0.1", self._to))
            self._ends += [ours, theirs]
            for a, b in ((ours, theirs), (theirs, ours)):
                threading.Thread(target=self._carry, args=(a, b), daemon=True).start()

    @staticmethod
    def _carry(a: socket.socket, b: socket.socket) -> None:
        with suppress(OSError):
            while data := a.recv(65536):
                b.sendall(data)
        for end in (a, b):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self, *, is_open: bool) -> None:
        """Ends all connections; `is_open`: others may come."""
        self.is_open = is_open
        for end in self._ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.cut(is_open=False)
        self._listener.close()


@pytest.fixture
def proxy(hot: Hot) -> Iterator[Proxy]:
    """Between the commands and the node of `hot`."""
    words = ["epmd", "-port", hot.world.env["ERL_EPMD_PORT"], "-names"]
    names = subprocess.run(words, capture_output=True, text=True, env=hot.world.env).stdout
    (line,) = [line for line in names.splitlines() if f" {hot.world.node} " in line]
    made = Proxy(int(line.split()[-1]))
    yield made
    made.close()


def amid_the_install(hot: Hot, variant: str) -> subprocess.Popen[str]:
    """A check in whose code_change the node waits until `hold` is removed."""
    hot.offer(variant)
    hot.hold.touch()
    check = hot.world.begin("check")
    eventually(hot.hold.with_suffix(".began").exists)
    return check


def test_a_connection_that_is_lost_during_install_is_made_again_and_the_node_asked(
    hot: Hot, proxy: Proxy
) -> None:
    hot.configure("1h", f"dist_port = {proxy.port}")
    check = amid_the_install(hot, "holds")
    before = proxy.connections
    proxy.cut(is_open=True)
    eventually(lambda: proxy.connections > before)
    hot.hold.unlink()
    ran = ended(check)
    assert ran.code == 0, ran
    assert ran.out.splitlines()[-1] == "counter: upgraded to 0.1.2"
    assert hot.serves("0.1.2", counter=3) == hot.pid
    hot.confirm(f"dist_port = {proxy.port}")
    assert hot.world.history()[-2:] == [("upgraded", "0.1.2"), ("confirmed", "0.1.2")]
    hot.is_calm()


def test_a_node_that_cannot_be_asked_what_became_of_the_install_is_asked_by_the_next_check(
    hot: Hot, proxy: Proxy
) -> None:
    hot.configure("1h", f"dist_port = {proxy.port}")
    check = amid_the_install(hot, "holds")
    proxy.cut(is_open=False)
    hot.hold.unlink()
    ran = ended(check)
    assert ran.code == 6, ran
    assert "the next check asks the node" in ran.err
    assert (hot.world.phase(), hot.world.state()["deployment"]["intent"]) == ("staged", "install")
    proxy.is_open = True
    assert "upgraded to 0.1.2" in hot.world.ok("check")
    assert hot.serves("0.1.2", counter=3) == hot.pid
    hot.confirm(f"dist_port = {proxy.port}")
    hot.is_calm()


def test_a_node_that_hangs_for_a_moment_during_install_is_waited_for(hot: Hot) -> None:
    check = amid_the_install(hot, "holds")
    os.kill(hot.pid, signal.SIGSTOP)
    check.kill()
    ended(check)
    second = hot.world.begin("check")
    eventually(lambda: "it goes on" in second.stdout.readline())  # type: ignore[union-attr]
    hot.hold.unlink()
    os.kill(hot.pid, signal.SIGCONT)
    assert ended(second).code == 0
    assert hot.serves("0.1.2", counter=3) == hot.pid
    hot.confirm()
    hot.is_calm()


def test_a_check_that_is_killed_during_install_is_followed_by_one_that_waits_for_its_end(
    hot: Hot,
) -> None:
    check = amid_the_install(hot, "holds")
    check.kill()
    ended(check)
    second = hot.world.begin("check")
    eventually(lambda: "it goes on" in second.stdout.readline())  # type: ignore[union-attr]
    hot.hold.unlink()
    assert ended(second).code == 0
    assert hot.serves("0.1.2", counter=3) == hot.pid
    hot.confirm()
    assert [e for e, v in hot.world.history() if v == "0.1.2"] == ["upgraded", "confirmed"]
    hot.is_calm()


@pytest.mark.parametrize("policy", ["full", "ghost"])
def test_an_install_that_fails_after_its_check_was_killed_is_not_done_again(
    hot: Hot, policy: str
) -> None:
    hot.configure("100ms", f'on_upgrade_failure = "{policy}"')
    check = amid_the_install(hot, "holds and raises")
    check.kill()
    ended(check)
    hot.hold.unlink()
    hot.serves("0.1.1", pid=hot.pid)
    ran = hot.world.run("check")
    assert "the VM was restarted before 0.1.2 was installed" in ran.out + ran.err
    if policy == "full":
        assert ran.code == 0, ran
        hot.serves("0.1.2")
        assert hot.ghosts() == []
    else:
        assert ran.code == 4, ran
        hot.serves("0.1.1")
        assert hot.ghosts() == ["0.1.2"]
    hot.confirm()
    hot.is_calm()


# Runs `deployex` and kills it: "saved" when the state of that phase and intent is on disk, "done"
# when that step has been taken and its outcome is not on disk, "marked" when the marker was.
_KILLED = """
import os, signal, sys
from deployex_cli import engine, upgrade
when, name, *words = sys.argv[1:]
save, mark = engine.save_state, engine.releases.write_marker
step = getattr(upgrade.Upgrade, name, None)
def die():
    os.kill(os.getpid(), signal.SIGKILL)
def saved(app, state):
    save(app, state)
    found = state.deployment
    if found and f"{found.phase.value}/{found.intent.value if found.intent else ''}" == name:
        die()
def done(self, *arguments):
    step(self, *arguments)
    die()
def marked(*arguments):
    mark(*arguments)
    die()
if when == "saved":
    engine.save_state = saved
elif when == "marked":
    engine.releases.write_marker = marked
else:
    setattr(upgrade.Upgrade, name, done)
sys.argv = ["deployex", *words]
from deployex_cli.__main__ import main
main()
"""
INSTALLING = (
    ("saved", "prepared/stage"),
    ("done", "stage"),
    ("saved", "staged/"),
    ("saved", "staged/install"),
    ("done", "install"),
    ("saved", "installed/"),
)
MAKING_PERMANENT = (
    ("saved", "installed/make_permanent"),
    ("done", "make_permanent"),
    ("marked", "make_permanent"),
    ("saved", "permanent/"),
    ("saved", "permanent/confirm"),
)


def killed(world: World, point: tuple[str, str], *words: str) -> None:
    """Runs a command that is killed there."""
    line = [sys.executable, "-c", _KILLED, *point, *words]
    ran = subprocess.run(line, env=world.env, cwd=world.root, capture_output=True, text=True)
    assert ran.returncode == -signal.SIGKILL, f"{point} was not come to: {ran}"


@pytest.mark.parametrize("points", [INSTALLING[:3], INSTALLING[3:]], ids=["stage", "install"])
def test_wherever_a_check_or_rollback_is_killed_the_next_check_goes_on_in_the_same_vm(
    hot: Hot, points: tuple[tuple[str, str], ...]
) -> None:
    hot.configure("1ms")
    hot.offer()
    for point in points:
        killed(hot.world, point, "check", "--force")
        hot.world.ok("check")
        assert hot.serves("0.1.2", counter=3) == hot.pid, point
        hot.world.confirm()
        assert (hot.boots(), hot.ghosts()) == ("0.1.2", []), point
        killed(hot.world, point, "rollback")
        hot.world.ok("check")
        assert hot.serves("0.1.1", counter=3) == hot.pid, point
        hot.world.confirm()
        assert (hot.boots(), hot.ghosts()) == ("0.1.1", ["0.1.2"]), point
        hot.is_calm()
    told = [event for event, version in hot.world.history() if version == "0.1.2"]
    assert told == ["upgraded", "confirmed"] * len(points)


def test_wherever_a_check_is_killed_while_it_makes_permanent_the_next_one_goes_on(
    hot: Hot,
) -> None:
    hot.configure("1ms")
    hot.offer()
    for point in MAKING_PERMANENT:
        hot.world.ok("check", "--force")
        if point[1].startswith("permanent/confirm"):
            hot.world.ok("check")
        killed(hot.world, point, "check")
        assert hot.serves("0.1.2", counter=3) == hot.pid, point
        hot.world.confirm()
        assert hot.serves("0.1.2", counter=3) == hot.pid, point
        assert (hot.boots(), hot.ghosts()) == ("0.1.2", []), point
        hot.is_calm()
        hot.world.ok("rollback")
        hot.world.confirm()
        assert hot.serves("0.1.1", counter=3) == hot.pid, point


@pytest.mark.parametrize("when", ["done", "marked"])
def test_a_vm_that_dies_between_make_permanent_and_our_note_of_it_boots_the_new_version(
    hot: Hot, when: str
) -> None:
    hot.upgrade()
    hot.configure("1ms")
    killed(hot.world, (when, "make_permanent"), "check")
    os.kill(hot.pid, signal.SIGKILL)
    second = hot.serves("0.1.2", pid=hot.pid)
    hot.world.confirm()
    assert hot.serves("0.1.2") == second
    assert (hot.boots(), hot.ghosts()) == ("0.1.2", [])
    hot.is_calm()


def test_a_supervisor_alone_finishes_what_a_killed_check_has_begun(hot: Hot) -> None:
    hot.configure("1ms")
    hot.offer()
    for point in (("saved", "staged/"), ("done", "install")):
        killed(hot.world, point, "check", "--force")
        os.kill(hot.world.supervisor(), signal.SIGKILL)
        process = hot.world.begin("supervise", "--app", "counter")
        eventually(lambda: hot.world.phase() == "installed")
        assert hot.serves("0.1.2", counter=3) == hot.pid, point
        hot.world.confirm()
        hot.is_calm()
        hot.world.ok("rollback")
        hot.world.confirm()
    process.terminate()
    assert ended(process).code == 0


# --- the files that the VM boots by -------------------------------------------------------------


@pytest.mark.root
def test_a_make_permanent_that_fails_half_way_is_told_and_ends_with_one_version(hot: Hot) -> None:
    hot.upgrade()
    releases = hot.world.service / "current/releases/RELEASES"
    subprocess.run(["chattr", "+i", releases], check=True)
    try:
        hot.configure("1ms")
        for _ in range(2):
            ran = hot.world.run("check")
            assert ran.code == 6, ran
            assert "make_permanent of 0.1.2: eperm" in ran.err
            assert "would boot 0.1.2; the next check tries again" in ran.err
        assert (hot.world.phase(), hot.ghosts()) == ("installed", [])
        assert hot.serves("0.1.2", counter=3) == hot.pid, "it is well, and serves"
        ran = hot.world.run("rollback")
        assert ran.code == 6, ran
        assert hot.serves("0.1.1", counter=3) == hot.pid
    finally:
        subprocess.run(["chattr", "-i", releases], check=True)
    hot.world.confirm()
    assert hot.serves("0.1.1", counter=3) == hot.pid
    assert (hot.boots(), hot.ghosts()) == ("0.1.1", ["0.1.2"])
    hot.is_calm()


def test_a_torn_file_is_put_right_before_the_start_and_the_right_version_boots(hot: Hot) -> None:
    hot.upgrade()
    hot.confirm()
    pid = hot.pid
    for name in ("start_erl.data", "RELEASES"):
        path = hot.world.service / "current/releases" / name
        whole = path.read_bytes()
        for left in (b"", whole[: len(whole) // 2], bytes(len(whole)), None):
            path.unlink() if left is None else path.write_bytes(left)
            os.kill(pid, signal.SIGKILL)
            pid = hot.serves("0.1.2", pid=pid)
            assert (hot.boots(), hot.held()) == ("0.1.2", ["0.1.1", "0.1.2"])
            hot.is_calm()
    hot.world.ok("rollback")
    assert hot.serves("0.1.1") == pid, "both versions are known to the VM"
    assert hot.boots() == "0.1.1"


# --- unhealthy ----------------------------------------------------------------------------------


def test_what_is_unhealthy_on_trial_is_gone_back_from_hot_and_else_by_a_restart(hot: Hot) -> None:
    """The way down changes code; it starts no application that was stopped."""
    hot.upgrade()
    hot.stop_application()
    ran = hot.world.run("check")
    assert ran.code == 4, ran
    assert "the application counter is not started" in ran.err
    hot.serves("0.1.1", pid=hot.pid)
    assert hot.boots() == "0.1.1"
    version, digest, reason = hot.ghost()
    assert (version, digest) == ("0.1.2", digest_of(hot.world))
    assert "not started" in reason
    assert hot.world.link("current") == "0.1.1"
    hot.confirm()
    assert hot.world.history()[-4:] == [
        ("failed", "0.1.2"),
        ("rolled back", "0.1.1"),  # hot, which did not make it well
        ("rolled back", "0.1.1"),  # in place
        ("confirmed", "0.1.1"),
    ]
    hot.is_calm()


def test_the_way_back_of_an_unhealthy_trial_is_hot_where_that_makes_it_healthy(hot: Hot) -> None:
    hot.upgrade("down starts it")
    hot.stop_application()
    ran = hot.world.run("check")
    assert ran.code == 4, ran
    assert hot.serves("0.1.1") == hot.pid, "the same VM; what was stopped has lost its counter"
    assert (hot.boots(), hot.ghosts()) == ("0.1.1", ["0.1.2"])
    hot.confirm()
    hot.is_calm()


@pytest.mark.parametrize("variant", [None, "down starts it"], ids=["restart", "hot"])
def test_what_is_unhealthy_once_it_is_permanent_is_gone_back_from_too(
    hot: Hot, variant: str | None
) -> None:
    hot.upgrade(variant)
    hot.configure("1ms")
    hot.world.ok("check")
    assert (hot.world.phase(), hot.boots()) == ("permanent", "0.1.2")
    hot.stop_application()
    ran = hot.world.run("check")
    assert ran.code == 4, ran
    serving = hot.serves("0.1.1", pid=None if variant else hot.pid)
    assert (serving == hot.pid) is (variant is not None)
    assert (hot.boots(), hot.ghosts()) == ("0.1.1", ["0.1.2"])
    assert hot.world.link("current") == "0.1.1"
    hot.world.confirm()
    hot.is_calm()


# --- the way down is bad ------------------------------------------------------------------------


def test_a_way_down_that_leaves_a_wrong_state_ends_with_the_old_version_serving(hot: Hot) -> None:
    """The server ends by its first request, and its supervisor starts it anew."""
    hot.upgrade("wrong_down")
    hot.confirm()
    ran = hot.world.run("rollback")
    assert ran.code == 0, ran
    hot.serves("0.1.1")
    hot.world.confirm()
    hot.serves("0.1.1")
    assert (hot.boots(), hot.ghosts()) == ("0.1.1", ["0.1.2"])
    hot.is_calm()


@pytest.mark.parametrize("variant", ["down ends it", "down raises"])
def test_a_rollback_whose_way_down_ends_the_vm_boots_the_old_version(
    hot: Hot, variant: str
) -> None:
    hot.upgrade(variant)
    if variant == "down raises":  # the other one is left while it is on trial
        hot.confirm()
    ran = hot.world.run("rollback")
    assert ran.code == 0, ran
    hot.confirm()
    hot.serves("0.1.1", pid=hot.pid)
    assert (hot.boots(), hot.ghosts()) == ("0.1.1", ["0.1.2"])
    assert hot.world.link("current") == "0.1.1"
    hot.is_calm()


# --- old code, and what comes meanwhile ---------------------------------------------------------


def test_who_lingers_in_old_code_is_named_before_make_permanent_ends_it(hot: Hot) -> None:
    pid = hot.world.get("/linger")
    hot.upgrade()
    assert hot.world.get("/lingering") == "yes"
    hot.configure("1ms")
    out = hot.world.ok("check")
    assert f"{pid.removeprefix('#PID')} ('Elixir.Counter.Server')" in out
    assert hot.world.get("/lingering") == "no"
    hot.world.confirm()
    assert hot.serves("0.1.2", counter=3) == hot.pid
    hot.is_calm()


def test_a_version_that_is_published_in_a_trial_waits_for_its_end_and_is_then_hot(
    hot: Hot,
) -> None:
    hot.upgrade()
    hot.world.publish("0.1.3")
    assert "0.1.3 waits for the end of a trial" in hot.world.ok("check", "-v")
    assert hot.serves("0.1.2", counter=3) == hot.pid
    hot.confirm()
    assert hot.serves("0.1.3", counter=3) == hot.pid
    assert [entry for entry in hot.world.history() if entry[1] != "0.1.1"] == [
        ("upgraded", "0.1.2"),
        ("confirmed", "0.1.2"),
        ("upgraded", "0.1.3"),
        ("confirmed", "0.1.3"),
    ]


def test_a_version_that_is_forced_in_a_trial_is_deployed_in_full(hot: Hot) -> None:
    hot.upgrade()
    hot.world.publish("0.1.3")
    out = hot.world.ok("check", "--force")
    assert "full deployment:" in out
    hot.serves("0.1.3", pid=hot.pid)
    assert (hot.world.link("current"), hot.world.link("previous")) == ("0.1.3", "0.1.1")
    assert (hot.boots(), hot.ghosts()) == ("0.1.3", [])
    hot.confirm()
    hot.is_calm()
    # and the way back is what was confirmed last
    hot.world.ok("rollback")
    hot.serves("0.1.1")


def test_a_forced_attempt_that_comes_to_nothing_takes_no_hot_trial_away(hot: Hot) -> None:
    hot.upgrade()
    hot.world.publish("0.1.3")
    (hot.world.dist / "counter-0.1.3.tar.gz").unlink()
    assert hot.world.run("check", "--force").code == 1
    assert hot.serves("0.1.2", counter=3) == hot.pid
    assert hot.world.phase() == "installed", "it is on trial as before"
    assert hot.world.status()["version"] == "0.1.2"
    hot.world.publish("0.1.2")
    hot.confirm()
    assert hot.boots() == "0.1.2"
