"""A folder as release store: for trying things out, for tests, and for a mounted share.

    {path}/versions/{app}/{env}/current.json
    {path}/dist/{app}/{app}-{version}.tar.gz

Who can write there can run code as the app's user, so a folder that others own or may write is
refused.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO

from deployex_cli.core.manifest import MAX_BYTES
from deployex_cli.errors import Locked, NotFound, StoreUnreachable, UnsafeFolder
from deployex_cli.layout import files

if TYPE_CHECKING:
    from deployex_cli.config import AppConfig

_COPY_BYTES = 1 << 20


class LocalStore:
    """See ReleaseStore for what each call does."""

    def __init__(self, app: AppConfig) -> None:
        self._app = app.name
        self._versions = f"{app.paths.store}/versions/{app.name}/{app.environment}"
        self._dist = f"{app.paths.store}/dist/{app.name}"

    def manifest_address(self) -> str:
        return f"{self._versions}/current.json"

    def package_address(self, version: str) -> str:
        return f"{self._dist}/{self._app}-{version}.tar.gz"

    def read_manifest(self) -> bytes | None:
        try:
            with self._open(self.manifest_address()) as file:
                return file.read(MAX_BYTES + 1)  # the parser says what is too long
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._unreachable(error) from None

    def open_package(self, version: str) -> BinaryIO:
        address = self.package_address(version)
        try:
            return self._open(address)
        except FileNotFoundError:
            raise NotFound(
                f"{self._app}: version {version} is not in the release store ({address});"
                " publish it, or name another version"
            ) from None
        except OSError as error:
            raise self._unreachable(error) from None

    def has_package(self, version: str) -> bool:
        return os.path.isfile(self.package_address(version))

    @contextmanager
    def publishing(self) -> Iterator[None]:
        try:
            files.trusted_folder(self._dist)
            files.trusted_folder(self._versions)
            folder = os.open(self._dist, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise self._unreachable(error) from None
        try:
            self._lock(folder)
            for place in (self._dist, self._versions):
                for name in os.listdir(place):
                    if name.startswith(".") and name.endswith(".tmp"):  # of one that was killed
                        files.remove(f"{place}/{name}")
            yield
        finally:
            os.close(folder)

    def _lock(self, folder: int) -> None:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Locked(
                f"{self._app}: another `deployex publish` puts something into {self._dist};"
                " nothing was done"
            ) from None
        except OSError:
            return  # a share that knows no locks: the renames keep each file whole all the same

    def write_manifest(self, data: bytes) -> None:
        try:
            files.trusted_folder(self._versions)
            files.write_file(self.manifest_address(), data, mode=0o644)
        except OSError as error:
            raise self._not_written(self.manifest_address(), error) from None

    def write_package(self, version: str, source: BinaryIO) -> None:
        address = self.package_address(version)
        unfinished = files.temporary(address)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
        try:
            files.trusted_folder(self._dist)
            try:
                with os.fdopen(os.open(unfinished, flags, 0o644), "wb") as target:
                    while chunk := source.read(_COPY_BYTES):
                        target.write(chunk)
                    target.flush()
                    os.fsync(target.fileno())
                os.rename(unfinished, address)
            except BaseException:
                files.remove(unfinished)
                raise
            files.sync_folder(self._dist)
        except OSError as error:
            raise self._not_written(address, error) from None

    def _open(self, path: str) -> BinaryIO:
        """Opens a file of the store, if nobody but us and root could have written it."""
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a FIFO would wait for its writer
        try:
            files.check_trusted(os.path.dirname(path))
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise UnsafeFolder(f"{path} must be a file, and is a folder or something else")
            if found.st_uid not in (0, os.geteuid()) or found.st_mode & 0o022:
                raise UnsafeFolder(
                    f"{path} belongs to or may be written by others, who could run code as"
                    f" {self._app}'s user; let it belong to root or who runs this, and `chmod go-w`"
                )
        except BaseException:
            os.close(descriptor)
            raise
        return os.fdopen(descriptor, "rb")

    def _not_written(self, address: str, error: OSError) -> StoreUnreachable:
        return StoreUnreachable(
            f"{self._app}: {address} cannot be written: {error.strerror}; the version that is"
            " published stays so, publish again when that is mended"
        )

    def _unreachable(self, error: OSError) -> StoreUnreachable:
        return StoreUnreachable(
            f"{self._app}: the release store {error.filename or self._versions} cannot be used:"
            f" {error.strerror}; nothing was changed, the next check tries again"
        )
