"""Fuzzes all that reads bytes of a peer, in one process at a time: python -m tests.fuzz --runs N.

atheris, which is no dependency of ours, is put into .cache/fuzz at the first run; what it learns
stays there for the next one. An input that finds something becomes the last line of
tests/fuzz/kept/{target}.hex, which tests/test_fuzz.py tries. Exit code 1: there is one, or
a run was cut short.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from tests.fuzz.seeds import kept, seeds
from tests.fuzz.targets import TARGETS

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".cache/fuzz"
PINNED = Path(__file__).with_name("requirements.txt")
SECONDS_AN_INPUT = 5
_EXECUTED = re.compile(r"^stat::number_of_executed_units: +(\d+)", re.M)
_COVERED = re.compile(r" cov: (\d+) ft: (\d+)")


class Outcome(NamedTuple):
    """What a target's run came to."""

    name: str
    inputs: int
    seconds: float
    edges: str
    peak: float  # megabytes, of the whole process
    verdict: str  # nothing found; FOUND; CUT SHORT: by a signal, or it did not start

    @property
    def fine(self) -> bool:
        return self.verdict == "nothing found"

    def __str__(self) -> str:
        return (
            f"{self.name:10} {self.inputs:>11,} inputs in {self.seconds:5.0f} s,"
            f" {self.edges:>4} edges, peak {self.peak:4.0f} MB,"
            f" {self.verdict}"
        )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--runs", type=int, default=100_000, help="inputs in all (100000)")
    parser.add_argument("--only", choices=TARGETS, action="append", help="this, and no other")
    options = parser.parse_args()
    names = options.only or list(TARGETS)
    path = _atheris()
    shares = sum(TARGETS[name].share for name in names)
    outcomes = []
    for name in names:
        outcomes.append(fuzz(name, -(-options.runs * TARGETS[name].share // shares), path))
        print(outcomes[-1], flush=True)
    print(f"all        {sum(outcome.inputs for outcome in outcomes):>11,} inputs")
    return int(not all(outcome.fine for outcome in outcomes))


def fuzz(name: str, runs: int, path: str) -> Outcome:
    """Tries so many inputs on a target; shows the fuzzer's log when it finds something."""
    corpus = CACHE / "corpus" / name
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds(name)):
        (corpus / f"seed-{number}").write_bytes(seed)
    flags = (
        *(f"-runs={runs}", f"-timeout={SECONDS_AN_INPUT}", "-print_final_stats=1"),
        *(f"-artifact_prefix={CACHE}/found-{name}-", str(corpus)),
    )
    log = CACHE / f"{name}.log"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), path))}
    command = [sys.executable, "-m", "tests.fuzz.worker", name, *flags]
    began = time.monotonic()
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=env, cwd=ROOT)
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            raise
    process.returncode = os.waitstatus_to_exitcode(status)
    words = log.read_text(errors="replace")
    executed, covered = _EXECUTED.search(words), _COVERED.findall(words)
    inputs = int(executed[1]) if executed else 0
    verdict = "nothing found"
    if process.returncode != 0 or inputs < runs:
        print(words[-4000:], file=sys.stderr)
        verdict = "CUT SHORT"
        for found in CACHE.glob(f"found-{name}-*"):
            verdict = "FOUND"
            with kept(name).open("a") as lines:
                lines.write(f"{found.read_bytes().hex()}\n")
            found.unlink()
    return Outcome(
        name,
        inputs,
        time.monotonic() - began,
        covered[-1][0] if covered else "?",
        usage.ru_maxrss / 1024,
        verdict,
    )


def _atheris() -> str:
    """The folder that holds atheris, which this Python may have itself."""
    folder = CACHE / f"atheris-{sys.version_info.major}.{sys.version_info.minor}"
    if importlib.util.find_spec("atheris") is None and not (folder / "atheris").is_dir():
        pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-input", "--require-hashes")
        pinned = ("--root-user-action", "ignore", "-r", str(PINNED))
        subprocess.run([*pip, *pinned, "--target", str(folder)], check=True)
    return str(folder)


if __name__ == "__main__":
    sys.exit(main())
