"""What is wrong is said in one line, and nothing that serves is touched."""

from __future__ import annotations

import json
import os
import tarfile

import pytest

from tests.tiny import SLEEPS, TinyWorld, hostile, is_alive, tarball
from tests.world import Ran


def untouched(tiny: TinyWorld, pid: int, ran: Ran) -> None:
    """One line of error, the app still there, nothing half-made."""
    assert ran.err.startswith("error: ")
    assert ran.err.count("\n") == 1, ran.err
    assert "Traceback" not in ran.err
    assert tiny.pid() == pid
    assert (tiny.link("new"), tiny.link("current")) == (None, "0.1.0")
    assert tiny.leftovers() == []
    assert len(list((tiny.service / "releases").iterdir())) == 1


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b'{"version": "0.1.', "is not JSON"),
        (b"<html>", "is not JSON: Expecting value at line 1, column 1"),
        (b"[]", "must hold an object, not a list"),
        (b'{"hash": "a"}', "has no 'version'"),
        (b'{"version": 1, "hash": "a"}', "'version' must be a string, not a number"),
        (b'{"version": "../../etc", "hash": "a"}', "must not hold '..'"),
        (b'{"version": "a/b", "hash": "a"}', "must begin with a letter or digit"),
        (b'{"version": "1", "hash": "a", "pre_commands": "x"}', "must be a list of strings"),
        (b'{"version": "1", "hash": "a", "sha256": "x"}', "64 lower-case hexadecimal digits"),
        (b"\xff\xfe", "is not UTF-8"),
        (b" \n", "is empty"),
        (b"[" * 100_000, "is nested too deeply"),
        (b'{"version": "1", "hash": "' + b"a" * 2**20 + b'"}', "more than 1048576"),
        (b'{"version": "1"}', "has no 'hash'"),
        (b'{"version": "1", "hash": null}', "'hash' must be a string, not null"),
        (b'{"version": "", "hash": "a"}', "must begin with a letter or digit"),
        (b'{"version": "1", "hash": "a", "pre_commands": [1]}', "'pre_commands[0]' must be"),
        (b'{"version": "1", "hash": "a", "pre_commands": ["a \'b"]}', "cannot be split"),
        (b'{"version": "1", "hash": "a", "pre_commands": [""]}', "no words in it"),
        (b'{"version": "1", "hash": "a", "sha256": 1}', "64 lower-case hexadecimal digits"),
    ],
    ids=lambda value: value if isinstance(value, str) else "manifest",
)
def test_a_bad_manifest_fails_in_one_line(tiny: TinyWorld, content: bytes, says: str) -> None:
    pid = tiny.roll_out("0.1.0")
    state = tiny.state_file.read_bytes()
    tiny.manifest.write_bytes(content)
    ran = tiny.run("check")
    assert ran.code == 1
    assert says in ran.err
    assert str(tiny.manifest) in ran.err
    assert tiny.state_file.read_bytes() == state
    untouched(tiny, pid, ran)


def manifest(tiny: TinyWorld, **changes: object) -> None:
    tiny.manifest.write_text(json.dumps({**json.loads(tiny.manifest.read_text()), **changes}))


def test_a_tarball_that_is_missing_leaves_nothing(tiny: TinyWorld) -> None:
    pid = tiny.roll_out("0.1.0")
    manifest(tiny, version="0.9.9", sha256=None)
    ran = tiny.run("check")
    assert ran.code == 1
    assert "version 0.9.9 is not in the release store" in ran.err
    untouched(tiny, pid, ran)
    assert tiny.run("check").code == 1, "and the next check tries again"


def test_a_flipped_byte_is_refused(tiny: TinyWorld) -> None:
    pid = tiny.roll_out("0.1.0")
    tiny.offer("0.1.1")
    path = tiny.dist / "tiny-0.1.1.tar.gz"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    ran = tiny.run("check")
    assert ran.code == 3
    untouched(tiny, pid, ran)


@pytest.mark.parametrize("content", [b"", b"<html>not here</html>", b"\x1f\x8b\x08\x00"])
def test_what_is_no_tarball_is_refused_by_check_and_by_publish(
    tiny: TinyWorld, content: bytes
) -> None:
    pid = tiny.roll_out("0.1.0")
    manifest(tiny, version="0.1.1", sha256=None)
    (tiny.dist / "tiny-0.1.1.tar.gz").write_bytes(content)
    ran = tiny.run("check")
    assert ran.code == 1
    untouched(tiny, pid, ran)
    bad = tiny.root / "bad.tar.gz"
    bad.write_bytes(content)
    assert tiny.run("publish", str(bad), "--version", "0.1.2").code == 1


@pytest.mark.parametrize("known", [True, False])
def test_a_tarball_that_is_cut_short_is_refused_with_and_without_a_digest(
    tiny: TinyWorld, known: bool
) -> None:
    pid = tiny.roll_out("0.1.0")
    tiny.offer("0.1.1")
    path = tiny.dist / "tiny-0.1.1.tar.gz"
    path.write_bytes(path.read_bytes()[:-20])
    if not known:
        manifest(tiny, sha256=None)
    ran = tiny.run("check")
    assert ran.code == 1
    assert "it is cut short after" in ran.err
    untouched(tiny, pid, ran)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('max_unpacked = "10B"', "it is longer than 10 bytes"),
        ("max_entries = 1", "it has more than 1 members after 'bin/tiny'"),
    ],
)
def test_a_tarball_beyond_a_limit_is_refused_as_that(tiny: TinyWorld, line: str, says: str) -> None:
    pid = tiny.roll_out("0.1.0")
    tiny.offer("0.1.1")
    tiny.configure(line)
    ran = tiny.run("check")
    assert ran.code == 1
    assert says in ran.err
    assert "sha256" not in ran.err, "the digest is the one that was promised"
    untouched(tiny, pid, ran)


def test_a_script_that_may_not_be_executed_is_refused_before_anything_stops(
    tiny: TinyWorld,
) -> None:
    pid = tiny.roll_out("0.1.0")
    manifest(tiny, version="0.1.1", sha256=None)
    tarball(tiny.dist / "tiny-0.1.1.tar.gz", "tiny", "0.1.1", SLEEPS, mode=0o644)
    ran = tiny.run("check")
    assert ran.code == 1
    assert "'bin/tiny' is not executable" in ran.err
    untouched(tiny, pid, ran)


def test_a_script_that_cannot_be_executed_gives_the_version_before_back(tiny: TinyWorld) -> None:
    tiny.configure('min_healthy_time = "1h"')
    tiny.roll_out("0.1.0")
    tiny.offer("0.1.1", "#!/no/such/interpreter\n")
    ran = tiny.run("check")
    assert ran.code == 4
    assert "the interpreter that its first line names is not there" in ran.err
    assert "0.1.1 is ghosted and 0.1.0 serves again" in ran.err
    assert tiny.link("current") == "0.1.0"
    assert tiny.record()["state"] == "RUNNING"
    assert tiny.record()["version"] == "0.1.0"
    assert tiny.history() == [("deployed", "0.1.0"), ("failed", "0.1.1"), ("rolled back", "0.1.0")]
    assert tiny.run("check").code == 0, "and it is not tried again"


def test_a_first_version_that_cannot_be_executed_leaves_nothing_current(tiny: TinyWorld) -> None:
    tiny.offer("0.1.0", "#!/no/such/interpreter\n")
    ran = tiny.run("check")
    assert ran.code == 4
    assert "there is no version before 0.1.0: tiny is stopped and 0.1.0 ghosted" in ran.err
    assert tiny.link("current") is None
    assert tiny.record()["state"] == "STOPPED"
    assert tiny.record()["app"] is None
    assert "ghosted and not deployed" in tiny.ok("check", "-v")
    tiny.offer("0.1.1")
    tiny.ok("check")
    assert tiny.link("current") == "0.1.1"


def test_a_hostile_member_is_refused_and_named(tiny: TinyWorld) -> None:
    pid = tiny.roll_out("0.1.0")
    link = tarfile.TarInfo("lib/out")
    link.type, link.linkname = tarfile.SYMTYPE, "../../../etc"
    manifest(tiny, version="0.1.1", sha256=None)
    hostile(tiny.dist / "tiny-0.1.1.tar.gz", "tiny", link)
    ran = tiny.run("check")
    assert ran.code == 1
    assert "lib/out" in ran.err
    untouched(tiny, pid, ran)


def test_a_package_of_another_app_has_no_script_for_this_one(tiny: TinyWorld) -> None:
    path = tarball(tiny.root / "other.tar.gz", "other", "0.1.0", SLEEPS)
    ran = tiny.run("publish", str(path))
    assert ran.code == 1
    assert "bin/tiny" in ran.err


def test_other_content_under_a_published_version_needs_replace(tiny: TinyWorld) -> None:
    tiny.configure('min_healthy_time = "1h"')
    pid = tiny.roll_out("0.1.0")
    tiny.pack("0.1.0", SLEEPS + "# changed\n")
    ran = tiny.run("publish", str(tiny.package("0.1.0")))
    assert ran.code == 3
    assert "--replace" in ran.err
    tiny.ok("publish", str(tiny.package("0.1.0")), "--replace")
    assert "was published again with other content" in tiny.ok("check")
    assert tiny.pid() == pid
    tiny.ok("check", "--force")
    assert tiny.pid() != pid


def test_a_version_that_the_package_does_not_have_is_not_published(tiny: TinyWorld) -> None:
    tiny.pack("0.1.0")
    ran = tiny.run("publish", str(tiny.package("0.1.0")), "--version", "0.2.0")
    assert ran.code == 1
    assert "is version 0.1.0" in ran.err
    assert not tiny.manifest.exists()


@pytest.mark.parametrize("version", ["../x", "a/b", "", "x" * 200])
def test_a_version_on_the_command_line_is_checked(tiny: TinyWorld, version: str) -> None:
    for words in (("unpack", version), ("rollback", version)):
        ran = tiny.run(*words)
        assert ran.code == 2
        assert "the version" in ran.err


def test_a_damaged_state_file_is_rebuilt_and_the_app_runs_on(tiny: TinyWorld) -> None:
    tiny.configure('min_healthy_time = "1h"')
    pid = tiny.roll_out("0.1.0")
    for content in ("", "{", "[]", '{"schema_version": 1}'):
        tiny.state_file.write_text(content)
        ran = tiny.run("check")
        assert ran.code == 0
        assert "it is rebuilt from the releases on disk" in ran.out
        assert tiny.run("check").out == ""
        assert tiny.pid() == pid
    tiny.state_file.unlink()
    assert "is lost" in tiny.ok("check")
    assert tiny.link("current") == "0.1.0"


def test_a_state_file_of_a_newer_deployex_is_not_touched(tiny: TinyWorld) -> None:
    pid = tiny.roll_out("0.1.0")
    tiny.state_file.write_text('{"schema_version": 99}')
    for words in (("check",), ("stop",), ("rollback",)):
        ran = tiny.run(*words)
        assert ran.code == 1
        assert "newer deployex (schema 99)" in ran.err
    assert tiny.state_file.read_text() == '{"schema_version": 99}'
    assert tiny.pid() == pid


@pytest.mark.root
def test_folders_of_others_are_refused(tiny: TinyWorld) -> None:
    pid = tiny.roll_out("0.1.0")
    os.chown(tiny.manifest.parent, 12345, 12345)
    ran = tiny.run("check")
    assert ran.code == 1
    assert "belongs to user 12345" in ran.err
    untouched(tiny, pid, ran)
    os.chown(tiny.manifest.parent, 0, 0)
    tiny.manifest.parent.chmod(0o777)
    assert "may be written by others" in tiny.run("check").err
    tiny.manifest.parent.chmod(0o755)
    os.chown(tiny.service, 12345, 12345)
    assert "belongs to user 12345" in tiny.run("check").err
    os.chown(tiny.service, 0, 0)


@pytest.mark.parametrize("root", ["/proc/nowhere", "{world}/deployex.toml/var"])
def test_a_folder_that_cannot_be_made_is_named(tiny: TinyWorld, root: str) -> None:
    tiny.offer("0.1.0")
    root = root.format(world=tiny.root)
    tiny.config.write_text(tiny.config.read_text().replace(f"{tiny.root}/var", root))
    for words in (["check"], ["start"], ["stop"], ["supervise"]):
        ran = tiny.run(*words)
        assert ran.code == 1
        assert ran.err.startswith("error: ")
        assert "cannot be made" in ran.err
        assert root in ran.err
        assert ran.err.count("\n") == 1
    assert tiny.processes() == []


@pytest.mark.parametrize("name", ["current", "new", "previous"])
def test_a_folder_in_the_place_of_a_link_is_named_before_anything_is_done(
    tiny: TinyWorld, name: str
) -> None:
    tiny.offer("0.1.0")
    path = tiny.service / name
    path.mkdir(parents=True)
    (path / "precious").touch()
    for words in (["check"], ["status"], ["rollback"], ["supervise"]):
        ran = tiny.run(*words)
        assert ran.code == 1
        assert f"{path} is no link of ours; move it away" in ran.err
        assert ran.err.count("\n") == 1
    assert (path / "precious").exists()
    assert list((tiny.service / "releases").iterdir()) == []
    assert tiny.processes() == []


def test_a_store_that_is_no_folder_is_unreachable(tiny: TinyWorld) -> None:
    pid = tiny.roll_out("0.1.0")
    store = tiny.root / "store"
    store.rename(tiny.root / "moved")
    store.touch()
    ran = tiny.run("check")
    assert ran.code == 7
    assert "the next check tries again" in ran.err
    untouched(tiny, pid, ran)
    assert tiny.run("publish", str(tiny.package("0.1.0"))).code == 7


def test_a_manifest_that_is_a_folder_is_named(tiny: TinyWorld) -> None:
    tiny.manifest.mkdir(parents=True)
    ran = tiny.run("check")
    assert ran.code == 1
    assert f"{tiny.manifest} must be a file" in ran.err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["check", "--app", "tny"], "no app 'tny' is configured; did you mean 'tiny'?"),
        (["supervise", "--app", "other"], "no app 'other' is configured; known are tiny"),
        (["check", "--config", "/nowhere"], "the configuration /nowhere is not there"),
        (["check", "--nonsense"], "No such option: --nonsense"),
        (["unpack"], "Missing argument 'VERSION'"),
        (["logs", "-n", "-1"], "Invalid value for '-n'"),
        (["nonsense"], "No such command 'nonsense'"),
    ],
)
def test_a_command_line_that_makes_no_sense_is_code_2(
    tiny: TinyWorld, words: list[str], says: str
) -> None:
    ran = tiny.run(*words)
    assert ran.code == 2
    assert says in ran.err
    assert "Traceback" not in ran.err
    assert not tiny.service.exists()


def test_with_several_apps_a_verb_for_one_names_them(tiny: TinyWorld) -> None:
    tiny.config.write_text(tiny.config.read_text() + "[apps.other]\n")
    for verb in ("start", "stop", "restart", "move", "rollback", "history", "remote", "supervise"):
        ran = tiny.run(verb)
        assert ran.code == 2
        assert ran.err == (
            "error: several apps are configured (tiny, other); name one with --app\n"
        )


def test_an_app_that_runs_survives_a_lost_state_and_a_lost_release(tiny: TinyWorld) -> None:
    pid = tiny.roll_out("0.1.0")
    tiny.state_file.unlink()
    tiny.ok("check")
    assert tiny.pid() == pid
    (tiny.service / "current/.deployex.json").unlink()
    assert "unpacks" in tiny.ok("check"), "what has no marker is no release: it is fetched again"
    assert not is_alive(pid)
    assert tiny.record()["state"] == "RUNNING"
