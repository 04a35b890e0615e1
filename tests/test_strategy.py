"""Hot or in full: one row for each thing that can stand in the way."""

from __future__ import annotations

import itertools
import subprocess

import pytest

from deployex_cli.core.strategy import (
    RULES,
    Appup,
    Choice,
    Jellyfish,
    PackageFacts,
    RunningFacts,
    choose,
    matches,
)

PROJECT = Jellyfish("counter-0.1.2", "project", "0.1.1", "0.1.2", runs="0.1.1")
PHRASE = Jellyfish("phrase-2.0.1", "dependency", "2.0.0", "2.0.1", runs="2.0.0")
APPUP = "lib/counter-0.1.2/ebin/counter.appup"
ELIXIR = PackageFacts(
    "0.1.1",
    "0.1.2",
    holds="0.1.2",
    jellyfish=(PROJECT, PHRASE),
    appups=(APPUP,),
    app_runs="0.1.1",
    erts=("erts-15.2",),
    running_erts=("erts-15.2",),
)
ERLANG = ELIXIR._replace(jellyfish=())
READ = Appup(APPUP, "0.1.2", ("0.1.1",), ("0.1.1",))
RUNS = RunningFacts(True, version="0.1.1")


def hot(choice: Choice) -> bool:
    return choice.strategy == "hot_upgrade"


def test_when_nothing_stands_in_the_way_it_goes_hot() -> None:
    expected = Choice("hot_upgrade", "ok", "hot upgrade: from 0.1.1 to 0.1.2")
    assert choose(ELIXIR, RUNS, "elixir") == expected
    assert choose(ERLANG, RUNS._replace(appup=READ), "erlang") == expected
    assert choose(ERLANG, RUNS._replace(appup=READ), "elixir") == expected


def test_what_the_node_has_not_been_asked_yet_stands_in_nobodys_way() -> None:
    assert hot(choose(ELIXIR, RunningFacts(True), "elixir"))
    assert hot(choose(ERLANG, RunningFacts(True), "erlang"))


@pytest.mark.parametrize(
    ("change", "reason", "words"),
    [
        ({"problem": "x.json: no JSON"}, "error_reading_file", "x.json: no JSON"),
        (
            {"jellyfish": (), "appups": ()},
            "not_found",
            "the package holds no upgrade instructions (no jellyfish.json and no appup)",
        ),
        (
            {"jellyfish": (PROJECT._replace(appups=0), PHRASE)},
            "not_found",
            "0 appups stand beside lib/counter-0.1.2/ebin/jellyfish.json",
        ),
        (
            {"jellyfish": (PROJECT, PHRASE._replace(appups=2))},
            "not_found",
            "2 appups stand beside lib/phrase-2.0.1/ebin/jellyfish.json",
        ),
        (
            {"erts": ("erts-15.2",), "running_erts": ("erts-13.1.5",)},
            "different_erts",
            "its runtime is erts-15.2, erts-13.1.5 runs",
        ),
        ({"erts": ()}, "different_erts", "its runtime is none, erts-15.2 runs"),
        ({"holds": "0.1.9"}, "no_match_versions", "the package boots 0.1.9, not 0.1.2"),
        ({"holds": None}, "no_match_versions", "the package boots None, not 0.1.2"),
        ({"origin": "0.1.2"}, "no_match_versions", "0.1.2 runs already"),
        (
            {"origin": "0.1.0"},
            "no_match_versions",
            "it leads from 0.1.1 to 0.1.2, and needed is 0.1.0 to 0.1.2",
        ),
        (
            {"jellyfish": (PROJECT._replace(target="0.1.3"), PHRASE)},
            "no_match_versions",
            "it leads from 0.1.1 to 0.1.3, and needed is 0.1.1 to 0.1.2",
        ),
        (
            {"jellyfish": (PROJECT, PHRASE._replace(runs="1.9.0"))},
            "no_match_versions",
            "it leads from 2.0.0 to 2.0.1 of phrase, and needed is 1.9.0 to 2.0.1",
        ),
        (  # an umbrella: one of its projects was left behind
            {"jellyfish": (PROJECT, PROJECT._replace(library="web-0.1.2", origin="0.1.0"))},
            "no_match_versions",
            "it leads from 0.1.0 to 0.1.2, and needed is 0.1.1 to 0.1.2",
        ),
        ({"has_sasl": False}, "no_release_handler", "the release that runs holds no sasl"),
        (
            {"runtime": ("kernel 9.2 to 10.1",)},
            "runtime_changed",
            "the runtime changes (kernel 9.2 to 10.1)",
        ),
        (
            {"differing": ("lib/a-1/ebin/a.beam",)},
            "same_version_other_content",
            "lib/a-1/ebin/a.beam differs and its version does not",
        ),
        (
            {"protocols": ("A", "B", "C", "D", "E")},
            "protocols_changed",
            "consolidated protocols change (A, B, C and 2 more)",
        ),
        (
            {"without_rel": ("0.1.1", "0.1.2")},
            "relup_not_possible",
            "there is no .rel file of 0.1.1, 0.1.2",
        ),
    ],
)
def test_what_the_package_says_needs_no_node(
    change: dict[str, object], reason: str, words: str
) -> None:
    expected = Choice("full_deployment", reason, f"full deployment: {words}")  # type: ignore[arg-type]
    package = ELIXIR._replace(**change)  # type: ignore[arg-type]
    assert choose(package, RUNS, "elixir") == expected
    assert choose(package, RUNS._replace(unreachable="connection refused"), "elixir") == expected


@pytest.mark.parametrize(
    ("change", "reason", "words"),
    [
        ({"runs": False}, "nothing_runs", "nothing runs that could be upgraded"),
        (
            {"asked": False},
            "distribution_none",
            'distribution = "none", so its node is never asked',
        ),
        (
            {"on_trial": "0.1.1"},
            "other_upgrade_on_trial",
            "the hot upgrade to 0.1.1 is still on trial",
        ),
        (
            {"has_release_handler": False},
            "no_release_handler",
            "the node runs no release_handler (sasl)",
        ),
        ({"version": "0.1.0"}, "no_match_versions", "the node runs 0.1.0, not 0.1.1"),
    ],
)
def test_what_runs_may_stand_in_the_way(change: dict[str, object], reason: str, words: str) -> None:
    choice = choose(ELIXIR, RUNS._replace(**change), "elixir")  # type: ignore[arg-type]
    assert choice == ("full_deployment", reason, f"full deployment: {words}")


@pytest.mark.parametrize(
    ("appup", "reason", "words"),
    [
        (
            Appup(APPUP, problem="3: syntax error before: '['"),
            "error_reading_file",
            f"{APPUP}: 3: syntax error before: '['",
        ),
        (READ._replace(target="0.1.3"), "no_match_versions", f"{APPUP} leads to 0.1.3"),
        (READ._replace(ups=()), "no_match_versions", f"{APPUP} knows no way from 0.1.1"),
        (READ._replace(ups=(b"0\\.2",)), "no_match_versions", f"{APPUP} knows no way from 0.1.1"),
    ],
)
def test_an_appup_has_to_lead_from_what_runs(appup: Appup, reason: str, words: str) -> None:
    for language in ("erlang", "elixir"):
        choice = choose(ERLANG, RUNS._replace(appup=appup), language)  # type: ignore[arg-type]
        assert choice == ("full_deployment", reason, f"full deployment: {words}")


def test_the_version_of_the_library_counts_for_its_appup_not_the_releases() -> None:
    package = ERLANG._replace(appups=("lib/counter-9/ebin/counter.appup",), app_runs="8")
    appup = Appup(package.appups[0], "9", ("8",))
    assert hot(choose(package, RUNS._replace(appup=appup), "erlang"))
    assert not hot(choose(package, RUNS._replace(appup=appup._replace(ups=("0.1.1",))), "erlang"))


def test_a_node_that_does_not_answer_is_neither_success_nor_failure() -> None:
    for appup in (None, READ, READ._replace(problem="unread")):
        running = RUNS._replace(unreachable="connection refused", appup=appup)
        assert choose(ERLANG, running, "erlang") == (
            None,
            "node_not_reachable",
            "neither hot nor in full for now: its node does not answer (connection refused);"
            " the next check tries again",
        )


def test_a_gleam_package_is_deployed_in_full() -> None:
    choice = choose(ELIXIR, RUNS, "gleam")
    assert (choice.strategy, choice.reason) == ("full_deployment", "not_found")


def test_without_a_release_to_hold_it_against_it_is_a_full_deployment() -> None:
    assert choose(None, RunningFacts(False), "elixir").reason == "nothing_runs"
    assert choose(None, RunningFacts(True), "elixir").reason == "nothing_runs"
    assert choose(None, RunningFacts(True, asked=False), "elixir").reason == "distribution_none"


def test_what_tells_of_an_upgrade_before_this_one_is_not_listened_to() -> None:
    past = Jellyfish("phrase-2.0.1", "dependency", "2.0.0", "2.0.1", appups=3, runs="2.0.1")
    assert hot(choose(ELIXIR._replace(jellyfish=(PROJECT, past)), RUNS, "elixir"))
    alone = ELIXIR._replace(jellyfish=(past,), appups=())
    assert choose(alone, RUNS, "elixir").reason == "not_found"


def test_an_erlang_package_is_not_judged_by_a_jellyfish_of_some_library() -> None:
    package = ERLANG._replace(jellyfish=(PHRASE._replace(origin="1"),))
    assert hot(choose(package, RUNS._replace(appup=READ), "erlang"))
    assert choose(package._replace(appups=()), RUNS, "erlang").words.endswith("(no appup)")


def test_the_words_begin_with_the_strategy_whatever_stands_in_the_way() -> None:
    names = ("problem", "has_sasl", "protocols", "without_rel", "runtime")
    values: tuple[object, ...] = ("broken", False, ("P",), ("1",), ("kernel 1 to 2",))
    seen = set()
    for number in range(len(names) + 1):
        for chosen in itertools.combinations(range(len(names)), number):
            package = ELIXIR._replace(**{names[i]: values[i] for i in chosen})  # type: ignore[arg-type]
            choice = choose(package, RUNS, "elixir")
            begin = "hot upgrade: " if hot(choice) else "full deployment: "
            assert choice.words.startswith(begin)
            seen.add(choice.reason)
    order = [reason for reason, _ in RULES if reason in seen]
    assert set(order) == seen - {"ok"}


PATTERNS = (
    *(b"0\\.1\\.1", b"0\\.1\\.[0-9]+", b".*", b"0|0\\.1\\.1", b"0\\.1\\.1|0", b"0\\.1", b"", b"1$"),
    *(
        b"^0\\.1\\.1$",
        b"0\\.1\\.1\\d*",
        b"\\d+(\\.\\d+)*",
        b"0\\.1\\.1(?=-rc)",
        b"(?i)0\\.1\\.1-RC",
    ),
)
VERSIONS = ("0.1.1", "0.1.10", "0.1.1-rc", "10.1.1", "0.1.1\n", "0.2.0")


def test_a_from_that_is_text_is_that_version_alone() -> None:
    assert matches("0.1.1", "0.1.1")
    assert not matches("0.1.", "0.1.1")
    assert not matches(".*", "0.1.1")


def test_what_only_otp_can_compile_is_left_to_make_relup() -> None:
    assert matches(b"[[:digit:].]+", "0.1.1")
    assert matches(b"\\h*0\\Q.1.\\E1", "0.1.1")
    assert matches(b"\xff", "0.1.1")


@pytest.mark.beam
def test_a_from_that_is_a_binary_means_what_it_means_to_otp() -> None:
    def term(raw: bytes) -> str:
        return f"<<{','.join(map(str, raw))}>>"

    program = f"""
        [io:format("~p~n", [element(1, {{systools_relup:appup_search_for_version(
            binary_to_list(V), [{{P, []}}]), 0}})])
            || P <- [{",".join(map(term, PATTERNS))}],
               V <- [{",".join(term(v.encode()) for v in VERSIONS)}]],
        halt().
    """
    command = ["erl", "-noshell", "-eval", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    pairs = list(itertools.product(PATTERNS, VERSIONS))
    answers = dict(zip(pairs, done.stdout.splitlines(), strict=True))
    assert set(answers.values()) == {"{ok,[]}", "error"}, done
    assert {pair: "{ok,[]}" if matches(*pair) else "error" for pair in pairs} == answers
