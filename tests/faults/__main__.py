"""Runs every point, or a part of them, and prints how many were survived of how many."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tests.faults import errors, kills, power, pre_commands, recovery, strace
from tests.faults.kills import AFTERMATHS, LIVES
from tests.faults.scenarios import MIGRATION, SCENARIOS, TEMPLATES, build_template

ATTEMPTS = 4  # to strike at a point
NAMES = list(dict.fromkeys((*SCENARIOS, *LIVES, MIGRATION)))


class Trial(NamedTuple):
    """One fault, and how to see whether it is survived."""

    what: str  # the row of the table
    kind: str  # disk, process, socket, lock: the column
    name: str
    run: Callable[..., None]
    arguments: tuple[object, ...]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--only", choices=("kills", "errors", "power", "recovery"))
    parser.add_argument("--every", type=int, default=1, help="each N-th of them")
    parser.add_argument("--scenario", choices=NAMES, action="append")
    parser.add_argument("--matching", default="", help="those whose name holds this text")
    options = parser.parse_args()
    if not strace.is_here():
        print("skipped: strace is not installed (apt-get install strace), or may not trace here")
        return 0
    if options.only == "recovery":
        print(recovery.measure())
        return 0
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        templates = _templates(Path(folder))
        found = trials(templates, options.scenario or NAMES, options.only)
        found = [trial for trial in found if options.matching in trial.name]
        failures = _run_all(found[:: options.every])
    for failure in failures:
        print(failure, end="\n\n")
    print(f"{'failed' if failures else 'passed'} in {time.monotonic() - began:.0f} s")
    return 1 if failures else 0


def _templates(folder: Path) -> dict[str, Path]:
    made = {}
    for name, scenario in TEMPLATES.items():
        made[name] = folder / name.replace(" ", "-")
        build_template(scenario, made[name])
    return made


def trials(templates: dict[str, Path], names: list[str], only: str | None) -> list[Trial]:
    """Every fault at every point of the scenarios named."""
    found = []
    for name in dict.fromkeys(names):
        if name in SCENARIOS:
            template = templates[name]
            points = kills.points_of_command(name, template)
            found += _of(points, template, kills.kill_command, errors.trouble_for_command, only)
            if only in (None, "power"):
                found += [
                    Trial("power cut", name, str(cut), power.lose_power, (cut, template))
                    for cut in power.cuts(name, template)
                ]
        if name in LIVES:
            template = templates[LIVES[name][0]]
            points = kills.points_of_supervisor(name, template)
            found += _of(
                points, template, kills.kill_supervisor, errors.trouble_for_supervisor, only
            )
        if name == MIGRATION and only in (None, "kills"):
            found += _of_pre_command(templates[name])
    return found


def _of(
    points: list[kills.Point],
    template: Path,
    kill: Callable[..., None],
    fail: Callable[..., None],
    only: str | None,
) -> list[Trial]:
    found = []
    if only in (None, "kills"):
        for point in points:
            what, kind = f"{point.program} killed", str(strace.kind(point.call))
            for aftermath in AFTERMATHS:
                name = f"{point}, then {aftermath}"
                found.append(Trial(what, kind, name, kill, (point, template, aftermath)))
    if only in (None, "errors"):
        for trouble in errors.troubles(points):
            what = f"{trouble.point.program} refused"
            found.append(Trial(what, trouble.error, str(trouble), fail, (trouble, template)))
    return found


def _of_pre_command(template: Path) -> list[Trial]:
    found = []
    for point in pre_commands.points(template):
        kind = str(strace.kind(point.call))
        for chain in point.chains:
            for aftermath in AFTERMATHS:
                name = f"{chain}{point}, then {aftermath}"
                arguments = (point, template, chain, aftermath)
                what = f"{chain}{point.program} killed"
                found.append(Trial(what, kind, name, pre_commands.kill_pre_command, arguments))
    return found


def survive(trial: Trial) -> str | None:
    """What went wrong, or None."""
    try:
        _until_struck(trial)
    except Exception as error:
        where = "".join(traceback.format_tb(error.__traceback__)[-2:])
        return f"NOT SURVIVED  {trial.name}\n{where}{type(error).__name__}: {error}"
    return None


def _until_struck(trial: Trial) -> None:
    """A busy machine may lead a supervisor another way, past the point: then once more."""
    for _ in range(ATTEMPTS):
        try:
            return trial.run(*trial.arguments)
        except kills.Missed as error:
            missed = error
    raise missed


def _run_all(found: list[Trial]) -> list[str]:
    total: Counter[tuple[str, str]] = Counter()
    survived: Counter[tuple[str, str]] = Counter()
    failures = []
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for number, (trial, failure) in enumerate(
            zip(found, pool.map(survive, found), strict=True), 1
        ):
            key = (trial.what, trial.kind)
            total[key] += 1
            survived[key] += failure is None
            if failure is not None:
                failures.append(failure)
                print(failure.splitlines()[0], flush=True)
            if number % 100 == 0:
                print(f"{number} of {len(found)}", flush=True)
    for what, kind in sorted(total):
        print(f"{what:49} {kind:8} {survived[what, kind]:5} of {total[what, kind]:5}")
    print(f"{'all':58} {survived.total():5} of {total.total():5}")
    return failures


if __name__ == "__main__":
    sys.exit(main())
