"""0.1.1 -> 0.1.2 hot and back on the OTP of PATH, with releases that were built on it.

tests.otp_matrix gives this file to pytest, once for each release of OTP; a plain run of the tests
does not collect it. $MATRIX_PACKAGES is the folder of the packages, $MATRIX_OTP the release.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.test_hot_upgrade import assert_same_vm, end_trial, goes_hot, look, node, prepare, upgrade
from tests.world import World, eventually

ROOT = Path(__file__).parents[2]
OTP = os.environ.get("MATRIX_OTP", "")


@pytest.fixture(scope="session")
def packages() -> Path:
    """What the example's own script builds with the Elixir of PATH."""
    folder = Path(os.environ["MATRIX_PACKAGES"])
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        [ROOT / "examples/counter/build", folder, "0.1.1", "0.1.2", "raises/0.1.2"], check=True
    )
    return folder


@pytest.fixture
def counter(world: World) -> World:
    """0.1.1 runs on that release, is confirmed, and has counted to three."""
    prepare(world)
    with node(world) as beam:
        assert beam.evaluate("erlang:system_info(otp_release)") == OTP
    return world


def test_up_hot_and_back_hot_in_one_vm_with_its_counter_and_up_again(counter: World) -> None:
    before = look(counter)
    assert before.answer["counter"] == 3
    upgrade(counter, "0.1.2")
    up = assert_same_vm(before, counter, "0.1.2", state=2)
    assert (up.boots, up.known) == ("0.1.2", {"0.1.2": "permanent", "0.1.1": "old"})
    counter.get("/increment")
    before = look(counter)
    assert before.answer["counter"] == 4
    assert "0.1.1 is current again hot, in the same VM" in counter.ok("rollback")
    end_trial(counter)
    down = assert_same_vm(before, counter, "0.1.1", state=1)
    assert down.boots == "0.1.1"
    assert down.known["0.1.1"] == "permanent"
    assert down.terms == []
    counter.publish("0.1.2")
    goes_hot(counter, "--force")  # it is ghosted since the way back
    end_trial(counter)
    assert_same_vm(before, counter, "0.1.2", state=2)


def test_a_code_change_that_raises_ends_in_a_full_deployment_of_the_version(
    counter: World,
) -> None:
    before = look(counter)
    counter.ok("publish", str(counter.packages / "raises/counter-0.1.2.tar.gz"))
    counter.run("check")
    answer = counter.answers("0.1.2")
    assert answer["os_pid"] != before.answer["os_pid"]
    assert len(counter.vms()) == 1


def test_the_node_is_shown_and_stops_at_once(counter: World) -> None:
    told = counter.status()["node"]
    assert told["reachable"] is True
    assert told["otp_release"] == OTP
    counter.ok("stop")
    eventually(lambda: not counter.vms())
    assert counter.is_silent()
