"""The tar format as bytes: headers in (v7, ustar, GNU, PAX), canonical GNU headers out.

Nothing here judges a name or keeps state; `tar_guard` does. A malformed block is a `FormatError`
with one lower-case sentence, which the guard turns into a PackageError that names the member.
Sources: POSIX.1-2017, pax, "ustar Interchange Format" and "pax Header Block"; GNU tar manual,
"Basic Tar Format". Sizes are bytes, times are whole seconds since 1970.
"""

from __future__ import annotations

import struct
from typing import NamedTuple
from zlib import adler32

BLOCK = 512
ZEROS = bytes(2 * BLOCK)

REGULAR = b"0"
HARD_LINK = b"1"
SYMLINK = b"2"
DIRECTORY = b"5"
GNU_LONG_NAME = b"L"
GNU_LONG_LINK = b"K"
PAX_NEXT = b"x"
PAX_GLOBAL = b"g"
META_TYPES = (GNU_LONG_NAME, GNU_LONG_LINK, PAX_NEXT, PAX_GLOBAL)  # about the members to come

# What the type flags that we refuse stand for; any other one is "of an unknown type".
REFUSED_TYPES = {
    b"3": "a character device",
    b"4": "a block device",
    b"6": "a fifo",
    b"D": "a GNU dump directory",
    b"M": "the rest of a file on an earlier volume",
    b"N": "an old GNU long name",
    b"S": "a sparse file",
    b"V": "a volume label",
    b"X": "a Solaris extended header",
}

_IN = struct.Struct("100s8s8s8s12s12s8sc100s8s32s32s8s8s155s12x")
_OUT = struct.Struct("100s8s8s8s12s12s8sc100s8s247x")
_MAGIC_USTAR = b"ustar\0"
_MAGIC_GNU = b"ustar  \0"
_LARGEST_OCTAL = 0o77777777777  # eleven digits: 8 GiB less one byte


class FormatError(Exception):
    """A block that is no header, or a header that says something impossible."""


class Header(NamedTuple):
    """One header block as it was read: names are raw bytes, `mode` has its file type bits too."""

    name: bytes
    type: bytes  # one byte; v7's NUL and the "contiguous file" of old are given as REGULAR
    v7: bool  # the type flag was NUL: a name that ends in a slash is a directory
    mode: int
    size: int
    mtime: int
    linkname: bytes


def parse_header(block: bytes) -> Header:
    """Given one block of 512 bytes, return the header in it; raise FormatError if it is none."""
    fields = _IN.unpack(block)
    name, mode, _, _, size, mtime, stored, kind, linkname, magic = fields[:10]
    _verify_checksum(block, stored)
    name = _text(name)
    if magic[:6] == _MAGIC_USTAR:
        prefix = _text(fields[14])
        if prefix:
            name = prefix + b"/" + name
    elif magic != _MAGIC_GNU and magic.strip(b"\0"):
        raise FormatError("its header is of no tar format that is known")
    # In a GNU header the prefix's place holds other things, and in a v7 header nothing.
    return Header(
        name=name,
        type=REGULAR if kind in (b"\0", b"7") else kind,
        v7=kind == b"\0",
        mode=_number(mode),
        size=_number(size),
        mtime=_number(mtime),
        linkname=_text(linkname),
    )


def parse_pax(payload: bytes) -> dict[bytes, bytes]:
    """Given the records of a PAX header, return them by keyword; of a repeated one the last counts.

    Raise FormatError when a record's length, blank, equals sign or newline is not where it must be.
    """
    records: dict[bytes, bytes] = {}
    position = 0
    while position < len(payload):
        blank = payload.find(b" ", position, position + 12)
        digits = payload[position:blank] if blank > 0 else b""
        if not digits.isdigit():
            raise FormatError("a PAX record does not begin with its length")
        end = position + int(digits)
        keyword, equals, value = payload[blank + 1 : end - 1].partition(b"=")
        if end > len(payload) or end <= blank or payload[end - 1 : end] != b"\n":
            raise FormatError("a PAX record is not as long as it says")
        if not keyword or not equals:
            raise FormatError("a PAX record has no keyword")
        records[keyword] = value
        position = end
    return records


def pax_size(value: bytes) -> int:
    """Given the value of a PAX `size`, return it in bytes; raise FormatError if it is no size."""
    if not value.isdigit() or len(value) > 20:
        raise FormatError("its PAX size is no number")
    return int(value)


def pax_mtime(value: bytes) -> int:
    """Given a PAX time ("1700000000.25"), return its whole seconds; raise FormatError if bad."""
    whole, _, fraction = value.removeprefix(b"-").partition(b".")
    if not whole.isdigit() or len(whole) > 20 or (fraction and not fraction.isdigit()):
        raise FormatError("its PAX mtime is no number")
    return -int(whole) if value.startswith(b"-") else int(whole)


def build_header(
    name: bytes, kind: bytes, mode: int, size: int = 0, mtime: int = 0, linkname: bytes = b""
) -> bytes:
    """Return the one or more blocks that stand before a member's data, with no owner in them.

    Names that do not fit are given as GNU long names, which GNU tar, busybox and bsdtar read.
    """
    block = _build_block(name, kind, mode, size, mtime, linkname)
    if len(name) > 99:
        block = _build_long(GNU_LONG_NAME, name) + block
    if len(linkname) > 99:
        block = _build_long(GNU_LONG_LINK, linkname) + block
    return block


def padding(size: int) -> int:
    """Return how many bytes fill up the last block of `size` bytes of data."""
    return -size % BLOCK


def _build_block(
    name: bytes, kind: bytes, mode: int, size: int, mtime: int, linkname: bytes
) -> bytes:
    block = _OUT.pack(
        name[:99],
        b"%07o" % mode,
        b"0000000",
        b"0000000",
        _octal_or_binary(size),
        b"%011o" % min(max(mtime, 0), _LARGEST_OCTAL),
        b" " * 8,
        kind,
        linkname[:99],
        _MAGIC_GNU,
    )
    return b"%b%06o\0 %b" % (block[:148], _byte_sum(block), block[156:])


def _build_long(kind: bytes, name: bytes) -> bytes:
    size = len(name) + 1
    block = _build_block(b"././@LongLink", kind, 0o644, size, 0, b"")
    return block + name + bytes(1 + padding(size))


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def _octal_or_binary(value: int) -> bytes:
    if value <= _LARGEST_OCTAL:
        return b"%011o" % value
    return b"\x80" + value.to_bytes(11, "big")


def _number(field: bytes) -> int:
    """Read octal digits, or GNU's base 256: the first bit set, the second one the sign."""
    if field[0] & 0x80:
        value = int.from_bytes(field, "big") & ~(0x80 << 8 * (len(field) - 1))
        if field[0] & 0x40:
            value -= 1 << (8 * len(field) - 1)
        return value
    digits = field.partition(b"\0")[0].strip(b" ")
    if digits.strip(b"01234567"):  # int() alone would take "0o17", "+7" and "1_0"
        raise FormatError("a number in its header is not octal")
    return int(digits, 8) if digits else 0


def _verify_checksum(block: bytes, stored: bytes) -> None:
    expected = _number(stored)
    actual = _byte_sum(block) - sum(stored) + 8 * 0x20
    # Some old writers summed signed bytes.
    if actual != expected:
        rest = block[:148] + block[156:]
        if actual - 256 * sum(byte > 127 for byte in rest) != expected:
            raise FormatError("its header's checksum is wrong")


def _byte_sum(block: bytes) -> int:
    """Return the sum of a block's bytes, eight times faster than `sum`.

    The low half of Adler-32 is 1 + the sum modulo 65521, and 256 bytes add up to 65280 at most.
    """
    return (adler32(block[:256]) & 0xFFFF) + (adler32(block[256:]) & 0xFFFF) - 2
