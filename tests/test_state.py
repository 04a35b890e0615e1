"""The state file's codec: what is written reads back, and anything else is refused by its name."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployex_cli.core.state import (
    SCHEMA_VERSION,
    Deployment,
    Ghost,
    Phase,
    Release,
    State,
    StateTooNew,
    StateUnreadable,
    StepName,
    decode_state,
    encode_state,
)

text = st.text(max_size=12)
maybe_text = st.none() | text
times = st.floats(0, 4e9) | st.integers(0, 2**33).map(float)
releases = st.builds(Release, text, maybe_text, text, maybe_text)
deployments = st.builds(
    Deployment,
    id=st.integers(0),
    kind=st.sampled_from(["deployment", "rollback"]),
    strategy=st.sampled_from(["full_deployment", "hot_upgrade"]),
    target=releases,
    origin=st.none() | releases,
    pre_commands=st.lists(text, max_size=3).map(tuple),
    phase=st.sampled_from(Phase),
    intent=st.none() | st.sampled_from(StepName),
    began_at=times,
    phase_at=times,
    by=text,
    reason=text,
)
entries = st.dictionaries(text, st.none() | text | times, max_size=3)
states = st.builds(
    State,
    wanted=st.sampled_from(["running", "stopped"]),
    deployment=st.none() | deployments,
    trial=st.none() | deployments,
    ghosts=st.lists(st.builds(Ghost, text, maybe_text, text, times), max_size=2).map(tuple),
    unlogged=st.lists(entries, max_size=2).map(tuple),
)

FULL = State(
    wanted="stopped",
    deployment=Deployment(
        id=3,
        kind="rollback",
        strategy="full_deployment",
        target=Release("1.0.0", "aa", "hash", "1-1.0.0"),
        origin=Release("2.0.0"),
        pre_commands=("eval x",),
        phase=Phase.PREPARED,
        intent=StepName.STOP,
        began_at=1.5,
        phase_at=2.5,
        by="timer",
        reason="",
    ),
    ghosts=(Ghost("0.9.0", None, "it failed", 1.0),),
    unlogged=({"at": 1.0, "event": "deployed"},),
)
DOCUMENT: dict[str, Any] = json.loads(encode_state(FULL))


@given(states)
def test_what_is_written_reads_back_the_same(state: State) -> None:
    assert decode_state(encode_state(state)) == state


@given(states)
def test_what_reads_back_has_the_very_types_that_were_written(state: State) -> None:
    again = decode_state(encode_state(state)).deployment
    if again is not None:
        assert type(again.phase) is Phase
        assert again.intent is None or type(again.intent) is StepName
        assert type(again.target) is Release
        assert type(again.pre_commands) is tuple


def test_the_file_is_one_of_lines_that_people_can_read() -> None:
    raw = encode_state(FULL)
    assert raw.endswith(b"}\n")
    assert DOCUMENT["schema_version"] == SCHEMA_VERSION
    assert DOCUMENT["deployment"]["phase"] == "prepared"


def test_what_schema_1_wrote_can_be_read_for_ever() -> None:
    written = """
    {"schema_version": 1, "wanted": "stopped",
     "deployment": {
       "id": 3, "kind": "rollback", "strategy": "full_deployment",
       "target": {"version": "1.0.0", "digest": "aa", "hash": "hash", "folder": "1-1.0.0"},
       "origin": {"version": "2.0.0", "digest": null, "hash": "", "folder": null},
       "pre_commands": ["eval x"], "phase": "prepared", "intent": "stop",
       "began_at": 1.5, "phase_at": 2.5, "by": "timer", "reason": ""},
     "ghosts": [{"version": "0.9.0", "digest": null, "reason": "it failed", "at": 1.0}],
     "unlogged": [{"at": 1.0, "event": "deployed"}]}
    """
    assert decode_state(written.encode()) == FULL


@pytest.mark.parametrize("version", [SCHEMA_VERSION + 1, 99, 10**30])
def test_a_newer_schema_is_refused_with_its_number_whatever_else_is_in_it(version: int) -> None:
    with pytest.raises(StateTooNew) as caught:
        decode_state(json.dumps({"schema_version": version}).encode())
    assert caught.value.args == (version,)


def test_an_older_schema_without_a_migration_is_unreadable() -> None:
    with pytest.raises(StateUnreadable):
        decode_state(json.dumps({**DOCUMENT, "schema_version": 0}).encode())


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"null",
        b"[]",
        b"7",
        b"{}",
        bytes(4096),
        b"\xff\xfe",
        b"[" * 100_000,
        encode_state(FULL)[:-3],
        encode_state(FULL)[: len(encode_state(FULL)) // 2],
        encode_state(FULL).replace(b'"began_at": 1.5', b'"began_at": 1' + b"0" * 400),
        encode_state(FULL).replace(b'"began_at": 1.5', b'"began_at": ' + b"1" * 5000),
    ],
    ids=lambda raw: repr(raw[:12]),
)
def test_what_is_no_state_is_unreadable(raw: bytes) -> None:
    with pytest.raises(StateUnreadable):
        decode_state(raw)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("wanted", "restarted"),
        ("wanted", None),
        ("ghosts", None),
        ("ghosts", [{}]),
        ("ghosts", [{"version": "1", "digest": 7, "reason": "", "at": 1.0}]),
        ("unlogged", ["text"]),
        ("deployment", []),
        ("deployment.id", "3"),
        ("deployment.id", True),
        ("deployment.kind", "upgrade"),
        ("deployment.strategy", "lukewarm"),
        ("deployment.target", None),
        ("deployment.target", {"version": "1"}),
        ("deployment.origin", "1.0.0"),
        ("deployment.pre_commands", "eval x"),
        ("deployment.pre_commands", [7]),
        ("deployment.phase", "halfway"),
        ("deployment.phase", None),
        ("deployment.intent", "jump"),
        ("deployment.began_at", "yesterday"),
        ("deployment.began_at", True),
        ("deployment.began_at", -1),
        ("deployment.began_at", 1e300),
        ("deployment.began_at", 253402300800),  # the year 10000
        ("deployment.phase_at", float("nan")),
        ("deployment.phase_at", float("inf")),
        ("deployment.by", None),
    ],
)
def test_a_value_that_no_run_writes_makes_it_unreadable(key: str, value: Any) -> None:
    document = json.loads(json.dumps(DOCUMENT))
    table = document
    *path, last = key.split(".")
    for part in path:
        table = table[part]
    table[last] = value
    with pytest.raises(StateUnreadable):
        decode_state(json.dumps(document).encode())


@pytest.mark.parametrize("key", DOCUMENT)
def test_a_missing_key_makes_it_unreadable(key: str) -> None:
    less = {k: v for k, v in DOCUMENT.items() if k != key}
    with pytest.raises(StateUnreadable):
        decode_state(json.dumps(less).encode())


@pytest.mark.parametrize("key", DOCUMENT["deployment"])
def test_a_key_missing_of_the_deployment_makes_it_unreadable(key: str) -> None:
    less = {k: v for k, v in DOCUMENT["deployment"].items() if k != key}
    with pytest.raises(StateUnreadable):
        decode_state(json.dumps({**DOCUMENT, "deployment": less}).encode())


def reads_or_says_why(raw: bytes) -> None:
    """What is read can be written again; nothing else is raised than the two."""
    try:
        state = decode_state(raw)
    except (StateUnreadable, StateTooNew):
        return
    assert decode_state(encode_state(state)) == state


@given(st.binary(max_size=100))
def test_no_bytes_raise_anything_else(raw: bytes) -> None:
    reads_or_says_why(raw)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | text,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(text, inner, max_size=2),
    max_leaves=4,
)


@given(st.sampled_from(list(DOCUMENT)), values)
def test_no_value_of_a_key_raises_anything_else(key: str, value: Any) -> None:
    reads_or_says_why(json.dumps({**DOCUMENT, key: value}).encode())


@given(st.sampled_from(list(DOCUMENT["deployment"])), values)
def test_no_value_in_the_deployment_raises_anything_else(key: str, value: Any) -> None:
    deployment = {**DOCUMENT["deployment"], key: value}
    reads_or_says_why(json.dumps({**DOCUMENT, "deployment": deployment}).encode())


@given(st.integers(0, 900), st.binary(max_size=3), st.integers(0, 4))
def test_no_damage_raises_anything_else(at: int, new: bytes, gone: int) -> None:
    raw = encode_state(FULL)
    reads_or_says_why(raw[:at] + new + raw[at + gone :])
