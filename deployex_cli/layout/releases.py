"""The service folder of one app: release folders with their markers, and the three links.

    service/{app}/releases/{n}-{version}/.deployex.json    the marker
    service/{app}/{new,current,previous} -> releases/{n}-{version}

A release folder gets its name when it is whole and on disk, and never moves. What begins with a dot
is half-made, or half-removed.
"""

from __future__ import annotations

import json
import os
from typing import Any

from deployex_cli.config import AppPaths
from deployex_cli.core.plan import Disk, OnDisk, folder_number
from deployex_cli.core.state import Release
from deployex_cli.errors import UnsafeFolder
from deployex_cli.layout import files

MARKER = ".deployex.json"
MARKER_SCHEMA = 1
LINKS = ("new", "current", "previous")


def read_disk(paths: AppPaths) -> Disk:
    """What is there, with no change to it. Raises UnsafeFolder: no link where one of ours goes."""
    releases, leftovers = [], []
    for name in _entries(paths.releases):
        path = f"{paths.releases}/{name}"
        if name.startswith("."):
            leftovers.append(path)
        else:
            release = read_marker(path, name)
            if release is not None:
                releases.append(release)
    leftovers += [
        path
        for path in (
            *(files.temporary(paths.link(name)) for name in LINKS),
            files.temporary(paths.state),
            files.temporary(paths.history),
        )
        if os.path.lexists(path)
    ]
    known = {release.folder for release in releases}
    links = [_named(paths, name, known) for name in LINKS]
    return Disk(tuple(releases), links[0], links[1], links[2], tuple(leftovers))


def read_marker(path: str, folder: str) -> OnDisk | None:
    """The release in `path`, or None when its marker is missing or cannot be read."""
    try:
        raw = files.read_file(f"{path}/{MARKER}")
        if raw is None:
            return None
        document: dict[str, Any] = json.loads(raw)
        digest, confirmed_at = document["sha256"], document["confirmed_at"]
        return OnDisk(
            folder=folder,
            version=str(document["version"]),
            digest=str(digest) if digest is not None else None,
            hash=str(document["hash"]),
            confirmed_at=float(confirmed_at) if confirmed_at is not None else None,
            within=tuple(Release(**item) for item in document.get("within", ())),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_marker(path: str, release: OnDisk) -> None:
    """Says in the folder itself what it holds, so that a lost state file loses nothing."""
    document: dict[str, Any] = {
        "schema_version": MARKER_SCHEMA,
        "version": release.version,
        "sha256": release.digest,
        "hash": release.hash,
        "confirmed_at": release.confirmed_at,
    }
    if release.within:
        document["within"] = [before._asdict() for before in release.within]
    files.write_file(f"{path}/{MARKER}", json.dumps(document).encode() + b"\n")


def next_folder(disk: Disk, paths: AppPaths, version: str) -> str:
    """A folder name that no release has had since the oldest that is still there."""
    taken = [folder_number(name.lstrip(".")) for name in _entries(paths.releases)]
    return f"{max(taken, default=0) + 1}-{version}"


def point(paths: AppPaths, link: str, folder: str | None) -> None:
    """Makes `new`, `current` or `previous` name a release folder, or nothing."""
    if folder is None:
        files.remove_link(paths.link(link))
    else:
        files.set_link(paths.link(link), f"releases/{folder}")


def _named(paths: AppPaths, link: str, known: set[str]) -> str | None:
    target = files.read_link(paths.link(link))
    if target is None and os.path.lexists(paths.link(link)):
        raise UnsafeFolder(
            f"{paths.link(link)} is no link of ours; move it away, for it is to name a release"
            f" under {paths.releases}"
        )
    folder = os.path.basename(target) if target else None
    return folder if folder in known else None


def _entries(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except FileNotFoundError:
        return []
