"""External Term Format: erlang_py's codec behind a scanner, with Python values of our own.

erlang_py trusts what it reads: nested lists end in RecursionError, a compressed term is inflated
whatever its size. So an iterative scanner looks at every byte first, and only our own error gets
out. The only module that knows erlang_py.
"""

from __future__ import annotations

from struct import error as StructError
from struct import unpack_from
from typing import Any

import erlang

from deployex_cli.errors import BadTerm

Term = Any  # Atom | int | float | str (charlist) | bytes (binary) | tuple | list | dict | Opaque

MAX_DEPTH = 200
MAX_BIG = 4096  # bytes of an integer: its decoding takes quadratic time
MAX_TERMS = 250_000  # in one message; each costs some 100 bytes of memory
_MAX_ATOM = 255 * 4  # bytes: 255 characters in UTF-8
_VERSION = 131

# tags (ERTS, External Term Format); those of nodes before OTP 23 are not among them
_NEW_FLOAT, _BIT_BINARY, _NEW_PID, _NEW_PORT, _NEWER_REFERENCE = 70, 77, 88, 89, 90
_SMALL_INTEGER, _INTEGER, _ATOM, _SMALL_TUPLE, _LARGE_TUPLE, _NIL = 97, 98, 100, 104, 105, 106
_STRING, _LIST, _BINARY, _SMALL_BIG, _LARGE_BIG, _NEW_FUN = 107, 108, 109, 110, 111, 112
_EXPORT, _SMALL_ATOM, _MAP, _ATOM_UTF8, _SMALL_ATOM_UTF8, _V4_PORT = 113, 115, 116, 118, 119, 120

_FIXED = {_SMALL_INTEGER: 1, _INTEGER: 4, _NEW_FLOAT: 8, _NIL: 0}  # tag -> bytes after it
_CONTAINERS = (_SMALL_TUPLE, _LIST, _MAP, _LARGE_TUPLE)
_SHORT_ATOMS, _LONG_ATOMS = (_SMALL_ATOM_UTF8, _SMALL_ATOM), (_ATOM_UTF8, _ATOM)
_AFTER_ATOM = {_NEW_PID: 12, _NEW_PORT: 8, _V4_PORT: 12}  # tag -> bytes after the node's atom


_ErlangAtom, _ErlangBinary, _ErlangList = (
    erlang.OtpErlangAtom,
    erlang.OtpErlangBinary,
    erlang.OtpErlangList,
)


class Atom(str):
    """An Erlang atom. It equals the text that it holds."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"Atom({str.__repr__(self)})"


class Opaque:
    """A pid, port, reference, fun, bitstring or improper list: to be compared and sent back."""

    __slots__ = ("raw",)

    def __init__(self, raw: bytes) -> None:
        self.raw = raw  # as it is encoded, from its tag on

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Opaque) and other.raw == self.raw

    def __hash__(self) -> int:
        return hash(self.raw)

    def __repr__(self) -> str:
        return f"Opaque({self.raw!r})"


def pid(node: str, number: int, creation: int) -> Opaque:
    """A pid of ours, NEW_PID_EXT."""
    tail = number.to_bytes(4, "big") + bytes(4) + creation.to_bytes(4, "big")
    return Opaque(bytes([_NEW_PID]) + _atom_of(node).binary() + tail)


def reference(node: str, number: int, creation: int) -> Opaque:
    """A reference of ours, NEWER_REFERENCE_EXT of three words."""
    head = bytes([_NEWER_REFERENCE, 0, 3]) + _atom_of(node).binary()
    return Opaque(head + creation.to_bytes(4, "big") + number.to_bytes(12, "little"))


def text(term: Term) -> str:
    """The text of an atom, a charlist or a binary. Raises BadTerm for anything else."""
    if isinstance(term, str):
        return str.__str__(term)
    try:
        if isinstance(term, bytes):
            return term.decode("utf-8", "replace")
        if isinstance(term, list):
            return "".join(map(chr, term))
    except (TypeError, ValueError, OverflowError):
        pass
    raise BadTerm("a term that is no text stands where text was expected")


# --- encoding ---------------------------------------------------------------------------------


def encode(term: Term) -> bytes:
    """The term in External Term Format. Raises BadTerm.

    Atom: atom; True, False, None: atoms true, false, undefined; str: charlist; bytes: binary.
    """
    try:
        encoded = erlang.term_to_binary(_to_erlang(term))
    except BadTerm:
        raise
    except Exception as error:  # erlang_py has errors of many families
        raise BadTerm(f"no Erlang term: {type(error).__name__}") from None
    assert isinstance(encoded, bytes)
    return encoded


def encoded(term: Term) -> Opaque:
    """The term as one that need not be encoded again."""
    return Opaque(encode(term)[1:])


def _to_erlang(term: Term) -> Any:
    if isinstance(term, Atom):
        return _atom_of(term)
    if isinstance(term, str):
        try:
            return term.encode("latin-1")
        except UnicodeEncodeError:
            return [ord(character) for character in term]
    if isinstance(term, bytes):
        return erlang.OtpErlangBinary(term)
    if term is None or isinstance(term, int):
        return term
    if isinstance(term, float):
        if term - term != 0.0:
            raise BadTerm("Erlang has no such float")
        return term
    if isinstance(term, tuple):
        return tuple(map(_to_erlang, term))
    if isinstance(term, list):
        return list(map(_to_erlang, term))
    if isinstance(term, dict):
        return {_to_erlang(key): _to_erlang(value) for key, value in term.items()}
    if isinstance(term, Opaque):
        return erlang.OtpErlangFunction(term.raw[0], term.raw[1:])  # tag and bytes as they are
    raise BadTerm(f"no Erlang term: {type(term).__name__}")


def _atom_of(name: str) -> Any:
    if len(name) > 255:
        raise BadTerm("an atom of more than 255 characters")
    return erlang.OtpErlangAtom(str.__str__(name))


# --- decoding ---------------------------------------------------------------------------------


def decode(data: bytes) -> Term:
    """The one term that `data` holds. Raises BadTerm, whatever the bytes.

    true, false and undefined are atoms like others. A charlist is a str, but a list when it is
    empty, holds a code point above 255, or is longer than 65,535.
    """
    end, pairs = _scan(data, 0)
    if end != len(data):
        raise BadTerm("bytes behind an Erlang term")
    converter = _Converter()
    try:
        term = converter.convert(erlang.binary_to_term(data))
    except BadTerm:
        raise
    except Exception as error:  # erlang_py has errors of many families
        raise BadTerm(f"no Erlang term: {type(error).__name__}") from None
    if converter.pairs != pairs:
        raise BadTerm("a map with two keys that are one in Python, such as 1 and 1.0")
    return term


def end_of_term(data: bytes, at: int) -> int:
    """Where the term that begins at `at` ends. Raises BadTerm."""
    return _scan(data, at)[0]


class _Converter:
    """erlang_py's values -> ours."""

    def __init__(self) -> None:
        self.pairs = 0  # of all maps, to tell whether some were lost

    def convert(self, term: Any) -> Term:
        kind = type(term)
        if kind is _ErlangAtom:
            name = term.value
            return Atom(name if isinstance(name, str) else name.decode("latin-1"))
        if kind is bytes:
            return term.decode("latin-1") or []
        if kind is int:
            return term
        if kind is float:
            if term - term != 0.0:
                raise BadTerm("a float that Erlang does not have")
            return term
        if kind is tuple:
            return tuple([self.convert(item) for item in term])
        if kind is list:
            return [self.convert(item) for item in term]
        if kind is _ErlangBinary and term.bits == 8:
            return term.value
        if kind is bool:
            return _TRUE if term else _FALSE
        if term is None:
            return _UNDEFINED
        if kind is dict:
            found = {self.key(key): self.convert(value) for key, value in term.items()}
            self.pairs += len(found)
            return found
        if kind is _ErlangList:
            items = [self.convert(item) for item in term.value]  # they may hold maps
            if items and items[-1] == []:
                return items[:-1]  # its tail is an empty charlist: a list like others
        return Opaque(term.binary())

    def key(self, term: Any) -> Term:
        """A map's key; a list in it becomes a tuple."""
        if type(term) is _ErlangList and not term.improper:
            return tuple(map(self.key, term.value))
        if type(term) is tuple:
            return tuple(map(self.key, term))
        if isinstance(term, dict):
            raise BadTerm("a map in a map's key")
        if type(term) is bytes and not term:
            return ()
        return self.convert(term)


_TRUE, _FALSE, _UNDEFINED = Atom("true"), Atom("false"), Atom("undefined")


def _scan(data: bytes, at: int) -> tuple[int, int]:
    """Where a term ends (its version byte stands at `at`), and how many pairs its maps have.

    Everything is checked that could make its decoding fail late, take long or take much memory.
    """
    size = len(data)
    if data[at : at + 1] != bytes([_VERSION]):
        raise BadTerm("no Erlang term")
    at += 1
    pairs = 0
    budget = MAX_TERMS
    left = 1  # terms to come in this container
    outer: list[int] = []  # and in those around it
    try:
        while True:
            while left == 0:
                if not outer:
                    return at, pairs
                left = outer.pop()
            left -= 1
            budget -= 1
            tag = data[at]
            at += 1
            if tag in _FIXED:
                at += _FIXED[tag]
            elif tag in _SHORT_ATOMS:
                at += 1 + data[at]
            elif tag == _STRING:
                at += 2 + unpack_from(">H", data, at)[0]
            elif tag == _BINARY:
                at += 4 + unpack_from(">I", data, at)[0]
            elif tag in _LONG_ATOMS:
                length = unpack_from(">H", data, at)[0]
                if length > _MAX_ATOM:
                    raise BadTerm("an atom that is too long")
                at += 2 + length
            elif tag in _CONTAINERS:
                if tag == _SMALL_TUPLE:
                    count = data[at]
                    at += 1
                else:
                    count = unpack_from(">I", data, at)[0]
                    at += 4
                    if tag == _LIST:
                        count += 1  # its tail
                    elif tag == _MAP:
                        pairs += count
                        count *= 2
                if count > size - at:
                    raise BadTerm("an Erlang term that is cut short")
                outer.append(left)
                left = count
                if len(outer) > MAX_DEPTH:
                    raise BadTerm(f"an Erlang term that is nested more than {MAX_DEPTH} deep")
            elif tag == _SMALL_BIG:
                at += 2 + data[at]
            elif tag == _LARGE_BIG:
                length = unpack_from(">I", data, at)[0]
                if length > MAX_BIG:
                    raise BadTerm(f"an integer of more than {MAX_BIG} bytes")
                at += 5 + length
            elif tag == _NEW_FUN:
                length = unpack_from(">I", data, at)[0]
                if length < 4:
                    raise BadTerm("a fun that is none")
                at += length
            elif tag == _BIT_BINARY:
                length, bits = unpack_from(">IB", data, at)
                if not (1 <= bits <= 8 and length):
                    raise BadTerm("a bitstring that is none")
                at += 5 + length
            elif tag in _AFTER_ATOM:
                at = _skip_atom(data, at) + _AFTER_ATOM[tag]
            elif tag == _NEWER_REFERENCE:
                words = unpack_from(">H", data, at)[0]
                at = _skip_atom(data, at + 2) + 4 + 4 * words
                if not 1 <= words <= 5:
                    raise BadTerm("a reference that is none")
            elif tag == _EXPORT:
                at = _skip_atom(data, _skip_atom(data, at))
                if data[at] != _SMALL_INTEGER:
                    raise BadTerm("a fun that is none")
                at += 2
            else:
                raise BadTerm(f"tag {tag} in an Erlang term, which we do not read")
            if at > size:
                raise BadTerm("an Erlang term that is cut short")
            if budget < 0:
                raise BadTerm(f"a message of more than {MAX_TERMS} terms")
    except (IndexError, StructError):
        raise BadTerm("an Erlang term that is cut short") from None


def _skip_atom(data: bytes, at: int) -> int:
    tag = data[at]
    if tag in _SHORT_ATOMS:
        return at + 2 + data[at + 1]
    if tag in _LONG_ATOMS:
        return at + 3 + int(unpack_from(">H", data, at + 1)[0])
    raise BadTerm("a node's name is missing in an Erlang term")
