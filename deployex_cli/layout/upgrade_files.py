"""A hot upgrade's files: what the package holds beside `current`, and what goes into `current`.

    lib/{library}-{vsn}/            those that current has not
    releases/{app}-{version}.rel    what systools:make_relup asks for, of each version
    releases/{version}/             comes last and goes first: with it the release is there

What belongs to which release is written to `.deployex.hot.json` (otp_files.py) before anything is
copied: so a killed run leaves nothing that is not named, a second call finishes it, and `take_out`
takes the libraries that no other release needs. Whoever calls holds the app's lock.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from deployex_cli.core.strategy import Jellyfish, PackageFacts
from deployex_cli.errors import NotUpgradable, StateError
from deployex_cli.layout import files
from deployex_cli.layout.otp_files import (
    Held,
    Holdings,
    boots,
    libraries,
    make_boot,
    read_holdings,
    read_start_erl,
    renew_copies,
    write_holdings,
)

__all__ = [
    "Added",
    "boots",
    "copy_libraries_of_priv_appups",
    "find_rel",
    "make_boot",
    "package_facts",
    "put_into",
    "renew_copies",
    "take_out",
]

_RUNTIME = ("kernel", "stdlib", "sasl")
_JELLYFISH_BYTES = 1 << 16
_CHUNK = 1 << 20
_MOST_NAMED = 20
# of a compiled module: where and how it was compiled, not what it does (OTP: beam_lib(3))
_TOLD_ONLY = frozenset((b"CInf", b"Dbgi", b"Abst", b"Docs", b"ExCk"))


class Added(NamedTuple):
    """What `put_into` has put into `current`, now or in a call before."""

    version: str
    libraries: tuple[str, ...]


# --- what the package holds ---------------------------------------------------------------------


def package_facts(new: str, current: str, app: str, origin: str, target: str) -> PackageFacts:
    """What strategy.choose asks of the folder `new`, held against `current` that runs `origin`.

    Without upgrade instructions nothing else is looked at. Raises OSError.
    """
    facts = PackageFacts(origin, target, holds=boots(new))
    ours = libraries(new)
    appups = tuple(_appups_of(new, app, ours))
    holdings = _holdings_or_problem(current)
    if isinstance(holdings, str):
        return facts._replace(problem=holdings)
    held = holdings.find(origin) if holdings else None
    theirs = held.libraries if held else libraries(current)
    runs = dict(_split(library) for library in theirs)
    jellyfish = []
    for library in ours:
        found = _read_jellyfish(new, library, runs)
        if isinstance(found, str):
            return facts._replace(problem=found)
        if found is not None:
            jellyfish.append(found)
    if not jellyfish and not appups:
        return facts
    # what only an earlier attempt at this version brought is replaced anyway
    kept = set(libraries(current))
    if holdings and holdings.find(target):
        kept &= holdings.without(target).libraries()
    return facts._replace(
        jellyfish=tuple(jellyfish),
        appups=appups,
        app_runs=runs.get(app),
        erts=_erts(new),
        running_erts=_erts(current),
        has_sasl="sasl" in runs,
        runtime=tuple(_runtime_changes(ours, runs)),
        differing=tuple(_differing(new, current, sorted(kept.intersection(ours)))),
        protocols=tuple(_protocols(new, target, current, origin)),
        without_rel=tuple(
            version
            for folder, version in ((current, origin), (new, target))
            if find_rel(folder, app, version) is None
        ),
        overlays=tuple(_overlays(new, current)),
    )


def _holdings_or_problem(current: str) -> Holdings | str | None:
    try:
        return read_holdings(current)
    except StateError as error:
        return error.message


def _appups_of(folder: str, app: str, ours: tuple[str, ...]) -> Iterator[str]:
    for library in ours:
        if _split(library)[0] == app:
            for path in (
                f"lib/{library}/ebin/{app}.appup",
                f"lib/{library}/priv/appup/{app}.appup",
            ):
                if os.path.isfile(f"{folder}/{path}"):
                    yield path
                    break


def _read_jellyfish(folder: str, library: str, runs: dict[str, str]) -> Jellyfish | str | None:
    """The jellyfish.json of a library; in words what is wrong with it; None: there is none."""
    path = f"lib/{library}/ebin/jellyfish.json"
    try:
        raw = files.read_file(f"{folder}/{path}", _JELLYFISH_BYTES + 1)
    except NotADirectoryError:
        return None
    except OSError as error:
        return f"{path}: {error.strerror}"
    if raw is None:
        return None
    if len(raw) > _JELLYFISH_BYTES:
        return f"{path}: it is longer than {_JELLYFISH_BYTES} bytes"
    try:
        document: Any = json.loads(raw)
    except (ValueError, RecursionError) as error:
        return f"{path}: {error}"
    if not isinstance(document, dict):
        return f"{path}: it is no JSON object"
    for key in ("from", "to"):
        if not isinstance(document.get(key), str):
            return f'{path}: "{key}" is no version'
    name = _split(library)[0]
    beside = os.listdir(f"{folder}/lib/{library}/ebin")
    return Jellyfish(
        library=library,
        kind="dependency" if document.get("type") == "dependency" else "project",
        origin=document["from"],
        target=document["to"],
        appups=sum(entry.endswith(".appup") for entry in beside),
        runs=runs.get(name),
    )


def _erts(folder: str) -> tuple[str, ...]:
    """The runtimes in the folder; of a release without one, what start_erl.data says."""
    found = tuple(sorted(name for name in os.listdir(folder) if name.startswith("erts-")))
    start = read_start_erl(folder)
    return found or ((f"erts-{start.erts}",) if start else ())


def _runtime_changes(ours: tuple[str, ...], runs: dict[str, str]) -> Iterator[str]:
    new = dict(_split(library) for library in ours)
    for name in _RUNTIME:
        if name in runs and new.get(name) != runs[name]:
            yield f"{name} {runs[name]} to {new.get(name, 'none')}"


def _differing(new: str, current: str, both: list[str]) -> Iterator[str]:
    for library in both:
        inside = _difference(f"{new}/lib/{library}", f"{current}/lib/{library}", _is_instruction)
        if inside is not None:
            yield f"lib/{library}{inside}"


def _is_instruction(path: str) -> bool:
    """What leads to a version means nothing where that version runs already."""
    return path == "/ebin/jellyfish.json" or (path[:6] == "/ebin/" and path.endswith(".appup"))


def _protocols(new: str, target: str, current: str, origin: str) -> Iterator[str]:
    """The consolidated protocols that change; the VM goes on with the old ones."""
    folders = f"{new}/releases/{target}/consolidated", f"{current}/releases/{origin}/consolidated"
    names = [set(os.listdir(folder)) if os.path.isdir(folder) else set() for folder in folders]
    for name in sorted(names[0] | names[1]):
        both = name in names[0] and name in names[1]
        if not both or _difference(f"{folders[0]}/{name}", f"{folders[1]}/{name}") is not None:
            yield name.removesuffix(".beam").removeprefix("Elixir.")


def _overlays(new: str, current: str) -> list[str]:
    """What else the package brings and `current` has not, or has otherwise."""
    found: list[str] = []
    names = sorted(os.listdir(new))
    while names and len(found) < _MOST_NAMED:
        name = names.pop(0)
        if name in ("lib", "releases") or name.startswith(("erts-", ".deployex.")):
            continue
        path = f"{new}/{name}"
        if os.path.isdir(path) and not os.path.islink(path):
            names = [f"{name}/{inside}" for inside in sorted(os.listdir(path))] + names
        elif _difference(path, f"{current}/{name}") is not None:
            found.append(name)
    return found


# --- comparing ----------------------------------------------------------------------------------


def _difference(
    a: str, b: str, is_ignored: Callable[[str], bool] | None = None, inside: str = ""
) -> str | None:
    """The first path below both that differs, "" for themselves; None: they are the same."""
    mode = os.lstat(a).st_mode
    other = os.lstat(b).st_mode if os.path.lexists(b) else 0
    if stat.S_IFMT(mode) != stat.S_IFMT(other):
        return inside
    if stat.S_ISLNK(mode):
        return None if os.readlink(a) == os.readlink(b) else inside
    if not stat.S_ISDIR(mode):
        return None if _same_file(a, b) else inside
    return _folder_difference(a, b, is_ignored, inside)


def _folder_difference(
    a: str, b: str, is_ignored: Callable[[str], bool] | None, inside: str
) -> str | None:
    kinds = []
    for folder in (a, b):
        with os.scandir(folder) as entries:
            kinds.append(
                {
                    entry.name: entry.is_file(follow_symlinks=False)
                    for entry in entries
                    if is_ignored is None or not is_ignored(f"{inside}/{entry.name}")
                }
            )
    for name in sorted(kinds[0].keys() | kinds[1].keys()):
        path = f"{inside}/{name}"
        ours, theirs = kinds[0].get(name), kinds[1].get(name)
        if ours is None or theirs is None or ours is not theirs:
            return path
        if ours:
            if not _same_file(f"{a}/{name}", f"{b}/{name}"):
                return path
        else:
            found = _difference(f"{a}/{name}", f"{b}/{name}", is_ignored, path)
            if found is not None:
                return found
    return None


def _same_file(a: str, b: str) -> bool:
    """Whether two files hold the same: of compiled modules, do the same."""
    one = os.open(a, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        two = os.open(b, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            ours, theirs = os.fstat(one), os.fstat(two)
            if (ours.st_mode ^ theirs.st_mode) & stat.S_IXUSR:
                return False
            if a.endswith(".beam"):
                raw = os.read(one, ours.st_size), os.read(two, theirs.st_size)
                return raw[0] == raw[1] or _does_the_same(*raw)
            if ours.st_size != theirs.st_size:
                return False
            while chunk := os.read(one, _CHUNK):
                if chunk != os.read(two, len(chunk)):
                    return False
            return True
        finally:
            os.close(two)
    finally:
        os.close(one)


def _does_the_same(a: bytes, b: bytes) -> bool:
    """Whether two compiled modules differ only in where and how they were compiled."""
    ours, theirs = _chunks(a), _chunks(b)
    return ours is not None and ours == theirs


def _chunks(raw: bytes) -> list[tuple[bytes, bytes]] | None:
    """The chunks that count, of "FOR1" size "BEAM" (name size data, padded to 4)*.

    None: it is of another form, as a gzipped one is.
    """
    if raw[:4] != b"FOR1" or raw[8:12] != b"BEAM":
        return None
    chunks, at = [], 12
    while at + 8 <= len(raw):
        name, size = raw[at : at + 4], int.from_bytes(raw[at + 4 : at + 8], "big")
        if name not in _TOLD_ONLY:
            chunks.append((name, raw[at + 8 : at + 8 + size]))
        at += 8 + (size + 3) // 4 * 4
    return chunks


# --- into current, and out of it ----------------------------------------------------------------


def put_into(current: str, new: str, app: str, to: str) -> Added:
    """Puts what the release `to` in `new` needs into `current`, on disk when this returns.

    Whatever an earlier attempt at `to` left is replaced by what `new` holds. Raises NotUpgradable
    and OSError; calling again finishes what a killed call began, and `take_out` takes it back.
    """
    start = read_start_erl(new)
    if start is None or start.version != to:
        boot = start.version if start else "nothing"
        raise NotUpgradable("no_match_versions", f"{new} boots {boot}, not {to}")
    if boots(current) == to:
        raise NotUpgradable("no_match_versions", f"{current} boots {to} already")
    holdings = read_holdings(current) or _first(current, app)
    ours, others = libraries(new), holdings.without(to)
    needed, before = others.libraries(), holdings.find(to)
    release = f"{current}/releases/{to}"
    _remove(release)
    for library in before.libraries if before else ():
        if library not in needed and library not in ours:
            _remove(f"{current}/lib/{library}")
    held = Held(to, start.erts, ours)
    if before != held:
        write_holdings(current, others._replace(releases=(*others.releases, held)))
    for library in ours:
        source, place = f"{new}/lib/{library}", f"{current}/lib/{library}"
        there = os.path.lexists(place)
        if there and library not in needed and _difference(source, place) is not None:
            _remove(place)
            there = False
        if not there:
            _put(source, place, _place_appup)
    for version in (held.version for held in others.releases):
        _put_rel(current, current, app, version)
    _put_rel(new, current, app, to)
    _put(f"{new}/releases/{to}", release, lambda made: _name_rel(made, new, app, to))
    files.sync_filesystem(current)
    return Added(to, tuple(library for library in ours if library not in needed))


def take_out(current: str, app: str, to: str, keep_versions: tuple[str, ...] = ()) -> None:
    """Removes from `current` what only the release `to` needs; again: what is left of it.

    Raises ValueError when `to` is to be kept or boots, OSError, StateError.
    """
    holdings = read_holdings(current)
    if holdings is None or holdings.find(to) is None:
        return  # nothing is put in before that says so
    if to in keep_versions or to == boots(current):
        raise ValueError(f"{to} is needed in {current}, and not taken out")
    _remove(f"{current}/releases/{to}")
    _remove(_rel_path(current, app, to))
    others, held = holdings.without(to), holdings.find(to)
    for other in others.releases:
        _remove_leftovers(_rel_path(current, app, other.version))
    needed = others.libraries()
    for library in held.libraries if held else ():
        if library not in needed:
            _remove(f"{current}/lib/{library}")
    files.sync_folder(f"{current}/lib")
    files.sync_folder(f"{current}/releases")
    write_holdings(current, others)


def copy_libraries_of_priv_appups(folder: str, scratch: str) -> None:
    """Copies to `scratch`/lib what has its appup in priv/, with the appup where systools looks.

    For a dry run, which leaves the release as it is; `put_into` does it to what it copies.
    """
    for library in libraries(folder):
        source = f"{folder}/lib/{library}"
        if os.path.isfile(f"{source}/priv/appup/{_split(library)[0]}.appup"):
            os.makedirs(f"{scratch}/lib", 0o700, exist_ok=True)
            _put(source, f"{scratch}/lib/{library}", _place_appup)


def _first(current: str, app: str) -> Holdings:
    """The holdings of a folder that nothing was put into yet."""
    start = read_start_erl(current)
    if start is None:
        raise NotUpgradable("error_reading_file", f"{current}: start_erl.data names no version")
    return Holdings(app, (Held(start.version, start.erts, libraries(current)),))


def _place_appup(folder: str, library: str = "") -> None:
    name = _split(library or _placed_name(folder))[0]
    source, target = f"{folder}/priv/appup/{name}.appup", f"{folder}/ebin/{name}.appup"
    if os.path.isfile(source) and not os.path.lexists(target):
        _put(source, target)


def _placed_name(unfinished: str) -> str:
    """The name that a folder made under files.temporary gets."""
    return os.path.basename(unfinished)[1:].removesuffix(".tmp")


def _put_rel(folder: str, current: str, app: str, version: str) -> None:
    """Puts the .rel file of a version where make_relup looks for it, if there is one."""
    target, source = _rel_path(current, app, version), find_rel(folder, app, version)
    if source is not None and source != target and _difference(source, target) is not None:
        _remove(target)
        _put(source, target)


def _name_rel(made: str, new: str, app: str, version: str) -> None:
    """set_unpacked reads releases/{version}/{app}.rel."""
    source = find_rel(new, app, version)
    if source is not None and not os.path.lexists(f"{made}/{app}.rel"):
        _copy(source, f"{made}/{app}.rel")


def _rel_path(folder: str, app: str, version: str) -> str:
    return f"{folder}/releases/{app}-{version}.rel"


def find_rel(folder: str, app: str, version: str) -> str | None:
    """The .rel file of a version: Mix, relx and reltool each put it elsewhere."""
    candidates = [f"{version}/{app}.rel", f"{app}-{version}.rel", f"{version}/{app}-{version}.rel"]
    holdings = read_holdings(folder)
    first = holdings.releases[0].version if holdings and holdings.releases else boots(folder)
    if first == version:  # nothing of that name is ever put in
        candidates.append(f"{app}.rel")
    for name in candidates:
        path = f"{folder}/releases/{name}"
        if os.path.isfile(path) and not os.path.islink(path):
            return path
    return None


def _split(library: str) -> tuple[str, str]:
    name, _, version = library.partition("-")
    return name, version


# --- whole, or not at all -----------------------------------------------------------------------


def _put(source: str, path: str, finish: Callable[[str], None] | None = None) -> None:
    """Copies to a name that is free: under a temporary one first, `finish`ed, then renamed."""
    _remove_leftovers(path)
    unfinished = files.temporary(path)
    _copy(source, unfinished)
    if finish is not None:
        finish(unfinished)
    os.rename(unfinished, path)


def _remove(path: str) -> None:
    """Removes a file or folder, and what a killed run left of it."""
    _remove_leftovers(path)
    _remove_entry(path)


def _remove_leftovers(path: str) -> None:
    """Removes what a killed run left of the making of `path`, or of its removal."""
    folder, name = os.path.split(path)
    _remove_entry(files.temporary(path))
    _remove_entry(f"{folder}/{files.TRASH}{name}")


def _remove_entry(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        files.remove_tree(path)
    else:
        files.remove(path)


def _copy(source: str, target: str) -> None:
    """Copies a file, link or folder with its permissions. Never hard links: people edit files."""
    mode = os.lstat(source).st_mode
    if stat.S_ISLNK(mode):
        os.symlink(os.readlink(source), target)
    elif stat.S_ISREG(mode):
        _copy_file(source, target, stat.S_IMODE(mode))
    elif stat.S_ISDIR(mode):
        os.mkdir(target, 0o700)
        for name in os.listdir(source):
            _copy(f"{source}/{name}", f"{target}/{name}")
        os.chmod(target, stat.S_IMODE(mode))
    else:
        raise OSError(errno.EINVAL, "it is no file, link or folder", source)


def _copy_file(source: str, target: str, mode: int) -> None:
    ours = os.open(source, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        copy = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            _copy_bytes(ours, copy)
            os.fchmod(copy, mode)
        except OSError as error:  # of a write it names no file
            raise OSError(error.errno, error.strerror, target) from None
        finally:
            os.close(copy)
    finally:
        os.close(ours)


def _copy_bytes(source: int, target: int) -> None:
    """By the kernel where it can: on some file systems the two then share their blocks."""
    try:
        while os.copy_file_range(source, target, 1 << 30):
            pass
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
    while chunk := os.read(source, _CHUNK):
        view = memoryview(chunk)
        while view:
            view = view[os.write(target, view) :]
