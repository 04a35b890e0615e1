"""The power goes at any instant of a command: what may be on the disk then leads to a running app.

A command's changes to the disk are recorded once (strace follows tar, too), and played again on a
model of a disk that forgets (disk.py). Each image that may be left is put on a machine of its own,
which boots with no network.
"""

from __future__ import annotations

import codecs
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.faults.aftermath import by_the_supervisor_alone
from tests.faults.disk import Disk, Image
from tests.faults.scenarios import SCENARIOS, Machine, machine_before

TRACED = (
    "open,openat,creat,write,writev,pwrite64,rename,renameat,renameat2,link,linkat,symlink,"
    "symlinkat,unlink,unlinkat,rmdir,mkdir,mkdirat,chmod,fchmod,fchmodat,truncate,ftruncate,"
    "fallocate,copy_file_range,sendfile,fsync,fdatasync,syncfs,sync"
)
PARTS = ("var", "store")  # of a machine: what is on its disk
_LINE = re.compile(r"(\d+) +(\w+)\((.*)\) += (-?\d+)(?:<([^>]*)>)?(.*)")
_BEGUN = re.compile(r"(\d+) +(\w+)\((.*) <unfinished \.\.\.>")
_RESUMED = re.compile(r"(\d+) +<\.\.\. \w+ resumed>(.*)")
_TEXT = re.compile(r'"((?:[^"\\]|\\.)*)"')
_AT = re.compile(r"(?:AT_FDCWD|\d+)<([^>]*)>")


class Cut(NamedTuple):
    """One image that a scenario may leave."""

    scenario: str
    after: str  # the call before the cut
    image: Image

    def __str__(self) -> str:
        return f"{self.scenario}: the power goes after {self.after}"


class Step(NamedTuple):
    """One call that changed the disk."""

    name: str
    arguments: str
    result: str  # the path behind the descriptor that it returned, or ""


def cuts(name: str, template: Path) -> list[Cut]:
    """Every image of the scenario, once."""
    scenario = SCENARIOS[name]
    machine = machine_before(scenario, template, supervised=True)
    try:
        disk = Disk(machine.root, PARTS)
        with tempfile.NamedTemporaryFile() as log:
            ran = machine.under_strace(Path(log.name), None, *scenario.words, everything=TRACED)
            assert ran.code in scenario.codes, ran
            steps = list(_steps(Path(log.name).read_text(errors="surrogateescape")))
        found: dict[str, Cut] = {}
        for image in disk.images():
            found.setdefault(image.digest(), Cut(name, "nothing", image))
        for step in steps:
            if _play(step, disk):
                shown = f"{step.name}({step.arguments[:100]})"
                for image in disk.images():
                    found.setdefault(image.digest(), Cut(name, shown, image))
    finally:
        machine.end()
    return list(found.values())


def lose_power(cut: Cut, template: Path) -> None:
    """Boots a machine with that image on its disk. Raises AssertionError."""
    scenario = SCENARIOS[cut.scenario]
    machine = Machine()
    try:
        machine.configure(scenario.config)
        shutil.copytree(template / "packages", machine.packages, dirs_exist_ok=True)
        cut.image.write(machine.root)
        _another_boot(machine)
        by_the_supervisor_alone(machine, scenario)
    finally:
        machine.end()


def _another_boot(machine: Machine) -> None:
    """The supervisor's record is of a boot that is over."""
    if machine.record_file.exists():
        raw = machine.record_file.read_bytes()
        boot = Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()
        machine.record_file.write_bytes(raw.replace(boot, b"0" * len(boot)))


# --- the trace --------------------------------------------------------------------------------


def _steps(log: str) -> Iterator[Step]:
    """The calls that succeeded, in the order in which they ended."""
    begun: dict[str, str] = {}
    for line in log.splitlines():
        if match := _BEGUN.match(line):
            begun[match[1]] = f"{match[1]} {match[2]}({match[3]}"
            continue
        if match := _RESUMED.match(line):
            line = begun.pop(match[1]) + match[2]
        match = _LINE.match(line)
        if match is not None and not match[4].startswith("-"):
            yield Step(match[2], match[3], match[5] or "")


def _play(step: Step, disk: Disk) -> bool:
    """Does the same to the model; False when it is about something else."""
    texts = [codecs.escape_decode(text.encode())[0] for text in _TEXT.findall(step.arguments)]
    path = _path(step, texts)
    if not _on_disk(disk, path):
        return False
    mode = _mode(step.arguments)
    match step.name:
        case "open" | "openat" | "creat":
            if not re.search(r"O_(CREAT|TRUNC)", step.arguments):
                return False
            disk.create(step.result, mode, truncate="O_TRUNC" in step.arguments)
        case "write" | "writev":
            disk.write(path, b"".join(texts), None)
        case "pwrite64":
            disk.write(path, texts[0], int(step.arguments.rpartition(",")[2]))
        case "ftruncate" | "truncate":
            disk.resize(path, int(step.arguments.rpartition(",")[2]))
        case "mkdir" | "mkdirat":
            disk.make_folder(path, mode)
        case "symlink" | "symlinkat":
            disk.link_to(texts[0].decode(), path)
        case "unlink" | "unlinkat" | "rmdir":
            disk.remove(path)
        case "rename" | "renameat" | "renameat2":
            disk.rename(_absolute(step, texts[0]), path)
        case "chmod" | "fchmod" | "fchmodat":
            disk.chmod(path, mode)
        case "fsync" | "fdatasync":
            disk.sync(path)
        case "syncfs" | "sync":
            disk.sync_all()
        case _:
            raise AssertionError(f"how does {step} change a disk? See tests/faults/power.py")
    return True


def _path(step: Step, texts: list[bytes]) -> str:
    """What the call is about: of two names the second, that which is there afterwards."""
    if step.result:
        return step.result
    by_name = not step.name.startswith(("write", "pwrite", "f", "sync")) or step.name == "fchmodat"
    if by_name:
        return _absolute(step, texts[-1])
    target = _AT.match(step.arguments)
    return target[1] if target else ""


def _absolute(step: Step, text: bytes) -> str:
    """A name of the call as a path; what stands before it may be a folder's descriptor."""
    name = text.decode()
    if name.startswith("/"):
        return name
    before = step.arguments[: step.arguments.rindex(name)]
    folders = _AT.findall(before)
    return f"{folders[-1]}/{name}".rstrip("/") if folders else name


def _on_disk(disk: Disk, path: str) -> bool:
    if not any(path.startswith(f"{disk.root}/{part}") for part in PARTS):
        return False
    return not path.endswith((".supervise.json", " (deleted)"))  # the supervisor's own: not durable


def _mode(arguments: str) -> int:
    match = re.search(r"\b(0[0-7]{3,4})\b(?!.*\b0[0-7]{3,4}\b)", arguments)
    return int(match[1], 8) if match else 0o600
