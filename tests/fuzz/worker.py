"""One target under atheris until its runs are done; tests/fuzz/__main__.py starts it."""

from __future__ import annotations

import resource
import sys

import atheris

ADDRESS_SPACE = 1 << 30  # bytes; what takes more raises MemoryError, which is found

with atheris.instrument_imports(include=["deployex_cli", "erlang"]):
    from tests.fuzz.targets import TARGETS


def main() -> None:
    """Does not return: libFuzzer ends the process."""
    target = TARGETS[sys.argv[1]]
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    flags = [f"-max_len={target.longest}", *sys.argv[2:]]
    atheris.Setup([sys.argv[0], *flags], target.run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
