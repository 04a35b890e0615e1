"""Inflates a `.tar.gz` piece by piece: all gzip members of it, each one's checksum verified.

Sans-IO. Everything that is wrong is a `GunzipError` with a lower-case clause that goes after "it".
Source: RFC 1952.
"""

from __future__ import annotations

from collections.abc import Iterator

from isal import igzip_lib

PIECE = 256 * 1024  # bytes that come out at a time: this and the next stage stay in the cache
_MAGIC = b"\x1f\x8b"
# isal can trip over a member's header that comes in pieces (names, header checksum), so that one is
# held back until it is whole in all likelihood. Headers are 10 bytes and a file name.
_HELD_BACK = 4096

_OTHER_MAGIC = {
    b"\x28\xb5\x2f\xfd": "is compressed with zstd",
    b"\xfd7zXZ": "is compressed with xz",
    b"BZh": "is compressed with bzip2",
    b"PK\x03\x04": "is a zip file",
}


class GunzipError(Exception):
    """The bytes are damaged, or something else follows them."""


class NotGzip(GunzipError):
    """The bytes never were a gzip file."""


class CutShort(GunzipError):
    """The bytes ended in the middle of it."""


class Inflater:
    """One gzip file: `feed` each piece of it, then take what `finish` still has."""

    def __init__(self) -> None:
        self._decoder: igzip_lib.IgzipDecompressor | None = None
        self._held = b""
        self._first = True

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield what the next bytes inflate to, PIECE bytes at most at a time.

        Raise GunzipError for damage, and for anything but gzip behind a member; NotGzip for it at
        the beginning.
        """
        if self._decoder is None:
            data = self._held + data
            if len(data) < _HELD_BACK:
                self._held = data
                return
            self._held = b""
        yield from self._inflate(data)

    def finish(self) -> Iterator[bytes]:
        """Yield the rest; raise CutShort if the bytes ended too early, or as `feed` does."""
        held, self._held = self._held, b""
        if not held and self._first:
            raise NotGzip("is empty")
        yield from self._inflate(held)
        if self._decoder is not None:
            raise CutShort("is cut short")

    def _inflate(self, data: bytes) -> Iterator[bytes]:
        try:
            while data or self._decoder is not None:
                if self._decoder is None:
                    self._begin_member(data)
                    assert self._decoder is not None
                piece = self._decoder.decompress(data, PIECE)
                if piece:
                    yield piece
                data = b""
                if self._decoder.eof:
                    data = self._decoder.unused_data
                    self._decoder = None
                elif self._decoder.needs_input:
                    return
        except igzip_lib.error as error:  # type: ignore[misc]  # it has no type hints
            # "Error -6 Incorrect checksum found"
            raise GunzipError(f"is damaged ({str(error).partition(' ')[2]})") from None

    def _begin_member(self, data: bytes) -> None:
        if data[:2] != _MAGIC[: len(data)]:
            if self._first:
                raise NotGzip(describe(data))
            raise GunzipError("has something behind its end that is not gzip")
        self._first = False
        self._decoder = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)


def describe(data: bytes) -> str:
    """Given the beginning of what is no gzip file, return what it is in a clause."""
    for magic, clause in _OTHER_MAGIC.items():
        if data.startswith(magic):
            return f"{clause}, not with gzip"
    if data[257:262] == b"ustar":
        return "is a tar archive that is not compressed"
    beginning = data[:200].decode("utf-8", "replace").strip()
    if beginning and all(char.isprintable() or char.isspace() for char in beginning):
        kind = "a web page or XML" if beginning.startswith("<") else "text"
        return f"is {kind}, not a gzip file; it begins with {' '.join(beginning.split())[:60]!r}"
    return f"is not a gzip file; it begins with the bytes {data[:8].hex(' ')}"
