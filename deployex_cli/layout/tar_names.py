"""The names in a release's tarball: which are refused, which clash, and where links lead.

Pure; names are bytes, relative to the root of the release, whose own name is b"". A name that is
refused is a `NameRefused` with one lower-case sentence.
"""

from __future__ import annotations

_CONTROL = bytes([*range(0x20), 0x7F])
_WITHOUT_CONTROL = bytes(byte for byte in range(256) if byte not in _CONTROL)
_LONGEST_COMPONENT = 255  # NAME_MAX of every file system that a release is unpacked on
_DIRECTORY = -1
_SYMLINK = -2
_MOST_LINKS = 40  # the kernel's own limit on one path (path_resolution(7), ELOOP)


class NameRefused(Exception):
    """A name, or a link's target, that must not be unpacked."""


def show(name: bytes) -> str:
    """Return a name for an error message: quoted, on one line, no longer than a line."""
    text = name.decode("utf-8", "backslashreplace")
    return repr(text if len(text) <= 160 else f"{text[:100]}...{text[-50:]}")


def normalise(name: bytes, longest: int) -> bytes:
    """Given a member's name, return it without `./` and doubled or final slashes.

    The root itself gives b"". Raise NameRefused for an empty, an absolute, a too long name (more
    than `longest` bytes, or 255 in one component), one with `..` or with control characters.
    """
    check_text(name, longest)
    if name[0] == 0x2F:
        raise NameRefused("its path is absolute")
    parts = name.split(b"/")
    if b".." in parts:
        raise NameRefused("its path has a '..' in it")
    if b"" in parts or b"." in parts:
        parts = [part for part in parts if part not in (b"", b".")]
        name = b"/".join(parts)
    if len(name) > _LONGEST_COMPONENT and max(map(len, parts)) > _LONGEST_COMPONENT:
        raise NameRefused(f"a part of its path is longer than {_LONGEST_COMPONENT} bytes")
    return name


def check_text(name: bytes, longest: int) -> None:
    """Raise NameRefused if a name or a target is empty, too long or has control characters."""
    if not name:
        raise NameRefused("its name, or the name that it links to, is empty")
    if len(name) > longest:
        raise NameRefused(f"its path is {len(name)} bytes long, the limit is {longest}")
    if name.translate(None, _WITHOUT_CONTROL):
        raise NameRefused("a path of it has a control character in it")


class NameTree:
    """The tree that an archive's members make, as names alone; memory is bounded by `longest`.

    1. No name is given twice, but for directories. None lies below a file or beyond a link,
       whichever of the two comes first.
    2. A hard link names a regular file that came before it.
    3. Symlinks are resolved as the kernel would, once all of them are known: `..` is the parent of
       where the walk has come to, not of what the text says.
    4. A walk that leaves the root, even to come back, is refused; so is a loop, and a path of more
       than 40 links. What does not exist is walked by its text: a dangling link is allowed.
    Because of 1, a link's own folder is never itself reached by a link.
    """

    def __init__(self, longest: int) -> None:
        """`longest` is how many bytes all names and link targets may have together."""
        self._longest = longest
        self._bytes = 0
        self._nodes: dict[bytes, int] = {b"": _DIRECTORY}  # a regular file's mode, or one of below
        self._targets: dict[bytes, bytes] = {}
        self._resolved: dict[bytes, tuple[bytes, int]] = {}
        self.directories = 0

    def __len__(self) -> int:
        """Return how many inodes the tree takes, at most; folders never named count too."""
        return len(self._nodes) - 1

    def is_directory(self, path: bytes) -> bool:
        """Return whether a member or the path of one made this a directory."""
        return self._nodes.get(path) == _DIRECTORY

    def file_mode(self, path: bytes) -> int | None:
        """Return the mode of the regular file of this name, None if there is none."""
        node = self._nodes.get(path)
        return None if node is None or node < 0 else node

    def add_directory(self, path: bytes) -> None:
        """Add a directory; raise NameRefused by rule 1. So for the others."""
        self._claim(path, _DIRECTORY)

    def add_file(self, path: bytes, mode: int) -> None:
        """Add a regular file with its mode."""
        self._claim(path, mode)

    def add_hard_link(self, path: bytes, target: bytes) -> int:
        """Add a second name of `target` (normalised), and return its mode; rule 2."""
        mode = self.file_mode(target)
        if mode is None:
            raise NameRefused(f"it is a hard link to {show(target)}, which is no earlier file")
        self._claim(path, mode)
        return mode

    def add_symlink(self, path: bytes, target: bytes) -> None:
        """Add a symlink; its target, as it stands in the archive, is judged by `check_symlinks`."""
        if target.startswith(b"/"):
            raise NameRefused(f"it is a link to an absolute path, {show(target)}")
        self._claim(path, _SYMLINK)
        self._remember(target)
        self._targets[path] = target

    def check_symlinks(self) -> None:
        """Raise NameRefused for a symlink that leads out of the tree; rules 3 and 4."""
        for link in self._targets:
            self._resolve(link, 1)

    def _claim(self, path: bytes, node: int) -> None:
        nodes = self._nodes
        before = nodes.get(path)
        if before is not None:
            if before == node == _DIRECTORY:
                return
            if _DIRECTORY in (before, node):
                raise NameRefused("it is a directory and another kind of member at once")
            raise NameRefused("it is in the archive twice")
        parent = path.rpartition(b"/")[0]
        if nodes.get(parent) != _DIRECTORY:
            self._claim_above(parent)
        self._add(path, node)

    def _claim_above(self, parent: bytes) -> None:
        missing = []
        while (node := self._nodes.get(parent)) is None:
            missing.append(parent)
            parent = parent.rpartition(b"/")[0]
        if node == _SYMLINK:
            raise NameRefused(f"it would be written through the link {show(parent)}")
        if node != _DIRECTORY:
            raise NameRefused(f"it lies below {show(parent)}, which is a file")
        for path in missing:
            self._add(path, _DIRECTORY)

    def _add(self, path: bytes, node: int) -> None:
        self._remember(path)
        self._nodes[path] = node
        self.directories += node == _DIRECTORY

    def _remember(self, name: bytes) -> None:
        self._bytes += len(name)
        if self._bytes > self._longest:
            raise NameRefused(f"all names are longer, together, than {self._longest} bytes")

    def _resolve(self, link: bytes, depth: int) -> tuple[bytes, int]:
        """Return where a link leads, and by how many links."""
        known = self._resolved.get(link)
        if known is not None:  # each link is walked once, so that hostile chains stay cheap
            return known
        here = link.rpartition(b"/")[0]
        hops = 1
        for part in self._targets[link].split(b"/"):
            if part in (b"", b"."):
                continue
            if part == b"..":
                if not here:
                    raise self._bad_link(link, "out of the release")
                here = here.rpartition(b"/")[0]
                continue
            here = here + b"/" + part if here else part
            if here in self._targets:
                if depth == _MOST_LINKS:
                    raise self._bad_link(link, "round in a loop, or over more than 40 links")
                here, more = self._resolve(here, depth + 1)
                hops += more
                if hops > _MOST_LINKS:
                    raise self._bad_link(link, "over more than 40 links")
        self._resolved[link] = here, hops
        return here, hops

    def _bad_link(self, link: bytes, where: str) -> NameRefused:
        return NameRefused(f"the link {show(link)} -> {show(self._targets[link])} leads {where}")
