"""Unpacking a release: ours (digest and checks included, then syncfs) against `tar xzf; sync -f`.

The release is synthetic and the same in each run: 2,650 files of 146 MB, 60 MB compressed, of
beam-like sizes and density. Both are whole processes, run alternately, in the same folder.
Run as `python -m tests.bench.bench_unpack [FOLDER]`; FOLDER, on a disk, is else `.cache` here.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import random
import shutil
import statistics
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.bench.table import Row, render

RUNS = 5
SEED = 20240229
_ROOT = Path(__file__).resolve().parents[2]
_OURS = """
import os, sys
from deployex_cli.layout import libc
from deployex_cli.layout.tar_guard import Required
from deployex_cli.layout.unpack import unpack
archive, into, digest = sys.argv[1:]
folder = os.open(into, os.O_RDONLY | os.O_DIRECTORY)
with open(archive, "rb", buffering=0) as source:
    unpack(source, into, expected_sha256=digest, required=[Required("bin/app", "executable")],
           capture=["releases/start_erl.data"])
libc.syncfs(folder)
"""


def make_release(path: Path) -> None:
    """Write the synthetic release's tarball (about 5 s)."""
    rng = random.Random(SEED)
    pool = _pool(rng, 8 * 1024**2)
    unfinished = path.with_suffix(".tmp")
    with (
        unfinished.open("wb") as raw,
        gzip.GzipFile("", "wb", 6, raw, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive,
    ):
        for name, mode, size in _members(rng):
            info = tarfile.TarInfo(name)
            info.size, info.mode, info.mtime = size, mode, 1_700_000_000
            archive.addfile(info, io.BytesIO(_content(rng, pool, size)))
    unfinished.rename(path)


def rows(folder: Path | None = None, runs: int = RUNS) -> list[Row]:
    """Measure on the disk of `folder` and on tmpfs; the release is kept in `folder`."""
    folder = folder or Path.cwd() / ".cache"
    folder.mkdir(parents=True, exist_ok=True)
    archive = folder / f"bench-release-{SEED}.tar.gz"
    if not archive.exists():
        make_release(archive)
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()  # and now it is in the page cache
    found = [_row("unpack, disk", archive, digest, folder, runs, 1.0)]
    tmpfs = Path("/dev/shm")
    if tmpfs.is_dir():
        found.append(_row("unpack, tmpfs", archive, digest, tmpfs, runs, 0.7))
    return found


def _row(name: str, archive: Path, digest: str, base: Path, runs: int, target: float) -> Row:
    into = base / f"bench-unpack-{os.getpid()}"
    ours = [sys.executable, "-c", _OURS, str(archive), str(into), digest]
    script = 'tar xzf "$1" -C "$2" && sync -f "$2"'
    peer = ["sh", "-c", script, "sh", str(archive), str(into)]
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(runs + 1):
        for command, measured in zip((ours, peer), times, strict=True):
            taken = _timed(command, into)
            if turn:  # the first turn only warms up
                measured.append(taken)
    ours_ms, peer_ms = (statistics.median(measured) for measured in times)
    return Row(name, ours_ms, "tar xzf; sync -f", peer_ms, ours_ms / peer_ms, target)


def _timed(command: list[str], into: Path) -> float:
    into.mkdir(mode=0o700)
    os.sync()
    environment = {**os.environ, "PYTHONPATH": str(_ROOT)}
    try:
        begin = time.perf_counter()
        subprocess.run(command, check=True, env=environment)
        return (time.perf_counter() - begin) * 1000
    finally:
        shutil.rmtree(into)


def _members(rng: random.Random) -> Iterator[tuple[str, int, int]]:
    yield "bin/app", 0o755, 5_000
    yield "releases/start_erl.data", 0o644, 12
    yield "erts-13.1/bin/beam.smp", 0o755, 6_000_000
    for number in range(8):
        yield f"lib/nif_{number}-1.0.0/priv/nif_{number}.so", 0o755, 2_500_000
    for number in range(2_639):
        library = number % 60
        size = min(int(rng.lognormvariate(10.1, 1.12)), 1_500_000)
        yield f"lib/library_{library}-2.{library}.1/ebin/Elixir.Module{number}.beam", 0o644, size


def _pool(rng: random.Random, size: int) -> bytes:
    """Bytes that deflate to about 0.4 of their size: words of a skewed choice, and noise."""
    words = [rng.randbytes(rng.randint(4, 20)) for _ in range(1500)]
    weights = [1 / (rank + 2) for rank in range(len(words))]
    parts: list[bytes] = []
    length = 0
    while length < size:
        piece = b"".join(rng.choices(words, weights, k=500)) + rng.randbytes(620)
        parts.append(piece)
        length += len(piece)
    return b"".join(parts)


def _content(rng: random.Random, pool: bytes, size: int) -> bytes:
    pieces = []
    while size > 0:
        length = min(size, 64 * 1024)  # more than deflate's window: no piece is found again
        start = rng.randrange(len(pool) - length)
        pieces.append(pool[start : start + length])
        size -= length
    return b"".join(pieces)


if __name__ == "__main__":
    print(render(rows(Path(sys.argv[1]) if len(sys.argv) > 1 else None)))
