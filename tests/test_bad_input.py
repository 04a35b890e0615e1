"""What is wrong is said in one line, and nothing that serves is touched."""

from __future__ import annotations

import json
import os
import tarfile

import pytest

from tests.tiny import SLEEPS, TinyWorld, hostile
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
    ],
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
    from tests.tiny import tarball

    path = tarball(tiny.root / "other.tar.gz", "other", "0.1.0", SLEEPS)
    ran = tiny.run("publish", str(path))
    assert ran.code == 1
    assert "bin/tiny" in ran.err


def test_other_content_under_a_published_version_needs_replace(tiny: TinyWorld) -> None:
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
