"""start_erl.data and RELEASES: what we write, read back by OTP itself."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from deployex_cli.layout.otp_files import (
    RELEASES,
    START_ERL,
    StartErl,
    parse_start_erl,
    releases_term,
    write_releases,
)

BOOTS = StartErl("15.2", "1.2.3-rc.1+build")
# every reserved word of Erlang, and what else an atom or a string may trip over
RESERVED = (
    *("after", "and", "andalso", "band", "begin", "bnot", "bor", "bsl", "bsr", "bxor", "case"),
    *("catch", "cond", "div", "else", "end", "fun", "if", "let", "maybe", "not", "of", "or"),
    *("orelse", "receive", "rem", "try", "when", "xor"),
)
ODD = ("Upper", "1st", "_x", "a.b", "a b", "it's", "back\\slash", 'quo"te', "ümlaut", "日本", "a@b")


@pytest.mark.parametrize(
    ("raw", "found"),
    [
        (b"15.2 1.2.3", StartErl("15.2", "1.2.3")),
        (b"15.2 1.2.3\n", StartErl("15.2", "1.2.3")),
        (b"  15.2\t1.2.3-rc.1 \r\n", StartErl("15.2", "1.2.3-rc.1")),
        (b"", None),
        (b"15.2", None),
        (b"15.2 1.2.3 more", None),
    ],
)
def test_start_erl_names_the_runtime_and_the_version(raw: bytes, found: StartErl | None) -> None:
    assert parse_start_erl(raw) == found


@pytest.mark.parametrize(
    ("folder", "entry"),
    [
        ("kernel-9.2", '{\'kernel\',"9.2","lib/kernel-9.2"}'),
        ("app-1.0.0-rc.1", '{\'app\',"1.0.0-rc.1","lib/app-1.0.0-rc.1"}'),
        ("app-", '{\'app\',"","lib/app-"}'),
        ("it's-1", "{'it\\'s',\"1\",\"lib/it's-1\"}"),
    ],
)
def test_a_library_splits_at_its_first_dash(folder: str, entry: str) -> None:
    assert entry in releases_term("counter", BOOTS, [folder])


def test_what_has_no_version_in_its_name_is_no_library() -> None:
    assert "readme" not in releases_term("counter", BOOTS, ["readme", "kernel-9.2"])


def release(folder: Path, *libraries: str) -> str:
    for library in libraries:
        (folder / "lib" / library).mkdir(parents=True)
    (folder / "releases").mkdir(exist_ok=True)
    (folder / START_ERL).write_text(f"{BOOTS.erts} {BOOTS.version}")
    return str(folder)


def test_a_release_that_brings_its_own_keeps_it(tmp_path: Path) -> None:
    folder = release(tmp_path, "kernel-9.2")
    (tmp_path / RELEASES).write_text("[mine].\n")
    assert not write_releases(folder, "counter")
    assert (tmp_path / RELEASES).read_text() == "[mine].\n"


@pytest.mark.parametrize("missing", ["lib", START_ERL])
def test_without_libraries_or_a_version_there_is_nothing_to_say(
    tmp_path: Path, missing: str
) -> None:
    folder = release(tmp_path, "kernel-9.2")
    (tmp_path / missing).rename(tmp_path / "away")
    assert not write_releases(folder, "counter")
    assert not (tmp_path / RELEASES).exists()


def test_what_is_written_may_be_read_by_the_app_under_any_user(tmp_path: Path) -> None:
    assert write_releases(release(tmp_path, "kernel-9.2"), "counter")
    assert (tmp_path / RELEASES).stat().st_mode & 0o777 == 0o644
    assert [path.name for path in (tmp_path / "releases").iterdir() if path.name[0] == "."] == []


@pytest.mark.beam
def test_otp_reads_every_library_of_every_name_and_version(tmp_path: Path) -> None:
    names = [*RESERVED, *ODD, "kernel"]
    versions = ["1.0.0", "1.0.0-rc.1", "2", 'x"y\\z']
    libraries = [f"{name}-{version}" for name in names for version in versions]
    assert write_releases(release(tmp_path, *libraries), "counter")
    # the term, told again in lines that no quoting can hide anything in: UTF-8 in hexadecimal
    program = """
        {ok, [[{release, Name, Version, Erts, Libraries, permanent}]]} = file:consult("FILE"),
        Hex = fun(T) -> binary:encode_hex(unicode:characters_to_binary(T)) end,
        [io:format("~s.~s.~s~n", [Hex(atom_to_list(L)), Hex(V), Hex(D)]) || {L, V, D} <- Libraries],
        io:format("~s ~s ~s~n", [Name, Version, Erts]),
        halt().
    """
    done = subprocess.run(
        ["erl", "-noshell", "-eval", program.replace("FILE", str(tmp_path / RELEASES))],
        capture_output=True,
        text=True,
        timeout=30,
    )
    *lines, head = done.stdout.splitlines() or [""]
    assert head == f"counter {BOOTS.version} {BOOTS.erts}", done
    read = {tuple(bytes.fromhex(part).decode() for part in line.split(".")) for line in lines}
    assert read == {(n, v, f"lib/{n}-{v}") for n in names for v in versions}
