"""Files, links and folders that survive a kill at any instruction: the effects on the disk.

A file or link gets its name by rename, after its content is on disk; the folder is synced after it.
Nothing here follows a link that somebody else could have put in its place. Temporary names begin
with a dot and end in `.tmp`, and are the same in each run: a killed run leaves at most one.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator

from deployex_cli.errors import UnsafeFolder

TRASH = ".trash-"
STAGING = ".staging-"
_MOST_LINKS = 40  # as the kernel's own


def temporary(path: str) -> str:
    """The name under which `path` is made before it gets its own."""
    folder, name = os.path.split(path)
    return f"{folder}/.{name}.tmp"


def read_file(path: str, limit: int = 16 << 20) -> bytes | None:
    """The content, or None when there is no such file; no more than `limit` bytes of it.

    Raises OSError, and for what is no file.
    """
    try:
        # a FIFO in its place would wait for its writer
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it is no file", path)
        chunks = []
        while limit > 0 and (chunk := os.read(descriptor, min(limit, 1 << 20))):
            chunks.append(chunk)
            limit -= len(chunk)
        return b"".join(chunks)
    finally:
        os.close(descriptor)


def write_file(path: str, data: bytes, *, mode: int = 0o600, durable: bool = True) -> None:
    """Replaces the file as a whole. `durable`: the content survives a power cut from here on."""
    unfinished = temporary(path)
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
    descriptor = os.open(unfinished, flags, mode)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fchmod(descriptor, mode)
        if durable:
            os.fsync(descriptor)
    except BaseException as error:
        os.unlink(unfinished)
        if isinstance(error, OSError):  # of a write it names no file
            raise OSError(error.errno, error.strerror, path) from None
        raise
    finally:
        os.close(descriptor)
    os.rename(unfinished, path)
    if durable:
        sync_folder(os.path.dirname(path))


def append_line(path: str, line: bytes) -> None:
    """Adds a line at the end, on disk when this returns; a torn last line is closed first."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
    try:
        size = os.fstat(descriptor).st_size
        torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        os.write(descriptor, (b"\n" if torn else b"") + line + b"\n")
        os.fsync(descriptor)
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None
    finally:
        os.close(descriptor)
    if size == 0:
        sync_folder(os.path.dirname(path))


def set_link(path: str, target: str) -> None:
    """Makes `path` a symbolic link to `target`; at no instant is there none if there was one."""
    if read_link(path) == target:
        return
    unfinished = temporary(path)
    remove(unfinished)
    os.symlink(target, unfinished)
    os.rename(unfinished, path)
    sync_folder(os.path.dirname(path))


def read_link(path: str) -> str | None:
    """What the link names, or None when there is no link."""
    try:
        return os.readlink(path)
    except OSError:
        return None


def remove(path: str) -> bool:
    """Removes a file or link; False when there was none."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return False
    return True


def remove_link(path: str) -> None:
    """Removes a link for good."""
    if remove(path):
        sync_folder(os.path.dirname(path))


def remove_tree(path: str) -> None:
    """Removes a folder with all that is in it; a half-removed one never keeps its name."""
    folder, name = os.path.split(path)
    doomed = path
    if not name.startswith("."):
        doomed = f"{folder}/{TRASH}{name}"
        if os.path.lexists(doomed):
            remove_tree(doomed)
        os.rename(path, doomed)
        sync_folder(folder)
    import shutil  # only when something is removed

    # a release may hold folders that nobody may read or write, and not everyone is root
    folders = [doomed]
    while folders:
        parent = folders.pop()
        os.chmod(parent, 0o700)
        with os.scandir(parent) as entries:
            folders += [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    shutil.rmtree(doomed)


def sync_folder(path: str) -> None:
    """Puts the folder's entries on disk, fsync(2)."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_filesystem(path: str) -> None:
    """Puts all that was written to the file system of `path` on disk, syncfs(2)."""
    from deployex_cli.layout import libc  # ctypes: only a run that unpacks pays for it

    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        libc.syncfs(descriptor)
    finally:
        os.close(descriptor)


def private_folder(path: str) -> None:
    """Makes sure that the folder is there, ours, and open to nobody else (0700).

    Raises UnsafeFolder when it, or one above it, belongs to or may be written by others.
    """
    trusted_folder(path)
    found = os.lstat(path)
    if found.st_uid != os.geteuid():
        raise UnsafeFolder(
            f"the folder {path} belongs to user {found.st_uid}, and must belong to"
            f" {os.geteuid()}, who runs this; run as that user, as with `sudo -u`"
        )
    if stat.S_IMODE(found.st_mode) != 0o700:
        os.chmod(path, 0o700)


def trusted_folder(path: str, *, shared: bool = False) -> None:
    """Makes sure that the folder is there, and that only we and root can change what is in it.

    Missing folders are made (0700). `shared`: see check_trusted. Raises UnsafeFolder.
    """
    for folder in _from_the_root(path):
        if not os.path.lexists(folder):
            parent = os.path.dirname(folder) or "/"
            if os.path.isdir(parent):  # nobody leads us to where he may not go himself
                check_trusted(parent, shared=True)
            try:
                os.mkdir(folder, 0o700)
            except FileExistsError:  # another run made it meanwhile
                continue
            sync_folder(os.path.dirname(folder))
    check_trusted(path, shared=shared)


def check_trusted(path: str, depth: int = 0, *, shared: bool = False) -> None:
    """Raises UnsafeFolder when somebody but us and root could change what the folder holds.

    A link is followed step by step (`depth` of them so far): each may be in somebody's folder. A
    sticky folder such as /tmp keeps what is ours there, but others may add to it: it will do above
    the folder. As the folder itself it will do if that is `shared`, as /var/log is, on some systems
    with a group that may write there: whoever opens a file in it looks whose it is.
    """
    for folder in _from_the_root(path):
        found = os.lstat(folder)
        if found.st_uid not in (0, os.geteuid()):
            raise UnsafeFolder(
                f"{folder} belongs to user {found.st_uid}, who could put anything into {path};"
                " let it belong to root or to the user who runs this"
            )
        if stat.S_ISLNK(found.st_mode):
            if depth > _MOST_LINKS:
                raise UnsafeFolder(f"{path} leads through more than {_MOST_LINKS} links")
            target = os.path.join(os.path.dirname(folder), os.readlink(folder))
            check_trusted(target, depth + 1, shared=shared or folder != path)
        elif not stat.S_ISDIR(found.st_mode):
            raise UnsafeFolder(f"{folder} is no folder")
        elif not _is_kept(found.st_mode, shared, above=folder != path):
            raise UnsafeFolder(
                f"{folder} may be written by others (mode {stat.S_IMODE(found.st_mode):04o}),"
                f" who could put anything into {path}; `chmod go-w {folder}`"
            )


def _is_kept(mode: int, shared: bool, *, above: bool) -> bool:
    """Whether nobody else may take away or replace what is ours in a folder of this mode."""
    if mode & stat.S_ISVTX and (shared or above):
        return True
    return not mode & (0o002 if shared else 0o022)


def _from_the_root(path: str) -> Iterator[str]:
    folder = ""
    for part in path.strip("/").split("/"):
        folder = f"{folder}/{part}"
        yield folder
