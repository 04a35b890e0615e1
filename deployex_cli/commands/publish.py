"""`deployex publish TARBALL`: the tarball, then the manifest, into the release store.

The tarball passes the same checks as on the machine that will unpack it. The manifest comes last
and as a whole, so that no check ever sees a version whose tarball is not there.
"""

from __future__ import annotations

import hashlib
from typing import BinaryIO

from deployex_cli.commands.context import Say
from deployex_cli.commands.steps import check_version
from deployex_cli.config import AppConfig
from deployex_cli.core.manifest import (
    Manifest,
    encode_manifest,
    parse_manifest,
    split_command,
)
from deployex_cli.errors import ConfigError, DigestMismatch, NotFound, PackageError, Refused
from deployex_cli.layout.install import limits, required
from deployex_cli.layout.otp_files import START_ERL, parse_start_erl
from deployex_cli.layout.unpack import inspect
from deployex_cli.result import Result
from deployex_cli.storage import open_store
from deployex_cli.storage.store import ReleaseStore


def publish(
    app: AppConfig,
    tarball: str,
    *,
    version: str | None,
    git_hash: str,
    pre_commands: tuple[str, ...],
    replace: bool,
    say: Say,
) -> Result:
    """Publishes a version; without `version`, the one that the package itself names.

    Raises PackageError, ConfigError, Refused (other content under the same version), Locked
    (another publishes), and what the store raises.
    """
    if pre_commands and app.language == "gleam":
        raise ConfigError(f"{app.name}: a gleam package has no script that could run pre_commands")
    for command in pre_commands:
        try:
            split_command(command)
        except ValueError as error:
            raise ConfigError(f"--pre-command {command!r} cannot be used: {error}") from None
    if version is not None:
        check_version(version)
    store = open_store(app)
    with _open(tarball) as package:
        found = inspect(
            package,
            limits=limits(app),
            required=required(app),
            capture=(START_ERL,),
            what=f"{app.name}: {tarball}",
        )
        version = _version(app, version, found.captured.get(START_ERL), tarball)
        manifest = Manifest(version, git_hash, pre_commands, found.sha256)
        parse_manifest(encode_manifest(manifest), "to be written")
        with store.publishing():
            _put(store, app.name, version, package, found.sha256, replace, say)
            store.write_manifest(encode_manifest(manifest))
    line = f"{version} is published ({store.manifest_address()})"
    data = {
        "app": app.name,
        "version": version,
        "hash": git_hash,
        "sha256": found.sha256,
        "pre_commands": list(pre_commands),
        "manifest": store.manifest_address(),
        "package": store.package_address(version),
    }
    return Result("publish", data, (f"{app.name}: {line}",))


def _put(
    store: ReleaseStore,
    app: str,
    version: str,
    package: BinaryIO,
    sha256: str,
    replace: bool,
    say: Say,
) -> None:
    """The tarball into the store, unless it is there. Raises Refused: there is another."""
    there = _digest(store, version) if store.has_package(version) else None
    if there == sha256:
        return
    if there is not None and not replace:
        raise Refused(
            f"{app}: {version} is published with other content (sha256 {there[:12]}, this one has"
            f" {sha256[:12]}); publish it under a new version, or with --replace"
        )
    package.seek(0)
    say(f"{app}: puts {store.package_address(version)}")
    store.write_package(version, package)
    if _digest(store, version) != sha256:
        raise DigestMismatch(
            f"{app}: the tarball changed while it was read; the manifest was not changed,"
            " publish again"
        )


def _version(app: AppConfig, asked: str | None, start_erl: bytes | None, tarball: str) -> str:
    """The version to publish as; what was asked for must be what the package boots."""
    boots = parse_start_erl(start_erl) if start_erl is not None else None
    if asked is None:
        if boots is None:
            raise ConfigError(
                f"{app.name}: {tarball} does not name its version ({START_ERL}); give --version"
            )
        check_version(boots.version)
        return boots.version
    if boots is not None and boots.version != asked:
        raise PackageError(
            f"{app.name}: {tarball} is version {boots.version} by its {START_ERL}, not {asked};"
            " build it with that version, or publish it as what it is"
        )
    return asked


def _open(tarball: str) -> BinaryIO:
    try:
        return open(tarball, "rb")
    except OSError as error:
        raise NotFound(f"the tarball {tarball} cannot be read: {error.strerror}") from None


def _digest(store: ReleaseStore, version: str) -> str:
    digest = hashlib.sha256()
    with store.open_package(version) as package:
        while chunk := package.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
