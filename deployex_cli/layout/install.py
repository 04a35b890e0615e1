"""A tarball of the release store -> a release folder with its name: all of it, or nothing.

Everything happens under a temporary name. The folder gets its own when it is whole: unpacked and
checked, the digest right, RELEASES and the marker written, and all of it on disk.
"""

from __future__ import annotations

import os
from typing import BinaryIO

from deployex_cli.config import AppConfig
from deployex_cli.core.plan import Disk, OnDisk
from deployex_cli.core.state import Release
from deployex_cli.layout import files, releases
from deployex_cli.layout.otp_files import keep_copies, write_releases
from deployex_cli.layout.tar_guard import Limits, Required
from deployex_cli.layout.unpack import unpack


def install(
    app: AppConfig, disk: Disk, package: BinaryIO, target: Release, lock: int | None = None
) -> OnDisk:
    """Unpacks `package` as the release `target`; its digest is held against the target's.

    `lock` is the app's lock's descriptor: tar holds it too, so that nobody sweeps under a tar whose
    check was killed. Raises PackageError, DigestMismatch, DiskFull and OSError; nothing is left of
    it then.
    """
    paths = app.paths
    folder = releases.next_folder(disk, paths, target.version)
    staging = f"{paths.releases}/{files.STAGING}{folder}"
    if os.path.lexists(staging):
        files.remove_tree(staging)
    os.mkdir(staging, 0o700)
    try:
        unpacked = unpack(
            package,
            staging,
            limits=limits(app),
            required=required(app),
            expected_sha256=target.digest,
            what=f"{app.name}: the tarball of {target.version}",
            keep=lock,
        )
        write_releases(staging, app.name)
        keep_copies(staging)
        release = OnDisk(folder, target.version, unpacked.sha256, target.hash, None)
        releases.write_marker(staging, release)
        files.sync_filesystem(staging)
    except BaseException:
        files.remove_tree(staging)
        raise
    os.rename(staging, paths.release(folder))
    files.sync_folder(paths.releases)
    return release


def limits(app: AppConfig) -> Limits:
    """What a package of this app may cost."""
    return Limits(max_entries=app.max_entries, max_unpacked_bytes=app.max_unpacked)


def required(app: AppConfig) -> tuple[Required, ...]:
    """What makes a tarball a release of this app."""
    if app.language == "gleam":
        return (Required("erlang-shipment", "directory"),)
    return (Required(f"bin/{app.name}", "executable"),)
