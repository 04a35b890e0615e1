"""The protocol and the hot upgrade on other releases of OTP.

    python -m tests.otp_matrix [25 27 28 29]

A release that is not installed is fetched into .cache/otp first, in less than a minute, and nothing
else is touched (tests/matrix/runtimes.py). Then, with it at the front of PATH:

    protocol   tests/test_otp_node.py, and tests/test_otp_tls.py where it has ssl
    upgrade    tests/matrix/upgrade.py on the example, built with it (not on 28: no Elixir there)

A release that this machine cannot have is skipped, and why is said. Exit code 1: a test failed, or
all were skipped.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from tests.matrix.runtimes import CACHE, ROOT, SUITES, WHEELS, NotHere, Runtime, runtime

PROTOCOL = ("tests/test_otp_node.py",)
TLS = ("tests/test_otp_tls.py",)
UPGRADE = ("tests/matrix/upgrade.py",)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.otp_matrix", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    known = sorted((*SUITES, *WHEELS))
    parser.add_argument("releases", metavar="OTP", nargs="*", type=int, help=f"of {known}")
    asked = parser.parse_args().releases or known
    for release in asked:
        if release not in known:
            parser.error(f"OTP {release}: known are {', '.join(map(str, known))}")
    lines, failed, tried = [], False, False
    for release in asked:
        try:
            found = runtime(release)
        except NotHere as why:
            lines.append(f"OTP {release}: skipped: {why}")
            continue
        print(f"\n--- {found}", flush=True)
        tried = True
        parts = {"protocol": PROTOCOL + (TLS if found.has_ssl else ())}
        if found.elixir:
            parts["upgrade"] = UPGRADE
        for name, files in parts.items():
            verdict, fine = _try(found, files)
            failed |= not fine
            lines.append(f"{found}: {name}: {verdict}")
    print("\n" + "\n".join(lines))
    return int(failed or not tried)


def _try(found: Runtime, files: tuple[str, ...]) -> tuple[str, bool]:
    """Runs these tests on that release; the verdict, and whether all were run and passed."""
    env = {
        **found.env,
        "MATRIX_OTP": str(found.release),
        "MATRIX_PACKAGES": str(CACHE / f"packages-{found.version}-{found.elixir}"),
    }
    env["PATH"] = os.pathsep.join((env["PATH"], str(Path(sys.executable).parent)))
    began = time.monotonic()
    words = (sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *files)
    done = subprocess.run(words, env=env, cwd=ROOT, text=True, stdout=subprocess.PIPE)
    print(done.stdout, end="", flush=True)
    count = {word: int(number) for number, word in re.findall(r"(\d+) (\w+)", done.stdout[-200:])}
    passed, skipped = count.get("passed", 0), count.get("skipped", 0)
    fine = done.returncode == 0 and passed > 0 and skipped == 0
    said = "passed" if fine else f"FAILED (pytest ends with {done.returncode}, {skipped} skipped)"
    return f"{said}, {passed} tests in {time.monotonic() - began:.0f} s", fine


if __name__ == "__main__":
    sys.exit(main())
