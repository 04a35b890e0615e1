"""A disk that forgets: what may be on it after a power cut, by what was synced and what was not.

A model of the guarantees of POSIX and no more: an entry of a folder (a name given, taken or
replaced) is durable once that folder was synced after it, or the whole file system; a file's
content once that file was. What is not durable yet may be there or not, each for itself: ext4, xfs
and btrfs keep some of it in order, but nobody promises that. A rename is one change of two names.
A file whose content is not durable may hold all of it, none, half, or zeros in its place.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

_SWEPT = re.compile(r"/\.(staging|trash)-[^/]+/")


class Node:
    """A file, a link or a folder; what it holds by now, and what of that is durable."""

    def __init__(self, kind: str, mode: int, content: bytes = b"") -> None:
        self.kind = kind  # "file", "link", "folder"
        self.mode = mode
        self.content = content
        self.durable = content
        self.entries: dict[str, Node] = {}


class Change(NamedTuple):
    """Names that change together: (folder, name, what it names from then on)."""

    names: tuple[tuple[Node, str, Node | None], ...]


class Disk:
    """The tree under one folder; `pending` are the changes that a power cut may undo."""

    def __init__(self, root: Path, parts: tuple[str, ...]) -> None:
        """`parts` are the folders under `root` that are on it."""
        self.root = str(root)
        self.top = Node("folder", 0o700)
        self.top.entries = {part: _load(root / part) for part in parts if (root / part).exists()}
        self.pending: list[Change] = []
        self._durable_entries: dict[int, dict[str, Node]] = {}
        self._remember(self.top)

    # --- what a program does ----------------------------------------------------------------

    def create(self, path: str, mode: int, *, truncate: bool) -> None:
        """open(2) with O_CREAT or O_TRUNC."""
        node = self.find(path)
        if node is None:
            node = Node("file", mode)
            self._name(path, node)
        elif truncate:
            node.content = b""

    def write(self, path: str, data: bytes, offset: int | None) -> None:
        """write(2) at the end, or pwrite(2) at an offset."""
        node = self.node(path)
        at = len(node.content) if offset is None else offset
        node.content = node.content[:at].ljust(at, b"\0") + data + node.content[at + len(data) :]

    def resize(self, path: str, size: int) -> None:
        node = self.node(path)
        node.content = node.content[:size].ljust(size, b"\0")

    def make_folder(self, path: str, mode: int) -> None:
        self._name(path, Node("folder", mode))

    def link_to(self, target: str, path: str) -> None:
        self._name(path, Node("link", 0o777, target.encode()))

    def remove(self, path: str) -> None:
        """unlink(2) and rmdir(2)."""
        self._name(path, None)

    def rename(self, old: str, new: str) -> None:
        moved = self.node(old, follow=False)
        changes = []
        for path, node in ((old, None), (new, moved)):
            folder, name = self._place(path)
            self._set(folder, name, node)
            changes.append((folder, name, node))
        self.pending.append(Change(tuple(changes)))

    def chmod(self, path: str, mode: int) -> None:
        node = self.find(path)
        if node is not None:
            node.mode = mode

    def sync(self, path: str) -> None:
        """fsync(2): of a file its content, of a folder its entries."""
        node = self.node(path)
        if node.kind == "file":
            node.durable = node.content
            return
        waiting = self.pending
        self.pending = []
        for change in waiting:
            if all(folder is not node for folder, _, _ in change.names):
                self.pending.append(change)
            else:
                _apply(change, self._durable_entries)
        self._durable_entries[id(node)] = dict(node.entries)

    def sync_all(self) -> None:
        """syncfs(2)."""
        self.pending = []
        self._remember(self.top)

    # --- what is left -----------------------------------------------------------------------

    def images(self, most: int = 6) -> Iterator[Image]:
        """What may be there if the power goes now.

        All subsets of up to `most` pending changes; of more, none, all, each alone, all but each.
        With each, the contents that are not durable: whole, and spoilt in three ways.
        """
        count = len(self.pending)
        everything = (1 << count) - 1
        if count <= most:
            subsets = set(range(everything + 1))
        else:
            singles = {1 << bit for bit in range(count)}
            subsets = {0, everything} | singles | {everything & ~bit for bit in singles}
        for subset in sorted(subsets):
            kept = [change for bit, change in enumerate(self.pending) if subset & 1 << bit]
            for spoil in (_whole, _empty, _half, _zeros):
                yield self._image(kept, spoil)

    def _image(self, kept: list[Change], spoil: Callable[[Node], bytes]) -> Image:
        entries = {key: dict(names) for key, names in self._durable_entries.items()}
        for change in kept:
            _apply(change, entries)
        found: dict[str, tuple[str, int, bytes]] = {}
        _walk(self.top, "", entries, spoil, found)
        return Image(found)

    # --- names ------------------------------------------------------------------------------

    def node(self, path: str, *, follow: bool = True) -> Node:
        found = self.find(path, follow=follow)
        assert found is not None, f"the trace speaks of {path}, which is not there"
        return found

    def find(self, path: str, *, follow: bool = True) -> Node | None:
        """What the path names, or None; links are followed, the last one if `follow`."""
        assert self.holds(path), path
        node = self.top
        parts = path[len(self.root) :].strip("/").split("/")
        for position, part in enumerate(parts):
            if part:
                found = node.entries.get(part)
                if found is None:
                    return None
                if found.kind == "link" and (follow or position < len(parts) - 1):
                    where = "/".join([self.root, *parts[:position]])
                    target = os.path.normpath(os.path.join(where, found.content.decode()))
                    rest = "/".join([target, *parts[position + 1 :]])
                    return self.find(rest, follow=follow)
                node = found
        return node

    def holds(self, path: str) -> bool:
        """Whether the path is in this tree."""
        return path == self.root or path.startswith(f"{self.root}/")

    def _place(self, path: str) -> tuple[Node, str]:
        folder, name = os.path.split(path)
        return self.node(folder), name

    def _name(self, path: str, node: Node | None) -> None:
        folder, name = self._place(path)
        self._set(folder, name, node)
        self.pending.append(Change(((folder, name, node),)))

    def _set(self, folder: Node, name: str, node: Node | None) -> None:
        self._durable_entries.setdefault(id(folder), {})
        if node is None:
            folder.entries.pop(name, None)
        else:
            folder.entries[name] = node

    def _remember(self, node: Node) -> None:
        node.durable = node.content
        if node.kind == "folder":
            self._durable_entries[id(node)] = dict(node.entries)
            for child in node.entries.values():
                self._remember(child)


class Image(NamedTuple):
    """One state of the disk: path -> (kind, mode, content or target)."""

    found: dict[str, tuple[str, int, bytes]]

    def digest(self) -> str:
        """The same for images that are the same, but for what is in folders that are only swept."""
        told = [item for item in self.found.items() if not _SWEPT.search(item[0])]
        return hashlib.sha256(repr(sorted(told)).encode()).hexdigest()

    def write(self, root: Path) -> None:
        """Makes it real, under an empty folder."""
        folders = []
        for name, (kind, mode, content) in sorted(self.found.items()):
            path = root / name
            if kind == "folder":
                path.mkdir(exist_ok=True)
                folders.append((path, mode))
            elif kind == "link":
                path.symlink_to(content.decode())
            else:
                path.write_bytes(content)
                path.chmod(mode)
        for path, mode in reversed(folders):
            path.chmod(mode)


def _apply(change: Change, entries: dict[int, dict[str, Node]]) -> None:
    for folder, name, node in change.names:
        names = entries.setdefault(id(folder), {})
        if node is None:
            names.pop(name, None)
        else:
            names[name] = node


def _load(path: Path) -> Node:
    mode = stat.S_IMODE(path.lstat().st_mode)
    if path.is_symlink():
        return Node("link", mode, os.readlink(path).encode())
    if path.is_file():
        return Node("file", mode, path.read_bytes())
    node = Node("folder", mode)
    node.entries = {child.name: _load(child) for child in path.iterdir()}
    return node


def _walk(
    folder: Node,
    path: str,
    entries: dict[int, dict[str, Node]],
    spoil: Callable[[Node], bytes],
    found: dict[str, tuple[str, int, bytes]],
) -> None:
    for name, node in entries.get(id(folder), {}).items():
        place = f"{path}{name}"
        found[place] = (node.kind, node.mode, spoil(node) if node.kind == "file" else node.content)
        if node.kind == "folder":
            _walk(node, f"{place}/", entries, spoil, found)


def _whole(node: Node) -> bytes:
    return node.content


def _empty(node: Node) -> bytes:
    return node.durable


def _half(node: Node) -> bytes:
    kept, new = _parts(node)
    return kept + new[: len(new) // 2]


def _zeros(node: Node) -> bytes:
    kept, new = _parts(node)
    return kept + b"\0" * len(new)


def _parts(node: Node) -> tuple[bytes, bytes]:
    """What is durable of a file that only grew, and the rest; all of one that was overwritten."""
    if node.content.startswith(node.durable):
        return node.durable, node.content[len(node.durable) :]
    return b"", node.content
