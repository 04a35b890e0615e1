"""What the build scripts of the examples share: the command line, and packing.

Nothing is written to the source tree or to the home folder; the build
artefacts are in a temporary folder that is removed at the end.
"""

import argparse
import gzip
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

COMMON = Path(__file__).resolve().parent

# A constant and plausible time for all members (2000-01-01; tar warns of 1970).
MEMBER_TIME = 946_684_800


def main(
    name: str,
    versions: Mapping[str, str],
    sources: Callable[[str], Iterable[Path]],
    prepare: Callable[[Path, "list[str]"], None],
    assemble: Callable[[Path, str], Path],
) -> None:
    """Build OUTDIR/{name}-{version}.tar.gz for the versions on the command line.

    versions maps each version to a word on what it does. One that is written
    variant/version is another package of that version, and is built as
    OUTDIR/{variant}/{name}-{version}.tar.gz. sources(version) are the files and
    folders that it is made of; prepare(work, versions) compiles once what all
    need; assemble(work, version) returns the folder that becomes the root of
    the tarball, and is called from several threads.
    """
    outdir, wanted = _arguments(name, versions)
    outdir.mkdir(parents=True, exist_ok=True)
    started = time.time()

    due = []
    for version in wanted:
        variant, _, number = version.rpartition("/")
        tarball = outdir / variant / f"{name}-{number}.tar.gz"
        changed = max(_newest(source) for source in [*sources(version), COMMON])
        if tarball.exists() and tarball.stat().st_mtime > changed:
            print(f"{tarball.relative_to(outdir)}  up to date")
        else:
            due.append((version, tarball))
    if not due:
        return

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that `with` cleans up
    with tempfile.TemporaryDirectory(prefix=f"{name}-build-") as folder:
        work = Path(folder)
        prepare(work, [version for version, _ in due])

        def build(version: str, tarball: Path) -> str:
            begun = time.monotonic()
            tarball.parent.mkdir(exist_ok=True)
            level = 1 if "/" in version else 6  # variants are many, and for tests
            _pack(assemble(work, version), tarball, level, started)
            kilobytes = tarball.stat().st_size / 1e3
            seconds = time.monotonic() - begun
            shown = tarball.relative_to(outdir)
            return f"{shown}  {versions[version]}, {kilobytes:.0f} kB, {seconds:.1f} s"

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for line in pool.map(lambda row: build(*row), due):
                print(line, flush=True)


def run(
    *command: object, env: "Mapping[str, str] | None" = None, cwd: "Path | None" = None
) -> None:
    """Run a compiler; show what it printed, and end, only when it fails."""
    words = [str(word) for word in command]
    done = subprocess.run(
        words,
        env={**os.environ, **(env or {})},
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    if done.returncode != 0:
        sys.exit(f"{done.stdout}{' '.join(words)}: exit code {done.returncode}")


def compile_erlang(source: Path, application: Path, version: str = "") -> Path:
    """Compile source/*.erl and *.app.src into application/ebin; return that folder."""
    ebin = application / "ebin"
    ebin.mkdir(parents=True)
    # -pa: a behaviour must be on the path of who implements it.
    others = [word for path in application.parent.glob("*/ebin") for word in ("-pa", path)]
    run("erlc", "-Werror", "+deterministic", *others, "-o", ebin, *sorted(source.glob("*.erl")))
    for template in source.glob("*.app.src"):
        (ebin / template.stem).write_text(template.read_text().replace("%VSN%", version))
    return ebin


def _arguments(name: str, versions: Mapping[str, str]) -> "tuple[Path, list[str]]":
    table = "\n".join(f"  {version}  {what}" for version, what in versions.items())
    parser = argparse.ArgumentParser(
        description=f"Build OUTDIR/{name}-VERSION.tar.gz, unless it is newer than its sources.",
        epilog=f"versions (default: those without a /, all: each)\n{table}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("outdir", metavar="OUTDIR", type=Path)
    parser.add_argument("versions", metavar="VERSION", nargs="*")
    given = parser.parse_args()
    for version in given.versions:
        if version not in versions and version != "all":
            parser.error(f"unknown version {version}; known are {', '.join(versions)}")
    if "all" in given.versions:
        return given.outdir, list(versions)
    plain = [version for version in versions if "/" not in version]
    return given.outdir, list(dict.fromkeys(given.versions)) or plain


def _newest(path: Path) -> float:
    """The time of the latest change in a file or below a folder."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return max(file.stat().st_mtime for file in files if "__pycache__" not in file.parts)


def _pack(root: Path, tarball: Path, level: int, started: float) -> None:
    """Pack the contents of root; the tarball appears whole or not at all."""

    def normal(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = 0
        member.uname = member.gname = "root"
        member.mtime = MEMBER_TIME
        member.mode &= ~0o022
        return member

    part = tarball.with_name(f".{tarball.name}.{os.getpid()}")
    try:
        with (
            part.open("wb") as raw,
            gzip.GzipFile("", "wb", level, raw, mtime=0) as packed,
            tarfile.open(fileobj=packed, mode="w") as archive,
        ):
            for child in sorted(root.iterdir()):
                archive.add(child, child.name, filter=normal)
        # A source that was saved while this ran makes the tarball out of date.
        os.utime(part, (started, started))
        part.replace(tarball)
    finally:
        part.unlink(missing_ok=True)
