"""Terms: what is sent comes back the same, and no bytes raise anything but our own error."""

from __future__ import annotations

import math
import struct
import tracemalloc
import zlib
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from deployex_cli.errors import BadTerm
from deployex_cli.otp import terms
from deployex_cli.otp.terms import Atom, Opaque, decode, encode, end_of_term, text

ATOM = st.text(st.characters(codec="utf-8"), max_size=255).map(Atom)
LEAF = (
    ATOM
    | st.integers(-(2**300), 2**300)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.binary()
    | st.text(st.characters(max_codepoint=255), min_size=1)
    | st.integers(0, 9).map(lambda number: terms.pid("a@b", number, 7))
)
KEY = st.recursive(
    ATOM | st.integers() | st.binary(), lambda key: st.lists(key, max_size=3).map(tuple)
)


def _lists(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    # more than one: [1] is a charlist to a reader that comes from the wire, but not from encode
    maps = st.dictionaries(KEY, inner, max_size=4)
    return st.lists(inner, max_size=5) | st.lists(inner, max_size=5).map(tuple) | maps


TERM = st.recursive(LEAF, _lists, max_leaves=20)


@given(TERM)
def test_what_is_encoded_is_decoded_to_the_same(term: Any) -> None:
    data = encode(term)
    assert decode(data) == term
    assert end_of_term(data + b"more", 0) == len(data)
    for end in range(len(data)):
        with pytest.raises(BadTerm):
            decode(data[:end])


@pytest.mark.parametrize(
    ("term", "came_back"),
    [
        (True, Atom("true")),
        (False, Atom("false")),
        (None, Atom("undefined")),
        ("", []),
        ("\u20ac", [0x20AC]),
        ("x" * 65_536, [120] * 65_536),
        ({(Atom("a"),): [True]}, {(Atom("a"),): [Atom("true")]}),
    ],
    ids=lambda value: repr(value)[:12],
)
def test_what_erlang_has_no_own_word_for(term: Any, came_back: Any) -> None:
    assert decode(encode(term)) == came_back


def test_an_atom_equals_its_text_and_shows_what_it_is() -> None:
    assert decode(encode(Atom("ok"))) == "ok"
    assert type(decode(encode(Atom("true")))) is Atom
    assert repr((Atom("ok"), "ok")) == "(Atom('ok'), 'ok')"


def test_what_is_opaque_can_be_compared_with_anything_and_sent_back() -> None:
    ours = terms.pid("a@b", 1, 2), terms.reference("a@b", 3, 4)
    pid, reference = decode(encode(ours))
    assert (pid, reference) == ours
    assert len({pid, reference, *ours}) == 2
    assert pid != "a"
    assert ("a", pid) != (pid, "a")
    improper = b"\x83l\0\0\0\1a\1a\2"
    bits = b"\x83M\0\0\0\1\3\xa0"
    for data in (improper, bits):
        term = decode(data)
        assert isinstance(term, Opaque)
        assert encode(term) == data


@pytest.mark.parametrize(
    "term",
    [
        *(math.nan, math.inf, object(), {1, 2}, Atom("a" * 256), Atom("\ud800")),
        [[object()]],
    ],
    ids=lambda term: type(term).__name__,
)
def test_what_is_no_term_is_not_sent(term: Any) -> None:
    with pytest.raises(BadTerm):
        encode(term)


def test_a_nesting_without_end_is_not_sent() -> None:
    term: list[Any] = []
    term.append(term)
    with pytest.raises(BadTerm):
        encode(term)


@pytest.mark.parametrize(
    ("term", "words"),
    [
        (Atom("a"), "a"),
        ("abc", "abc"),
        (b"\xc3\xa4", "ä"),
        ([0x20AC, 97], "\u20aca"),
        ([], ""),
        (b"\xff", "\ufffd"),
    ],
)
def test_text_of_an_atom_a_charlist_and_a_binary(term: Any, words: str) -> None:
    assert text(term) == words
    assert type(text(term)) is str


@pytest.mark.parametrize("term", [1, (), [[]], [-1], [2**40], [Atom("a")], {}])
def test_what_is_no_text_is_told(term: Any) -> None:
    with pytest.raises(BadTerm):
        text(term)


# --- what a hostile peer may send ------------------------------------------------------------


def nested(depth: int) -> bytes:
    return b"\x83" + b"l\0\0\0\1" * depth + b"j" * (depth + 1)


def test_two_hundred_levels_are_read_and_no_more() -> None:
    term = decode(nested(200))
    for _ in range(200):
        (term,) = term
    assert term == []
    with pytest.raises(BadTerm, match="200 deep"):
        decode(nested(201))
    with pytest.raises(BadTerm, match="200 deep"):
        decode(nested(1_000_000))


def test_an_integer_of_four_kilobytes_is_read_and_no_longer_one() -> None:
    def big(size: int) -> bytes:
        return b"\x83o" + struct.pack(">IB", size, 1) + b"\xff" * size

    assert decode(big(4096)) == -(2 ** (8 * 4096) - 1)
    with pytest.raises(BadTerm, match="4096 bytes"):
        decode(big(4097))


def test_an_empty_charlist_is_the_empty_list_also_as_a_tail_and_in_a_key() -> None:
    """No node writes one; Erlang reads it so."""
    assert decode(b"\x83k\0\0") == []
    assert decode(b"\x83t\0\0\0\1h\2k\0\0jj") == {((), ()): []}
    data = b"\x83l\0\0\0\1s\1kk\0\0"
    assert decode(data) == [Atom("k")]
    assert encode(decode(data)) == b"\x83l\0\0\0\1w\1kj"


HOSTILE = {
    "compressed": b"\x83P\x40\0\0\0" + zlib.compress(bytes(2**20)),
    "an atom of the cache": b"\x83N\0",
    "a reference to an atom cache": b"\x83R\0",
    "local": b"\x83y" + bytes(8),
    "an old float": b"\x83c" + b"1.0".ljust(31, b"\0"),
    "an old fun": b"\x83u" + bytes(20),
    "four thousand million elements": b"\x83l\xff\xff\xff\xffj",
    "a tuple of as many": b"\x83i\xff\xff\xff\xffj",
    "a map of as many": b"\x83t\xff\xff\xff\xffj",
    "a binary of as many": b"\x83m\xff\xff\xff\xffx",
    "a fun shorter than its length": b"\x83p\0\0\0\0",
    "a fun whose name is a number": b"\x83qa\1a\1a\1",
    "a pid whose node is a number": b"\x83X" + b"a\1" + bytes(12),
    "an atom that is no UTF-8": b"\x83w\2\xc3\x28",
    "an atom of 65,535 bytes": b"\x83v\xff\xff" + b"a" * 65_535,
    "a bitstring of 9 bits a byte": b"\x83M\0\0\0\1\x09x",
    "not a number": b"\x83F\x7f\xf8" + bytes(6),
    "another version": b"\x82j",
    "nothing": b"",
    "a version alone": b"\x83",
    "two terms": b"\x83jj",
    "a map in a map's key": b"\x83t\0\0\0\1t\0\0\0\0j",
    "keys that are one": b"\x83t\0\0\0\2a\1jF" + struct.pack(">d", 1.0) + b"j",
    "keys that are one, as text": b"\x83t\0\0\0\2w\1ajk\0\1aj",
    "keys that are one, deeper": b"\x83l\0\0\0\1t\0\0\0\2a\1jw\4truej" + b"a\1",
    "the same key twice": b"\x83t\0\0\0\2a\1ja\1j",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_bytes_end_in_our_own_error(name: str) -> None:
    with pytest.raises(BadTerm):
        decode(HOSTILE[name])


@given(st.binary(max_size=300).map(lambda data: b"\x83" + data))
@example(b"\x83" + b"h\1" * 199 + b"j")
def test_no_bytes_raise_anything_else(data: bytes) -> None:
    try:
        decode(data)
    except BadTerm:
        pass


@given(TERM, st.data())
def test_no_byte_that_is_changed_raises_anything_else(term: Any, draw: st.DataObject) -> None:
    data = bytearray(encode(term))
    for _ in range(draw.draw(st.integers(1, 4))):
        data[draw.draw(st.integers(1, len(data) - 1))] = draw.draw(st.integers(0, 255))
    try:
        decode(bytes(data))
    except BadTerm:
        pass


@pytest.mark.parametrize(
    "data",
    [
        b"\x83l" + struct.pack(">I", 2**23) + b"j" * (2**23 + 1),
        b"\x83i" + struct.pack(">I", 2**22) + b"h\0" * 2**22,
        nested(2**20),
    ],
    ids=["empty lists", "empty tuples", "nested lists"],
)
def test_what_would_take_a_gigabyte_is_refused_before_it_is_built(data: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(BadTerm):
            decode(data)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_the_most_that_is_read_takes_little_memory() -> None:
    part = 25  # of it is measured: that takes long
    count = terms.MAX_TERMS // part
    data = b"\x83l" + struct.pack(">I", count) + b"j" * (count + 1)
    tracemalloc.start()
    try:
        assert len(decode(data)) == count
        assert tracemalloc.get_traced_memory()[1] < 64 * 2**20 / part
    finally:
        tracemalloc.stop()
