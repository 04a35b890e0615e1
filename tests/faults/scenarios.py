"""What is going on when the fault strikes: a first deployment, an update, a rollback, and so on.

Each scenario has a template, a machine that is just before it, built once by the real commands;
every point gets a copy of it.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.faults.strace import watching
from tests.tiny import TinyWorld, python, shell
from tests.world import Ran, eventually

# `start` is the app; `migrate` is a pre_command that tells how often it was run
APP = shell(
    'case "$1" in\nstart) exec sleep 1000 ;;\nmigrate) echo migrated >> migrations ;;\nesac'
)
CANNOT_START = "#!/no/such/interpreter\n"
# its pre_command ends as the kernel's out-of-memory killer ends one
IS_KILLED = shell(
    'case "$1" in\nstart) exec sleep 1000 ;;\n'
    "migrate) echo migrated >> migrations; kill -9 $$ ;;\nesac"
)
# a migration as they are: files that are whole or not there, and a child that does a part of it
MIGRATES = python(
    """
def write(name, text):
    with open(f"{name}.new", "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.rename(f"{name}.new", name)
    os.fsync(os.open("schema", os.O_RDONLY))

if sys.argv[1] == "start":
    os.execv("/bin/sleep", ["sleep", "1000"])
elif sys.argv[1] == "index":
    os.mkdir("schema/index")
    write("schema/index/names", "a b c")
else:
    with open("migrations", "a") as file:
        file.write("migrated\\n")
    os.mkdir("schema")
    write("schema/names", "a, b, c")
    write("schema/version", "1")
    os.chmod("schema/version", 0o400)
    words = [sys.executable, "-IS", __file__, "index"]
    child = os.posix_spawn(words[0], words, os.environ)
    if os.waitpid(child, 0)[1] != 0:
        sys.exit("the index was not built")
    write("schema/version", "2")
    os.unlink("schema/names")
"""
)
NEVER = 'min_healthy_time = "1h"'
AT_ONCE = 'min_healthy_time = "1ms"'


class Machine(TinyWorld):
    """A world that can be saved and restored, lose its power, and run a command under strace."""

    def __init__(self) -> None:
        super().__init__(Path("/nonexistent"), 1)
        self.packages = self.root / "packages"
        self.packages.mkdir()
        self.env |= {"TMPDIR": str(self.scratch), "PYTHONDONTWRITEBYTECODE": "1"}
        self.traced: subprocess.Popen[str] | None = None

    # --- templates --------------------------------------------------------------------------

    def save(self, into: Path) -> None:
        """Copies all that is on disk; nothing runs there."""
        for part in ("var", "store", "packages", "log"):
            if (self.root / part).exists():
                shutil.copytree(self.root / part, into / part, symlinks=True)
        # its pids would be those of others by the time that it is looked into
        (into / f"var/state/{self.app}.supervise.json").unlink(missing_ok=True)

    def restore(self, template: Path) -> None:
        """The disk as it was saved."""
        shutil.copytree(template, self.root, symlinks=True, dirs_exist_ok=True)

    def confirmed(self, version: str, script: str = APP) -> None:
        """Deploys a version, and has it confirmed."""
        self.configure(AT_ONCE)
        self.roll_out(version, script)
        self.confirm()
        self.configure(NEVER)

    # --- faults -----------------------------------------------------------------------------

    def kill_all(self) -> None:
        """As a loss of power does to processes; what runs in memory (/run) is gone, too."""
        eventually(lambda: not self._killed())
        shutil.rmtree(self.root / "run", ignore_errors=True)

    def _killed(self) -> list[int]:
        """Kills each that is there; a supervisor may have begun another meanwhile."""
        found = self.processes()
        for pid in found:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        return found

    def under_strace(
        self, log: Path, fault: str | None, *words: str, everything: str | None = None
    ) -> Ran:
        """Runs `deployex` with these words to its end, or to its fault's.

        `everything`: these calls of all its processes, with all their data.
        """
        process = self.begin_under_strace(log, fault, *words, everything=everything)
        out, err = process.communicate(timeout=60)
        return Ran(process.returncode, out, err)

    def begin_under_strace(
        self, log: Path, fault: str | None, *words: str, everything: str | None = None
    ) -> subprocess.Popen[str]:
        """Begins `deployex` with these words, and does not wait; a supervisor talks to a file."""
        said = subprocess.PIPE
        if words[0] == "supervise":
            said = os.open(self._said, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self.traced = subprocess.Popen(
            [*watching(log, fault, everything), sys.executable, "-m", "deployex_cli", *words],
            env=self.env,
            cwd=self.root,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
        )
        if said != subprocess.PIPE:
            os.close(said)
        return self.traced

    @property
    def said_by_traced(self) -> str:
        """What a supervisor under strace has said."""
        return self._said.read_text()

    @property
    def _said(self) -> Path:
        return self.root / "traced.said"

    def end(self) -> None:
        try:
            super().end()
        finally:
            if self.traced is not None:
                self.traced.kill()
                self.traced.communicate()


class Scenario(NamedTuple):
    """A template, the command, and the version that must run in the end."""

    build: Callable[[Machine], None]
    words: tuple[str, ...]
    before: str | None  # what runs before it
    after: str  # what must run in the end, unless it is a ghost by then
    supervised: bool = True  # whether a supervisor runs already
    config: str = NEVER
    codes: tuple[int, ...] = (0, 4)  # what the command may end with, when nothing is killed


def _first(machine: Machine) -> None:
    machine.offer("0.1.0", APP)


def _update(machine: Machine) -> None:
    machine.confirmed("0.1.0")
    machine.offer("0.1.1", APP, "--pre-command", "migrate")


def _failing_update(machine: Machine) -> None:
    machine.confirmed("0.1.0")
    machine.offer("0.1.1", CANNOT_START)


def _failing_pre_command(machine: Machine) -> None:
    machine.confirmed("0.1.0")
    machine.offer("0.1.1", IS_KILLED, "--pre-command", "migrate")


def _migration(machine: Machine) -> None:
    machine.confirmed("0.1.0")
    machine.offer("0.1.1", MIGRATES, "--pre-command", "migrate")


def _rollback(machine: Machine) -> None:
    machine.confirmed("0.1.0")
    machine.confirmed("0.1.1")


def _publish(machine: Machine) -> None:
    machine.confirmed("0.1.0")
    machine.pack("0.1.1", APP)


def _prune(machine: Machine) -> None:
    machine.confirmed("0.1.0")
    machine.confirmed("0.1.1")
    machine.roll_out("0.1.2", APP)


SCENARIOS: dict[str, Scenario] = {
    "first deployment": Scenario(_first, ("check",), None, "0.1.0", supervised=False),
    "update": Scenario(_update, ("check",), "0.1.0", "0.1.1"),
    "failing update": Scenario(_failing_update, ("check",), "0.1.0", "0.1.0"),
    "killed pre_command": Scenario(
        _failing_pre_command, ("check",), "0.1.0", "0.1.0", codes=(0, 1, 4)
    ),
    "rollback": Scenario(_rollback, ("rollback",), "0.1.1", "0.1.0"),
    "publish": Scenario(_publish, ("publish", "packages/tiny-0.1.1.tar.gz"), "0.1.0", "0.1.1"),
    "prune": Scenario(_prune, ("check",), "0.1.2", "0.1.2", config=AT_ONCE),
}
# where the pre_command itself is killed (pre_commands.py): for check it is an update as any other
MIGRATION = "migration"
TEMPLATES = {**SCENARIOS, MIGRATION: Scenario(_migration, ("check",), "0.1.0", "0.1.1")}


def build_template(scenario: Scenario, into: Path) -> None:
    """Makes the machine that the scenario begins on, and saves it."""
    machine = Machine()
    try:
        machine.configure(NEVER)
        scenario.build(machine)
        machine.kill_all()
        machine.save(into)
    finally:
        machine.end()


def machine_before(
    scenario: Scenario, template: Path, *, supervised: bool | None = None
) -> Machine:
    """A machine on which the scenario is about to happen."""
    machine = Machine()
    machine.configure(scenario.config)
    machine.restore(template)
    if scenario.supervised if supervised is None else supervised:
        machine.supervise("RUNNING" if scenario.before else "STOPPED")
    return machine
