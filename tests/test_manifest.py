"""current.json: what is accepted, and one line with address and place for all that is not."""

from __future__ import annotations

import json
import shlex
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployex_cli.core.manifest import (
    MAX_BYTES,
    Manifest,
    encode_manifest,
    parse_manifest,
    split_command,
)
from deployex_cli.errors import ManifestError

WHERE = "s3://bucket/versions/counter/prod/current.json"
SHA256 = "0123456789abcdef" * 4
GOOD: dict[str, Any] = {"version": "1.2.3", "hash": "abc", "pre_commands": [], "sha256": SHA256}
DEEP = 100_000


def raw(**changes: Any) -> bytes:
    """A good manifest but for `changes`."""
    return json.dumps({**GOOD, **changes}).encode()


def without(key: str) -> bytes:
    return json.dumps({k: v for k, v in GOOD.items() if k != key}).encode()


BAD: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "is empty"),
    "blanks": (b" \t\r\n", "is empty"),
    "truncated in a word": (raw()[:15], "line 1, column 13"),
    "truncated at the end": (raw()[:-1], f"line 1, column {len(raw())}"),
    "an error page": (b"<html>", "is not JSON"),
    "a bad third line": (b'{\n"version": "1",\n"hash" 7}', "line 3, column 8"),
    "two documents": (raw() + raw(), f"line 1, column {len(raw()) + 1}"),
    "Latin-1": (b'{"version": "\xe9"}', "is not UTF-8 text (byte 13)"),
    "UTF-16": (json.dumps(GOOD).encode("utf-16"), "is not UTF-8 text (byte 0)"),
    "NULs from a power cut": (bytes(4096), "is not JSON"),
    "null": (b"null", "must hold an object, not null"),
    "a list": (b"[1]", "must hold an object, not a list"),
    "a string": (b'"1.2.3"', "must hold an object, not a string"),
    "a number": (b"1.2", "must hold an object, not a number"),
    "true": (b"true", "must hold an object, not true or false"),
    "lists, deep": (b"[" * DEEP + b"]" * DEEP, "nested too deeply"),
    "an open end, deep": (b"[" * DEEP, "nested too deeply"),
    "objects, deep": (b'{"a":' * DEEP + b"1" + b"}" * DEEP, "nested too deeply"),
    "deep in a key that nobody knows": (
        raw()[:-1] + b', "x": ' + b"[" * DEEP + b"]" * DEEP + b"}",
        "nested too deeply",
    ),
    "a hash that would clear a screen": (raw(hash="a\x1b[2J"), "'hash' holds a control character"),
    "a pre_command with a bell": (raw(pre_commands=["a \x07"]), "holds a control character"),
    "too large": (raw() + b" " * MAX_BYTES, f"has more than {MAX_BYTES} bytes"),
    "a number of 5000 digits": (b'{"version": ' + b"1" * 5000 + b"}", "too many digits"),
    "no version": (without("version"), "has no 'version'"),
    "no hash": (without("hash"), "has no 'hash'"),
    "version a number": (raw(version=1.2), "'version' must be a string, not a number"),
    "version null": (raw(version=None), "'version' must be a string, not null"),
    "version true": (raw(version=True), "'version' must be a string, not true or false"),
    "version a list": (raw(version=["1"]), "'version' must be a string, not a list"),
    "version an object": (raw(version={}), "'version' must be a string, not an object"),
    "version half a character": (raw(version="1\ud800"), "'version' is not Unicode text"),
    "hash a number": (raw(hash=7), "'hash' must be a string, not a number"),
    "hash null": (raw(hash=None), "'hash' must be a string, not null"),
    "hash half a character": (raw(hash="a\ud800"), "'hash' is not Unicode text: \\ud800"),
    "pre_commands a string": (raw(pre_commands="eval x"), "must be a list of strings, not a s"),
    "pre_commands an object": (raw(pre_commands={}), "'pre_commands' must be a list"),
    "pre_commands false": (raw(pre_commands=False), "not true or false"),
    "a pre_command a number": (raw(pre_commands=["a", 7]), "'pre_commands[1]' must be a string"),
    "a pre_command null": (raw(pre_commands=[None]), "'pre_commands[0]' must be a string"),
    "a pre_command a list": (raw(pre_commands=[["a"]]), "'pre_commands[0]' must be a string"),
    "a pre_command with an open quote": (raw(pre_commands=["a", "b 'c"]), "'pre_commands[1]' can"),
    "a pre_command that ends in \\": (raw(pre_commands=["a\\"]), "'pre_commands[0]' cannot"),
    "a pre_command without words": (raw(pre_commands=["  "]), "no words"),
    "a pre_command with a NUL": (raw(pre_commands=["a\0b"]), "a nul character"),
    "half a character to run": (raw(pre_commands=["a\ud800"]), "'pre_commands[0]' is not Unicode"),
    "sha256 too short": (raw(sha256=SHA256[:-1]), "'sha256' must be 64"),
    "sha256 too long": (raw(sha256=SHA256 + "0"), "'sha256' must be 64"),
    "sha256 in capitals": (raw(sha256=SHA256.upper()), "'sha256' must be 64"),
    "sha256 no hexadecimal": (raw(sha256="g" * 64), "'sha256' must be 64"),
    "sha256 in other digits": (raw(sha256="\u0661" * 64), "'sha256' must be 64"),
    "sha256 empty": (raw(sha256=""), "'sha256' must be 64"),
    "sha256 a number": (raw(sha256=int("1" * 64)), "'sha256' must be 64"),
    "sha256 false": (raw(sha256=False), "'sha256' must be 64"),
}
BAD_VERSIONS = (
    *("", " ", "1 2", "1\n", "\n1", "1/2", "/1", "../1", "1/..", "..", "1..2", ".1", "-1", "+1"),
    *("1\0", "1\\2", "1:2", "1*", "é", "1\u200b", "\uff11", "1" * 129, "x" * 100_000, "1@2", "%2e"),
)


@pytest.mark.parametrize(("data", "problem"), BAD.values(), ids=BAD.keys())
def test_what_cannot_be_used_is_refused_in_one_line_with_address_and_place(
    data: bytes, problem: str
) -> None:
    with pytest.raises(ManifestError) as caught:
        parse_manifest(data, WHERE)
    message = caught.value.message
    assert message.startswith(f"the manifest {WHERE} ")
    assert problem in message
    assert message.isprintable(), "one line, with nothing in it that a terminal obeys"
    assert len(message) < 500


@pytest.mark.parametrize("version", BAD_VERSIONS, ids=lambda version: repr(version[:20]))
def test_a_version_that_could_not_be_a_folder_is_refused_and_shown(version: str) -> None:
    with pytest.raises(ManifestError) as caught:
        parse_manifest(raw(version=version), WHERE)
    assert f"{WHERE} 'version' {version[:200]!r} must " in caught.value.message
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 2000


@pytest.mark.parametrize("version", ["1.2.3", "1.2.3-rc.1+build_7", "2024~1", "a", "x" * 128])
def test_a_version_that_can_be_a_folder_is_taken_as_it_is(version: str) -> None:
    assert parse_manifest(raw(version=version), WHERE).version == version


def test_keys_that_others_have_put_there_are_accepted() -> None:
    manifest = parse_manifest(raw(published_by="ci", extra={"deep": [1, None]}), WHERE)
    assert manifest == Manifest("1.2.3", "abc", (), SHA256)


@pytest.mark.parametrize("data", [raw(sha256=None), without("sha256")])
def test_a_digest_may_be_missing_or_null(data: bytes) -> None:
    assert parse_manifest(data, WHERE).sha256 is None


@pytest.mark.parametrize("data", [raw(pre_commands=None), without("pre_commands"), raw()])
def test_pre_commands_may_be_missing_null_or_none(data: bytes) -> None:
    assert parse_manifest(data, WHERE).pre_commands == ()


def test_a_byte_order_mark_is_no_harm() -> None:
    assert parse_manifest(b"\xef\xbb\xbf" + raw(), WHERE).version == "1.2.3"


def test_the_largest_manifest_that_is_allowed_is_read() -> None:
    assert MAX_BYTES == 2**20
    assert parse_manifest(raw().ljust(MAX_BYTES), WHERE).version == "1.2.3"


text = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20)
words = st.lists(text.filter(lambda word: "\0" not in word), min_size=1, max_size=3)
manifests = st.builds(
    Manifest,
    version=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_+~-]{0,20}(\.[A-Za-z0-9]{1,5})?", fullmatch=True),
    hash=text,
    pre_commands=st.lists(words.map(shlex.join), max_size=3).map(tuple),
    sha256=st.none() | st.text("0123456789abcdef", min_size=64, max_size=64),
)


@given(manifests)
def test_what_is_encoded_reads_back_the_same(manifest: Manifest) -> None:
    assert parse_manifest(encode_manifest(manifest), WHERE) == manifest


def test_keys_that_say_nothing_are_not_written() -> None:
    assert json.loads(encode_manifest(Manifest("1", ""))) == {"version": "1", "hash": ""}


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_but_a_manifest_error(data: bytes) -> None:
    accepts_or_refuses(data)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(["version", "hash", "pre_commands", "sha256"]), json_values))
def test_no_document_raises_anything_but_a_manifest_error(document: dict[str, Any]) -> None:
    accepts_or_refuses(json.dumps({"version": "1", "hash": "", **document}).encode())


@given(st.integers(0, len(raw())), st.binary(max_size=4), st.integers(0, 4))
def test_no_damage_raises_anything_but_a_manifest_error(at: int, new: bytes, gone: int) -> None:
    accepts_or_refuses(raw()[:at] + new + raw()[at + gone :])


def accepts_or_refuses(data: bytes) -> None:
    """What is accepted is usable: it can be published again, and its commands can be run."""
    try:
        manifest = parse_manifest(data, WHERE)
    except ManifestError as error:
        assert error.message.isprintable()
        return
    assert parse_manifest(encode_manifest(manifest), WHERE) == manifest
    for command in manifest.pre_commands:
        for word in split_command(command):
            assert b"\0" not in word.encode()


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("migrate", ["migrate"]),
        ("  eval   x  ", ["eval", "x"]),
        ("eval 'App.Release.migrate()'", ["eval", "App.Release.migrate()"]),
        ('eval "a \\"b\\" c"', ["eval", 'a "b" c']),
        ("eval a\\ b", ["eval", "a b"]),
        ("eval ''", ["eval", ""]),
        (
            "rm -rf $HOME; `id` && ls | wc > x *",
            ["rm", "-rf", "$HOME;", "`id`", "&&", "ls", "|", "wc", ">", "x", "*"],
        ),
        ("eval 'a\nb'\nc", ["eval", "a\nb", "c"]),
        ("eval x # no comment", ["eval", "x", "#", "no", "comment"]),
    ],
)
def test_a_pre_command_is_split_as_a_shell_would_and_nothing_is_expanded(
    command: str, expected: list[str]
) -> None:
    assert split_command(command) == expected
