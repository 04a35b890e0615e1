"""Checks a release's tarball as it streams by, before `tar` sees a byte of it. Sans-IO.

Uncompressed bytes go in by `feed`, and what may be given to `tar -x` comes out: file data as it
is, and headers that were built here. tar never sees a header that we did not write, so the two
cannot read one differently; whatever is not named below is not in what comes out.

1. Every member is a directory, a regular file, a hard link or a symlink. Owners, times but mtime,
   extended attributes and ACLs are dropped: the release belongs to the user who deploys it.
2. Modes are those of the archive, without group and other write, always with owner read and
   write; setuid, setgid and sticky are refused.
3. Every name lies below the root, with no `..`; no name is given twice, but for directories; none
   lies beyond a link or a file, whichever of the two comes first.
4. A hard link names a regular file that came before it. A symlink is relative and resolves, in
   the finished tree, to a place within it.
5. The archive ends with two blocks of zeros, and nothing but zeros follows.
6. Counts, sizes and lengths stay within `Limits`; memory is bounded by them too.
7. `required` members are there, and no member has the name of our own marker.

What is found out only at the end (4, 5, 7) has been unpacked by then: the folder must be a staging
folder that is thrown away unless `finish` returned.
"""

from __future__ import annotations

from collections.abc import Collection
from enum import Enum
from typing import Literal, NamedTuple, NoReturn

from deployex_cli.errors import PackageError
from deployex_cli.layout import tar_format as tar
from deployex_cli.layout.tar_names import NameRefused, NameTree, check_text, normalise, show

OURS = ".deployex"  # what the names of our marker and our copies begin with
CAPTURE_LIMIT = 64 * 1024  # bytes of one captured member
_META_LIMIT = 1024 * 1024  # bytes of one PAX header; extended attributes can make it large
_TAIL_LIMIT = 4 * 1024 * 1024  # bytes of zeros after the end: tar fills up a record, 10 KiB or more

# PAX keywords that change what the data means. All others that are not used here (atime, uid,
# comment, SCHILY.xattr.*, LIBARCHIVE.*, ...) say nothing about names or data and are dropped.
_PAX_REFUSED = (b"GNU.sparse.", b"GNU.volume.", b"GNU.dumpdir", b"SCHILY.realsize", b"SUN.holes")
_PAX_OF_ONE_MEMBER = (b"path", b"linkpath", b"size")


class Limits(NamedTuple):
    """What an archive may cost at most."""

    max_entries: int = 100_000  # members, and folders that exist only as a part of a path
    max_unpacked_bytes: int = 4 * 1024**3
    max_path_bytes: int = 1024  # of one name or link target
    max_names_bytes: int = 16 * 1024**2  # of all of them: they are kept in memory


class Required(NamedTuple):
    """A member that makes the archive a release: `bin/{app}`, or Gleam's `erlang-shipment`."""

    path: str
    kind: Literal["executable", "directory"]  # executable: a regular file with its owner's x bit


class Summary(NamedTuple):
    """What a whole archive holds."""

    entries: int  # members, directories and links included
    unpacked_bytes: int  # of file data
    disk_bytes: int  # the same in whole blocks, and one block for each directory
    inodes: int
    captured: dict[str, bytes]


class _State(Enum):
    HEADER = "between members"
    BODY = "in a member's data"
    PADDING = "in the rest of a block"
    ONE_ZERO_BLOCK = "in the end mark"
    ENDED = "after the end mark"
    REFUSED = "refused"


class TarGuard:
    """One archive's check: `feed` until the bytes end, then `finish`."""

    def __init__(
        self,
        limits: Limits = Limits(),  # noqa: B008 (frozen)
        *,
        required: Collection[Required] = (),
        capture: Collection[str] = (),
        block_size: int = 4096,
        what: str = "the tarball",
    ) -> None:
        """`capture` names small members whose content the summary shall hold.

        `block_size` (bytes) is that of the file system, for `disk_bytes`. `what` begins every
        message, and should name the file, the app and the version.
        """
        self._limits = limits
        self._required = tuple(required)
        self._capture = {name.encode(): name for name in capture}
        self._block_size = block_size
        self.what = what

        self._state = _State.HEADER
        self._refusal: PackageError | None = None
        self._partial = bytearray()  # of a header that came in pieces
        self._body_left = 0
        self._padding_left = 0
        self._forwarding = False
        self._collected: bytearray | None = None  # the body so far, of a PAX header or a capture
        self._collecting = b""  # which: a header's type, or a captured member's name
        self._tail = 0

        self._long_name: bytes | None = None
        self._long_link: bytes | None = None
        self._pax: dict[bytes, bytes] | None = None
        self._pax_global: dict[bytes, bytes] = {}

        self._tree = NameTree(limits.max_names_bytes)
        self._captured: dict[str, bytes] = {}
        self._member = b""
        self._entries = 0
        self._headers = 0  # of members, and global ones
        self._spent_bytes = 0  # what counts against max_unpacked_bytes: data and PAX headers
        self._unpacked_bytes = 0
        self._disk_bytes = 0

    def feed(self, data: bytes | bytearray | memoryview) -> list[bytes | memoryview]:
        """Given the next bytes of the archive, return the next buffers for tar, in order.

        Those of file data are slices of `data`: use them before it changes. Raise PackageError as
        soon as something must not be unpacked; nothing of that member has been returned then.
        """
        if self._refusal is not None:
            raise self._refusal
        view = memoryview(data)
        end = len(view)
        out: list[bytes | memoryview] = []
        position = 0
        try:
            while position < end:
                if self._state is _State.BODY:
                    position = self._take_body(view, position, out)
                elif self._state is _State.PADDING:
                    # What stands there may be anything; tar gets zeros.
                    taken = min(self._padding_left, end - position)
                    self._padding_left -= taken
                    position += taken
                    if not self._padding_left:
                        self._state = _State.HEADER
                elif self._state is _State.ENDED:
                    self._take_tail(view[position:])
                    position = end
                elif not self._partial and end - position >= tar.BLOCK:
                    self._take_block(bytes(view[position : position + tar.BLOCK]), out)
                    position += tar.BLOCK
                else:
                    taken = min(tar.BLOCK - len(self._partial), end - position)
                    self._partial += view[position : position + taken]
                    position += taken
                    if len(self._partial) == tar.BLOCK:
                        block = bytes(self._partial)
                        self._partial.clear()
                        self._take_block(block, out)
        except (tar.FormatError, NameRefused) as error:
            self._refuse(str(error))
        return out

    def finish(self) -> Summary:
        """Say that the bytes have ended, and return what they held.

        Raise PackageError if the archive is not complete, a link leaves it, or a required member
        is missing.
        """
        if self._refusal is not None:
            raise self._refusal
        if self._state is not _State.ENDED:
            where = self._state.value if not self._partial else "in a header"
            self._fail(f"it is cut short: it ends {where}{self._after()}, without its end mark")
        if not self._entries:
            self._fail("it holds nothing")
        try:
            self._tree.check_symlinks()
        except NameRefused as error:
            self._fail(str(error))
        for required in self._required:
            self._check_required(required)
        return self.so_far()

    def so_far(self) -> Summary:
        """Return what the members seen until now hold; what `finish` checks is not checked."""
        return Summary(
            self._entries,
            self._unpacked_bytes,
            self._disk_bytes + self._tree.directories * self._block_size,
            len(self._tree),
            dict(self._captured),
        )

    # Between bytes and members

    def _take_block(self, block: bytes, out: list[bytes | memoryview]) -> None:
        if not block[0] and not block.strip(b"\0"):
            if self._pending:
                self._fail(f"it ends after a long name or a PAX header of nothing{self._after()}")
            if self._state is _State.ONE_ZERO_BLOCK:
                out.append(tar.ZEROS)
                self._state = _State.ENDED
            else:
                self._state = _State.ONE_ZERO_BLOCK
            return
        if self._state is _State.ONE_ZERO_BLOCK:
            self._fail(f"there is something after the end mark{self._after()}")
        self._padding_left = 0
        try:
            header = tar.parse_header(block)
        except tar.FormatError as error:
            self._fail(f"the member{self._after() or ' that comes first'} is unreadable: {error}")
        if header.type in tar.META_TYPES:
            self._begin_meta(header)
        else:
            self._begin_member(header, out)

    def _take_body(self, view: memoryview, position: int, out: list[bytes | memoryview]) -> int:
        piece = view[position : position + self._body_left]
        self._body_left -= len(piece)
        if self._forwarding:
            out.append(piece)
        if self._collected is not None:
            self._collected += piece
        if not self._body_left:
            self._end_body(out)
        return position + len(piece)

    def _take_tail(self, piece: memoryview) -> None:
        self._tail += len(piece)
        if self._tail > _TAIL_LIMIT:
            self._fail(f"more than {_TAIL_LIMIT // 1024**2} MiB of zeros follow its end mark")
        if bytes(piece).strip(b"\0"):
            self._fail(f"there is something after the end mark{self._after()}")

    def _begin_body(self, size: int, *, forward: bool) -> None:
        self._body_left = size
        self._padding_left = tar.padding(size)
        self._forwarding = forward
        self._state = _State.BODY

    def _end_body(self, out: list[bytes | memoryview]) -> None:
        if self._padding_left:
            self._state = _State.PADDING
            if self._forwarding:
                out.append(tar.ZEROS[: self._padding_left])
        else:
            self._state = _State.HEADER
        if self._collected is not None:
            collected = bytes(self._collected)
            self._collected = None
            if self._forwarding:
                self._captured[self._capture[self._collecting]] = collected
            else:
                self._end_meta(self._collecting, collected)

    # Headers about the next member

    @property
    def _pending(self) -> bool:
        return any(told is not None for told in (self._long_name, self._long_link, self._pax))

    def _begin_meta(self, header: tar.Header) -> None:
        limit = _META_LIMIT
        if header.type in (tar.GNU_LONG_NAME, tar.GNU_LONG_LINK):
            limit = self._limits.max_path_bytes + 1
        if not 0 < header.size <= limit:
            self._fail(
                f"a long name or PAX header{self._after()} is {header.size} bytes long,"
                f" the limit is {limit}"
            )
        if header.type == tar.PAX_GLOBAL:
            self._count_header()
        self._spend(header.size)
        self._collected = bytearray()
        self._collecting = header.type
        self._begin_body(header.size, forward=False)

    def _end_meta(self, kind: bytes, payload: bytes) -> None:
        if kind == tar.GNU_LONG_NAME and self._long_name is None:
            self._long_name = payload.rstrip(b"\0")
        elif kind == tar.GNU_LONG_LINK and self._long_link is None:
            self._long_link = payload.rstrip(b"\0")
        elif kind == tar.PAX_NEXT and self._pax is None:
            self._pax = self._parse_pax(payload)
        elif kind == tar.PAX_GLOBAL:
            records = self._parse_pax(payload)
            if any(keyword in records for keyword in _PAX_OF_ONE_MEMBER):
                self._fail("a global PAX header gives all members one name or size")
            # Nothing else of them is used here, and what is not used is not kept.
            if b"mtime" in records:
                self._pax_global[b"mtime"] = records[b"mtime"]
        else:
            self._fail(f"a member{self._after()} has two long names or two PAX headers")

    def _parse_pax(self, payload: bytes) -> dict[bytes, bytes]:
        try:
            records = tar.parse_pax(payload)
        except tar.FormatError as error:
            self._fail(f"the PAX header{self._after()} is unreadable: {error}")
        for keyword in records:
            if keyword.startswith(_PAX_REFUSED):
                self._fail(
                    f"a PAX header{self._after()} says {show(keyword)}:"
                    " sparse files and archives of several volumes are refused"
                )
        return records

    # Members

    def _begin_member(self, header: tar.Header, out: list[bytes | memoryview]) -> None:
        name, linkname, size, mtime = header.name, header.linkname, header.size, header.mtime
        if self._long_name is not None:
            name = self._long_name
        if self._long_link is not None:
            linkname = self._long_link
        pax = self._pax
        if pax is not None or self._pax_global:
            pax = {**self._pax_global, **(pax or {})}
            if (b"path" in pax and self._long_name is not None) or (
                b"linkpath" in pax and self._long_link is not None
            ):
                self._fail(f"a member{self._after()} has a GNU long name and a PAX one")
            name = pax.get(b"path", name)
            linkname = pax.get(b"linkpath", linkname)
        self._long_name = self._long_link = self._pax = None
        self._member = name
        if pax is not None:
            if b"size" in pax:
                size = tar.pax_size(pax[b"size"])
            if b"mtime" in pax:
                mtime = tar.pax_mtime(pax[b"mtime"])

        kind = header.type
        if kind == tar.REGULAR and header.v7 and name.endswith(b"/"):
            kind = tar.DIRECTORY
        if kind not in (tar.REGULAR, tar.DIRECTORY, tar.HARD_LINK, tar.SYMLINK):
            self._refuse(f"it is {tar.REFUSED_TYPES.get(kind, f'of an unknown type, {kind!r}')}")
        path = normalise(name, self._limits.max_path_bytes)
        if kind != tar.DIRECTORY and name.endswith((b"/", b"/.")):
            self._refuse("its name is that of a directory, and it is none")
        if header.mode & 0o7000 or header.mode < 0:
            self._refuse("it is setuid, setgid or sticky; take the bits away with chmod ug-s,-t")
        if size < 0 or (size and kind != tar.REGULAR):
            self._refuse(f"it has a size of {size} bytes, which cannot be")
        if OURS.encode() in path.partition(b"/")[0]:  # or a temporary name of ours
            self._refuse("its name is reserved for deployex's own files")
        self._entries += 1
        if not path:
            # tar must not give the staging folder another mode.
            if kind != tar.DIRECTORY:
                self._refuse("it takes the place of the root folder")
        elif kind == tar.REGULAR:
            self._begin_file(path, header.mode, size, mtime, out)
        elif kind == tar.DIRECTORY:
            self._tree.add_directory(path)
            mode = header.mode & 0o755 | 0o700
            out.append(tar.build_header(path + b"/", kind, mode, 0, mtime))
        elif kind == tar.HARD_LINK:
            target = normalise(linkname, self._limits.max_path_bytes)
            mode = self._tree.add_hard_link(path, target)
            out.append(tar.build_header(path, kind, mode, 0, mtime, target))
        else:
            check_text(linkname, self._limits.max_path_bytes)
            self._tree.add_symlink(path, linkname)
            out.append(tar.build_header(path, kind, 0o777, 0, mtime, linkname))
        self._count_header()

    def _begin_file(
        self, path: bytes, mode: int, size: int, mtime: int, out: list[bytes | memoryview]
    ) -> None:
        mode = mode & 0o755 | 0o600
        if not mode & 0o100:
            mode &= ~0o111
        self._tree.add_file(path, mode)
        self._spend(size)
        self._unpacked_bytes += size
        self._disk_bytes += size + -size % self._block_size
        if path in self._capture:
            if size > CAPTURE_LIMIT:
                self._refuse(f"it is {size} bytes long, the limit is {CAPTURE_LIMIT}")
            self._collected = bytearray()
            self._collecting = path
        out.append(tar.build_header(path, tar.REGULAR, mode, size, mtime))
        self._begin_body(size, forward=True)
        if not size:
            self._end_body(out)

    # What is checked at the end

    def _check_required(self, required: Required) -> None:
        path = required.path.strip("/")
        if required.kind == "directory":
            if not self._tree.is_directory(path.encode()):
                self._fail(f"it is no release of this app: it has no folder {path!r}")
            return
        mode = self._tree.file_mode(path.encode())
        if mode is None:
            self._fail(f"it is no release of this app: it has no file {path!r}")
        if not mode & 0o100:
            self._fail(f"it cannot be started: {path!r} is not executable")

    # Limits and errors

    def _count_header(self) -> None:
        self._headers += 1
        if max(self._headers, len(self._tree)) > self._limits.max_entries:
            self._fail(f"it has more than {self._limits.max_entries} members{self._after()}")

    def _spend(self, size: int) -> None:
        self._spent_bytes += size
        if self._spent_bytes > self._limits.max_unpacked_bytes:
            self._fail(
                f"it is larger, unpacked, than {self._limits.max_unpacked_bytes} bytes"
                f"{self._after()}"
            )

    def _after(self) -> str:
        return f" after {show(self._member)}" if self._member else ""

    def _refuse(self, why: str) -> NoReturn:
        self._fail(f"the member {show(self._member)} is refused: {why}")

    def _fail(self, why: str) -> NoReturn:
        self._state = _State.REFUSED
        self._refusal = PackageError(f"{self.what}: {why}")
        raise self._refusal
