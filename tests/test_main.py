"""The entry: a machine's plain words take the short way, and both ways do and say the same."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from deployex_cli.__main__ import _plain
from deployex_cli.config import AppConfig, load_config
from deployex_cli.core.plan import OnDisk
from deployex_cli.core.recovery import rebuild
from deployex_cli.layout import files, releases
from deployex_cli.layout.state_file import save_state
from deployex_cli.supervise import procfs
from deployex_cli.supervise.record import Record, write_record
from tests.tiny import SLEEPS, tarball
from tests.world import Ran, World

ROOT = Path(__file__).parent.parent
ONE = OnDisk("1-1.0.0", "1.0.0", "a" * 64, "hash1", 100.0)


# --- which words are plain ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ("check", {}),
        ("check -v", {"-v": ""}),
        ("check --verbose --json", {"--verbose": "", "--json": ""}),
        ("check --dry-run --force", {"--dry-run": "", "--force": ""}),
        ("check --app counter", {"--app": "counter"}),
        ("check --config /x -v --app a", {"--config": "/x", "-v": "", "--app": "a"}),
        ("supervise", {}),
        ("supervise --app counter --config /x", {"--app": "counter", "--config": "/x"}),
    ],
)
def test_the_words_of_a_machine_are_plain(words: str, options: dict[str, str]) -> None:
    assert _plain(words.split()) == options


@pytest.mark.parametrize(
    "words",
    [
        "",
        "status",
        "-v check",
        "--help",
        "check --help",
        "check -h",
        "check --app=counter",
        "check --config=/x",
        "check --app",
        "check --config",
        "check --app --json",
        "check --app -v",
        "check -v -v",
        "check --app a --app b",
        "check --watch 5",
        "check --debug",
        "check --wait",
        "check --ver",
        "check -vv",
        "check -- -v",
        "check counter",
        "check --unknown",
        "supervise --json",
        "supervise -v",
        "supervise --help",
        "supervise counter",
        "CHECK",
    ],
)
def test_all_else_goes_the_long_way(words: str) -> None:
    assert _plain(words.split()) is None


# --- both ways are the same -----------------------------------------------------------------


def as_it_is(world: World) -> None:
    """Nothing is published, and nothing was ever deployed."""


def with_a_bad_manifest(world: World) -> None:
    world.manifest.parent.mkdir(parents=True)
    world.manifest.write_text('{"version": 7}')


def with_an_unknown_key(world: World) -> None:
    world.configure('cokie = "x"')


def with_two_apps(world: World) -> None:
    with world.config.open("a") as file:
        file.write("\n[apps.zzz]\n")


def with_a_store_that_others_may_write(world: World) -> None:
    with_a_bad_manifest(world)
    world.manifest.parent.chmod(0o777)


def with_a_version_to_deploy(world: World) -> None:
    world.manifest.parent.mkdir(parents=True)
    world.manifest.write_text('{"version": "1.0.0", "hash": ""}')


def with_a_link_for_a_lock(world: World) -> None:
    (world.root / "run").mkdir(mode=0o700)
    (world.root / "run/counter.lock").symlink_to("elsewhere")


def settled(world: World) -> None:
    """1.0.0 is current, published, confirmed, and runs: as it is nearly always."""
    app = load_config(str(world.config), {}).app("counter")
    settle(app)
    with_a_version_to_deploy(world)


def settle(app: AppConfig) -> None:
    paths = app.paths
    for folder in (paths.release(ONE.folder), paths.work):
        files.private_folder(folder)
    files.private_folder(str(Path(paths.state).parent))
    releases.write_marker(paths.release(ONE.folder), ONE)
    releases.point(paths, "current", ONE.folder)
    save_state(app, rebuild(releases.read_disk(paths), 100.0))
    start = procfs.start_time(os.getpid())
    assert start is not None
    process = (os.getpid(), start)  # we stand for the supervisor, and for the app
    record = Record(procfs.boot_id(), process, "RUNNING", process, ONE.folder, ONE.version)
    write_record(paths.record, record._replace(started_at=time.time(), starts=1))


def with_other_content(world: World) -> None:
    """1.0.0 was published again, and is another package."""
    settled(world)
    world.dist.mkdir(parents=True, exist_ok=True)
    package = tarball(world.dist / "counter-1.0.0.tar.gz", world.app, "1.0.0", SLEEPS)
    digest = hashlib.sha256(package.read_bytes()).hexdigest()
    world.manifest.write_text(json.dumps({"version": "1.0.0", "hash": "", "sha256": digest}))


Case = tuple[Callable[[World], None], str, int]
CHECKS: list[Case] = [
    (as_it_is, "check", 0),
    (as_it_is, "check --json", 0),
    (as_it_is, "check --dry-run -v", 0),
    (with_a_bad_manifest, "check", 1),
    (with_a_bad_manifest, "check --json", 1),
    (with_an_unknown_key, "check", 2),
    (with_an_unknown_key, "check --json", 2),
    (with_two_apps, "check", 0),
    (with_a_store_that_others_may_write, "check", 1),
    (with_a_version_to_deploy, "check", 1),
    (with_a_version_to_deploy, "check --dry-run", 0),
    (with_a_link_for_a_lock, "check", 1),
    (settled, "check", 0),
    (settled, "check -v", 0),
    (settled, "check --verbose", 0),
    (settled, "check --verbose --json", 0),
    (with_other_content, "check", 0),
    (with_other_content, "check --dry-run --force", 0),
]
SUPERVISES: list[Case] = [
    (with_an_unknown_key, "supervise", 2),
    (with_two_apps, "supervise", 2),
]


@pytest.mark.parametrize(
    ("case", "words", "code"),
    [*CHECKS, *SUPERVISES],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_the_long_way_says_the_same_and_exits_with_the_same_code(
    bare: World, case: Callable[[World], None], words: str, code: int
) -> None:
    case(bare)
    first = bare.run(*words.split(), "--config", str(bare.config))
    short = bare.run(*words.split(), "--config", str(bare.config))
    long = bare.run(*words.split(), f"--config={bare.config}")
    assert short.code == code
    assert long == short == first
    assert "Traceback" not in short.err
    if "--json" in words:
        assert short.json["exit_code"] == code
        assert short.err == ""
    elif "--force" in words:
        assert "would deploy 1.0.0 over 1.0.0" in short.out
    elif code:
        assert short.err.startswith("error: ")
        assert short.err.count("\n") == 1


@pytest.mark.parametrize("verb", ["check", "supervise"])
def test_an_app_that_is_not_there_is_the_same_error_on_both_ways(bare: World, verb: str) -> None:
    short, long = bare.run(verb, "--app", "countr"), bare.run(verb, "--app=countr")
    said = "error: no app 'countr' is configured; did you mean 'counter'?\n"
    assert long == short == Ran(2, "", said)


def test_without_any_configuration_both_ways_say_how_to_begin(bare: World) -> None:
    bare.config.unlink()
    short, long = bare.run("check"), bare.run("check", "--debug")
    assert short == Ran(2, "", f"error: the configuration {bare.config} is not there\n")
    assert (long.code, "Traceback" in long.err) == (1, True), "--debug shows where it came from"


def test_words_that_make_no_sense_are_code_2_and_told_to_people(bare: World) -> None:
    for words in (["check", "--unknown"], ["chek"], ["check", "--app"]):
        ran = bare.run(*words)
        assert (ran.code, ran.out) == (2, "")
        assert "Error" in ran.err


# --- nothing is due -------------------------------------------------------------------------


def everything(root: Path) -> dict[str, tuple[int, int]]:
    """Each file and folder, by its inode and the time of its last change; but for the lock."""
    found = {str(path): path.lstat() for path in root.rglob("*") if path.suffix != ".lock"}
    return {path: (stat.st_ino, stat.st_mtime_ns) for path, stat in found.items()}


def test_a_check_with_nothing_to_do_says_nothing_and_changes_nothing(bare: World) -> None:
    settled(bare)
    assert bare.run("check") == Ran(0, "", "")
    before = everything(bare.root)
    assert bare.run("check") == Ran(0, "", "")
    assert everything(bare.root) == before
    assert bare.run("check", "-v") == Ran(0, "counter: 1.0.0 is current\n", "")
    data = bare.run("check", "--json").json
    assert data["apps"] == [
        {"app": "counter", "outcome": "nothing_to_do", "reason": "1.0.0 is current", "steps": []}
    ]


def test_a_check_with_nothing_to_do_imports_nothing_that_only_people_or_a_deployment_need(
    bare: World,
) -> None:
    settled(bare)
    bare.ok("check")
    program = """
import os, sys
leave = os._exit
def tell(code):
    print(*sorted(sys.modules), file=sys.stderr, flush=True)
    leave(code)
os._exit = tell
sys.argv = ["deployex", "check"]
from deployex_cli.__main__ import main
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", program], env=bare.env, cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "")
    modules = set(done.stderr.split())
    assert "deployex_cli.commands.check" in modules
    heavy = {
        *("typer", "click", "rich", "obstore", "boto3", "botocore", "isal", "msgspec", "pydantic"),
        *("ssl", "socket", "subprocess", "dataclasses", "inspect", "logging", "asyncio"),
        *("ctypes", "shutil", "tempfile", "pathlib", "argparse", "urllib", "difflib"),
    }
    assert modules & heavy == set()
    assert not [m for m in modules if m.startswith(("deployex_cli.engine", "deployex_cli.cli"))]


# --- whoever reads our output ---------------------------------------------------------------


def without_a_reader(world: World, *words: str) -> Ran:
    """What comes of it when the other end of the pipe is closed already."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        ["deployex", *words], env=world.env, stdout=writer, stderr=subprocess.PIPE, text=True
    )
    os.close(writer)
    return Ran(done.returncode, "", done.stderr)


@pytest.mark.parametrize("app", [["--app", "counter"], ["--app=counter"]])
def test_what_a_check_does_does_not_depend_on_who_listens(bare: World, app: list[str]) -> None:
    settled(bare)
    bare.state_file.unlink()
    assert without_a_reader(bare, "check", "-v", *app) == Ran(0, "", "")
    assert json.loads(bare.state_file.read_text())["deployment"]["phase"] == "confirmed", "rebuilt"


def test_a_reader_that_has_gone_is_no_reason_for_a_traceback(bare: World) -> None:
    for words in (["check", "--json"], ["check", "--json", "--app=counter"], ["config", "--json"]):
        ran = without_a_reader(bare, *words)
        assert ran.err == ""
        assert ran.code in (1, 141), "click, on the long way, ends with 1"


def test_the_output_of_a_check_is_json_alone_when_that_was_asked_for(bare: World) -> None:
    ran = bare.run("check", "--json", "--dry-run")
    assert json.loads(ran.out)["command"] == "check"
    assert json.loads(ran.out)["schema_version"] == 1
