"""Whole processes, timed in turn: a machine whose speed drifts slows both of a pair."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

_WARM_UP = 3  # turns that are not counted: page cache, bytecode


class Command(NamedTuple):
    """A program by its absolute path, its arguments, and its whole environment."""

    words: Sequence[str]
    env: Mapping[str, str]


def medians_ms(ours: Command, peer: Command, turns: int) -> tuple[float, float]:
    """The median milliseconds of each, from before its spawn to after its wait."""
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(turns + _WARM_UP):
        for command, measured in zip((ours, peer), times, strict=True):
            taken = _timed_ms(command)
            if turn >= _WARM_UP:
                measured.append(taken)
    return statistics.median(times[0]), statistics.median(times[1])


def _timed_ms(command: Command) -> float:
    """posix_spawn(3), for what subprocess adds would be added to both and flatter the slower."""
    quiet = [
        (os.POSIX_SPAWN_OPEN, descriptor, os.devnull, os.O_RDWR, 0) for descriptor in (0, 1, 2)
    ]
    begin = time.perf_counter()
    pid = os.posix_spawn(command.words[0], command.words, command.env, file_actions=quiet)
    _, status = os.waitpid(pid, 0)
    taken = time.perf_counter() - begin
    if status != 0:
        code = os.waitstatus_to_exitcode(status)
        raise RuntimeError(f"{' '.join(command.words)}: ended with {code}")
    return taken * 1000
