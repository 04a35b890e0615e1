"""The release store: where manifests and tarballs are, behind one small interface."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import BinaryIO, Protocol


class ReleaseStore(Protocol):
    """What commands ask of a store. All raise StoreUnreachable when it does not answer."""

    def manifest_address(self) -> str:
        """Where the manifest is, for people."""
        ...

    def read_manifest(self) -> bytes | None:
        """The bytes of current.json; None when nothing is published."""
        ...

    def publishing(self) -> AbstractContextManager[None]:
        """In this block nobody else publishes this app, where the store can tell. Raises Locked."""
        ...

    def write_manifest(self, data: bytes) -> None:
        """Replaces current.json as a whole."""
        ...

    def package_address(self, version: str) -> str:
        """Where a version's tarball is, for people."""
        ...

    def open_package(self, version: str) -> BinaryIO:
        """A version's tarball, as a stream of bytes. Raises NotFound."""
        ...

    def has_package(self, version: str) -> bool:
        """Whether the store has that version."""
        ...

    def write_package(self, version: str, source: BinaryIO) -> None:
        """Puts a tarball there; it has its name only when it is whole."""
        ...
