"""A machine with a real systemd as PID 1, for tests: namespaces on top of the machine we run on.

It sees our root folder through an overlay that it alone writes to, and that is gone when it is
switched off. Its "disk", which is still there after the next boot, is three folders of the test:
/var/lib/deployex, the release store and the journal. Of the units that are installed here it starts
only what any boot needs.

    the test: setpriv > unshare > sh > this module, `python -m tests.systemd_machine` > systemd

Run as a program it is what comes before systemd: it lays out the root folder and becomes PID 1.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path
from typing import Any

from tests.world import Ran, eventually

CHECKOUT = Path(__file__).parent.parent
SYSTEMD = Path("/usr/lib/systemd/systemd")
UNITS = CHECKOUT / "systemd"
COMMAND = Path("/usr/local/bin/deployex")  # what the units run
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
NAMESPACES = ("--mount", "--uts", "--ipc", "--net", "--pid")
# of what the system's own units ask for, all that a machine like this one has a use for
KEPT = {
    *("systemd-journald.service", "systemd-journald.socket", "systemd-journald-dev-log.socket"),
    *("systemd-journal-flush.service", "systemd-tmpfiles-setup.service"),
    *("local-fs.target", "timers.target", "sockets.target", "slices.target", "paths.target"),
}
BOOT_SECONDS = 30.0


# --- can it be done here? -----------------------------------------------------------------------


@functools.cache
def why_not() -> str | None:
    """Why no such machine can be had here; None: it can."""
    if os.geteuid() != 0:
        return "needs root"
    if not SYSTEMD.exists():
        return f"systemd is not installed ({SYSTEMD} is not there)"
    programs = ("setpriv", "unshare", "nsenter", "pivot_root", "mount", "systemctl", "journalctl")
    missing = [name for name in programs if shutil.which(name) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    try:
        ours = _make_cgroup("probe")
    except OSError as error:
        return f"no cgroup2 folder can be made ({error})"
    folder = tempfile.mkdtemp(prefix="dx-")
    try:
        script = (
            f'echo 0 > "{ours}/cgroup.procs" && mount -t tmpfs tmpfs "$0" && cd "$0" &&'
            " mkdir up work root proc cgroup && mount -t proc proc proc &&"
            " mount -t overlay overlay -o lowerdir=/,upperdir=up,workdir=work root &&"
            " unshare --cgroup mount -t cgroup2 cgroup2 cgroup"
        )
        words = ["unshare", *NAMESPACES, "--fork", "--propagation", "private"]
        words += ["sh", "-c", script, folder]
        tried = subprocess.run(words, capture_output=True, text=True, timeout=30)
    finally:
        os.rmdir(folder)
        eventually(lambda: _removed(ours))
    if tried.returncode != 0:
        return f"namespaces, overlay or cgroup2 are not permitted ({tried.stderr.strip()})"
    return None


def _make_cgroup(name: str) -> Path:
    """Makes a cgroup of that name within our own. Raises OSError."""
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    places = [line.split()[4] for line in mounts if " - cgroup2 " in line]
    if not places:
        raise OSError("cgroup2 is not mounted")
    groups = Path("/proc/self/cgroup").read_text().splitlines()
    ours = Path(places[0] + next(line[3:] for line in groups if line.startswith("0::")))
    for other in ours.glob("deployex-test-*"):  # of a test whose process was killed
        if not Path("/proc", other.name.split("-")[2]).exists():
            _removed(other)
    path = ours / f"deployex-test-{os.getpid()}-{name}"
    path.mkdir()
    return path


def _removed(cgroup: Path) -> bool:
    """Removes a cgroup and those in it; False: something in it has not quite ended."""
    try:
        for folder, _, _ in os.walk(cgroup, topdown=False):
            Path(folder).rmdir()
    except OSError:
        return False
    return True


# --- the machine, from outside ------------------------------------------------------------------


class Machine:
    """One machine; `boot` and `cut_power` may take turns. `folder` is the test's own."""

    def __init__(self, folder: Path, app: str = "tiny") -> None:
        self.app = app
        self.supervise = f"deployex-supervise@{app}.service"
        self.check = f"deployex-check@{app}.service"
        self.timer = f"deployex-check@{app}.timer"
        self.store = folder / "store"
        self.data = folder / "data"
        self._journal = folder / "journal"
        self._root = folder / "root"
        self._console = folder / "console"
        for made in (self.store, self.data, self._journal, self._root):
            made.mkdir(mode=0o700)
        self.config = (
            'environment = "prod"\n'
            '[storage]\nadapter = "local"\npath = "/srv/releases"\n'
            f'[apps.{app}]\nmin_healthy_time = "1s"\n'
        )
        self._process: subprocess.Popen[bytes] | None = None
        self._cgroup: Path | None = None
        self._init = 0  # the pid of its PID 1, as we see it

    def boot(self, *, supervise: bool = True, timer: bool = False) -> None:
        """Returns when all units that are enabled, of ours these, have been started."""
        enabled = {self.supervise: supervise, self.timer: timer}
        self._cgroup = _make_cgroup(self._root.parent.name)
        plan = {
            "root": str(self._root),
            "binds": {
                "/var/lib/deployex": str(self.data),
                "/srv/releases": str(self.store),
                "/var/log/journal": str(self._journal),
            },
            "config": self.config,
            "enable": [unit for unit, wanted in enabled.items() if wanted],
            "boot_id": str(uuid.uuid4()),
        }
        # in a cgroup of its own before it gets a cgroup namespace: that becomes its root cgroup
        enter = 'echo 0 > "$0/cgroup.procs" && exec unshare --cgroup "$@"'
        words = [
            *("setpriv", "--pdeathsig", "KILL"),  # should the test's process be killed
            *("unshare", *NAMESPACES, "--fork", "--kill-child", "--propagation", "private"),
            *("sh", "-c", enter, str(self._cgroup)),
            *(sys.executable, "-m", "tests.systemd_machine", json.dumps(plan)),
        ]
        with self._console.open("ab") as console:
            self._process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=console, stderr=console, cwd=CHECKOUT
            )
        try:
            self._init = eventually(self._find_init, BOOT_SECONDS)
            state = eventually(self._has_booted, BOOT_SECONDS)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.story()}") from None
        assert state == "running", self.ok("systemctl", "--failed") + self.story()

    def _find_init(self) -> int:
        assert self._process is not None
        pid = self._process.pid
        if self._process.poll() is not None:
            raise AssertionError("it ended before systemd was reached")
        child = int(Path(f"/proc/{pid}/task/{pid}/children").read_text())
        name = Path(f"/proc/{child}/comm").read_text().strip()
        return child if name == "systemd" else 0

    def _has_booted(self) -> str | None:
        said = self.run("systemctl", "is-system-running").out.strip()
        return said if said in ("running", "degraded") else None

    def shut_down(self) -> None:
        """Switches it off as a person does; returns when systemd has ended."""
        assert self._process is not None
        self.ok("systemctl", "poweroff", "--no-block")
        self._process.wait(60)
        self.cut_power()

    def cut_power(self) -> None:
        """All processes are gone at once; nothing was told to end."""
        assert self._process is not None
        assert self._cgroup is not None
        if self._process.poll() is None:
            if self._init:
                os.kill(self._init, signal.SIGKILL)  # and the kernel all others
            else:
                self._process.kill()
        self._process.wait(20)
        cgroup = self._cgroup
        eventually(lambda: _removed(cgroup))
        self._process, self._init = None, 0

    def end(self) -> None:
        """Switches it off, if it is on."""
        if self._process is not None:
            self.cut_power()

    # --- doing things in it -----------------------------------------------------------------

    def run(self, *words: str) -> Ran:
        """Runs a command in the machine, as a person with a root shell would."""
        done = subprocess.run(
            [
                "nsenter",
                f"--target={self._init}",
                *NAMESPACES,
                "--cgroup",
                "--root",
                "--wd",
                "--",
                *words,
            ],
            env={"PATH": PATH, "LC_ALL": "C.UTF-8", "SYSTEMD_PAGER": ""},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            cwd="/",
        )
        return Ran(done.returncode, done.stdout, done.stderr)

    def ok(self, *words: str) -> str:
        """Runs a command in the machine, which must succeed; its output."""
        ran = self.run(*words)
        assert ran.code == 0, f"{' '.join(words)}: {ran}\n{self.story()}"
        return ran.out

    def until(self, what: Any, seconds: float = 20.0) -> Any:
        """`eventually`, with the journal when it does not come to be."""
        try:
            return eventually(what, seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.story()}") from None

    # --- looking into it --------------------------------------------------------------------

    def path(self, path: str) -> Path:
        """A path of the machine as we reach it from outside."""
        return Path(f"/proc/{self._init}/root{path}")

    def show(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.ok("systemctl", "show", "--property", name, "--value", unit).strip()

    def journal(self, *words: str) -> str:
        """What this boot's journal says, without times and hosts."""
        self.ok("journalctl", "--sync")  # what has been said is in it by then
        return self.ok("journalctl", "--boot", "--output=cat", "--no-pager", *words)

    def story(self) -> str:
        """What the journals of all boots say about us, to go with a failure."""
        words = ["journalctl", "--directory", str(self._journal), "--no-pager", "--lines=80"]
        told = subprocess.run([*words, "--output=short-monotonic"], capture_output=True, text=True)
        return f"--- journal\n{told.stdout}{told.stderr}--- console\n{self._console.read_text()}"

    def record(self) -> Any:
        """What the supervisor wrote last."""
        return json.loads((self.data / f"state/{self.app}.supervise.json").read_text())

    def state(self) -> Any:
        return json.loads((self.data / f"state/{self.app}.json").read_text())


# --- the machine, from inside -------------------------------------------------------------------


def become_init(plan: dict[str, Any]) -> None:
    """Lays out the root folder and becomes its systemd; never returns."""
    folder = Path(plan["root"])
    _mount("-t", "tmpfs", "tmpfs", folder)  # what is written is gone with the machine
    root = folder / "root"
    for made in ("up", "work", "root"):
        (folder / made).mkdir()
    layers = f"lowerdir=/,upperdir={folder}/up,workdir={folder}/work"
    _mount("-t", "overlay", "overlay", "-o", layers, root)
    _kernel_folders(root)
    _boot_id(root, plan["boot_id"])
    for needed in (sys.prefix, sys.base_prefix, str(CHECKOUT)):
        if os.stat(needed).st_dev != os.stat("/").st_dev:  # else the overlay shows it
            _bind(Path(needed), root / needed[1:], "bind,ro")
    for place, source in plan["binds"].items():
        _bind(Path(source), root / place[1:])
    _leave_our_units_out(root)
    _install(root, plan["config"])
    for unit in plan["enable"]:
        subprocess.run(["systemctl", "--quiet", f"--root={root}", "enable", unit], check=True)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=False)
    os.chdir(root)
    subprocess.run(["pivot_root", ".", "."], check=True)
    subprocess.run(["umount", "--lazy", "."], check=True)
    os.chdir("/")
    _mount("--make-rshared", "/")
    env = {"container": "deployex-test", "PATH": PATH}
    os.execve(SYSTEMD, [str(SYSTEMD), "--system", "--unit=multi-user.target"], env)


def _mount(*words: str | Path) -> None:
    subprocess.run(["mount", *words], check=True)


def _bind(source: Path, place: Path, options: str = "bind") -> None:
    if source.is_dir():
        place.mkdir(parents=True, exist_ok=True)
    else:
        place.touch()
    _mount("-o", options, source, place)


def _kernel_folders(root: Path) -> None:
    """What systemd would mount itself, or expects of whoever starts it in a container."""
    _mount("-t", "proc", "proc", root / "proc")
    _mount("-t", "sysfs", "-o", "ro", "sysfs", root / "sys")
    _mount("-t", "cgroup2", "cgroup2", root / "sys/fs/cgroup")
    for name, mode in (("run", "755"), ("tmp", "1777"), ("dev", "755")):
        _mount("-t", "tmpfs", "-o", f"mode={mode}", "tmpfs", root / name)
    for name in ("null", "zero", "full", "random", "urandom", "tty"):
        _bind(Path("/dev") / name, root / "dev" / name)
    (root / "dev/pts").mkdir()
    (root / "dev/shm").mkdir(mode=0o1777)
    _mount("-t", "devpts", "-o", "newinstance,ptmxmode=666,mode=620", "devpts", root / "dev/pts")
    for name, target in (
        *(("fd", "/proc/self/fd"), ("ptmx", "pts/ptmx")),
        *(("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")),
    ):
        (root / "dev" / name).symlink_to(target)


def _boot_id(root: Path, boot_id: str) -> None:
    """Another one for each boot: the kernel, which did not boot, would say that none was."""
    file = root / "run/boot_id"
    file.write_text(f"{boot_id}\n")
    _bind(file, root / "proc/sys/kernel/random/boot_id")


def _leave_our_units_out(root: Path) -> None:
    """Nothing of the machine that we run on is started, but for what any boot needs."""
    for name, text in (("machine-id", f"{uuid.UUID(int=1).hex}\n"), ("fstab", "")):
        (root / "etc" / name).unlink(missing_ok=True)
        (root / "etc" / name).write_text(text)
    own = root / "etc/systemd/system"
    for emptied in (own, root / "usr/lib/systemd/system-generators"):
        shutil.rmtree(emptied, ignore_errors=True)
        emptied.mkdir(parents=True)
    for link in (root / "usr/lib/systemd/system").glob("*.target.wants/*"):
        masked = own / link.name
        if link.name not in KEPT and not masked.is_symlink():
            masked.symlink_to("/dev/null")


def _install(root: Path, config: str) -> None:
    """What the README tells a person to do."""
    for unit in UNITS.glob("*@.*"):
        shutil.copy(unit, root / "etc/systemd/system")
    shutil.copy(UNITS / "deployex.tmpfiles.conf", root / "usr/lib/tmpfiles.d/deployex.conf")
    command = root / str(COMMAND)[1:]
    command.unlink(missing_ok=True)
    command.symlink_to(Path(sys.executable).parent / "deployex")
    (root / "etc/deployex").mkdir(exist_ok=True)
    (root / "etc/deployex/deployex.toml").write_text(config)


if __name__ == "__main__":
    become_init(json.loads(sys.argv[1]))
