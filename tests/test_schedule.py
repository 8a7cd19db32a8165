from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlbench_exec import rules
from mlbench_exec.samples import Sample
from mlbench_exec.schedule import Execution, Plan, plan, skip
from mlbench_exec.scores import KS, Tally
from mlbench_exec.submissions import Submission, output_hash
from mlbench_exec.testing.fakes import observation
from mlbench_exec.verdicts import Verdict

SAMPLE = Sample(
    github_id=9, id=1, repository="r", path="./", arguments={"lr": "0.1"}, type="Python Code"
)
GOOD, OTHER, THIRD = "f(0.1)", "g(0.1)", "h(0.1)"
NO_ARGUMENT, BASH = "f()", "python train.py --lr 0.1"


def planned(*outputs: str | None, judged: Mapping[int, bool] | None = None, **options: Any) -> Plan:
    submission = Submission(github_id=9, id=1, outputs=outputs, place="o.jsonl:7")
    return plan(submission, SAMPLE, judged or {}, **options)


def indices(found: Plan) -> list[list[tuple[int, ...]]]:
    return [[execution.indices for execution in chain] for chain in found.chains]


def statuses(found: Plan) -> dict[int, str]:
    return {verdict.index: verdict.status for verdict in found.verdicts}


def test_every_output_is_executed_by_itself() -> None:
    """Outputs of a row wait for nothing, equal ones too."""
    found = planned(GOOD, OTHER, GOOD)
    assert indices(found) == [[(0,)], [(1,)], [(2,)]]
    assert (found.verdicts, found.unjudged) == ((), ())
    assert found.chains[1] == (
        Execution(
            sample=SAMPLE,
            indices=(1,),
            code=OTHER,
            code_hash=output_hash(OTHER),
            checks=rules.check(SAMPLE, OTHER),
        ),
    )


def test_what_a_static_check_fails_is_not_executed() -> None:
    """It has its verdict already, whatever else is asked for."""
    choices: list[dict[str, Any]] = [{}, {"until_pass": True}, {"share_identical": True}]
    for options in choices:
        found = planned(NO_ARGUMENT, GOOD, BASH, NO_ARGUMENT, **options)
        assert statuses(found) == {0: "wrong_arguments", 2: "wrong_type", 3: "wrong_arguments"}
        assert indices(found) == [[(1,)]]
        assert found.verdicts[0].output_hash == output_hash(NO_ARGUMENT)


def test_a_row_of_static_failures_needs_no_chain() -> None:
    """Nothing to execute is no chain, also where a row's outputs would be one."""
    assert planned(NO_ARGUMENT, BASH, until_pass=True).chains == ()


def test_an_output_that_is_no_text_stays_unjudged() -> None:
    """It is named with its place, and its neighbours are judged."""
    found = planned(GOOD, None, OTHER)
    assert indices(found) == [[(0,)], [(2,)]]
    (unjudged,) = found.unjudged
    assert unjudged.kind == "input"
    assert (unjudged.github_id, unjudged.id, unjudged.index) == (9, 1, 1)
    assert unjudged.place == "o.jsonl:7"
    assert 'write ""' in unjudged.reason


def test_an_empty_answer_is_an_output() -> None:
    """ML-Bench executes it where a row asks for no argument."""
    plain = Sample(github_id=9, id=1, repository="r", path="", arguments={}, type="Python Code")
    submission = Submission(github_id=9, id=1, outputs=("",), place="p")
    assert indices(plan(submission, plain, {})) == [[(0,)]]


def test_until_pass_makes_one_chain_in_order() -> None:
    """The outputs of a row run one after another, the first one first."""
    assert indices(planned(GOOD, NO_ARGUMENT, OTHER, THIRD, until_pass=True)) == [
        [(0,), (2,), (3,)]
    ]


def test_what_follows_a_pass_is_skipped() -> None:
    """The verdict on a chain's later executions says so, for each of their outputs."""
    found = planned(GOOD, OTHER, until_pass=True)
    (first,) = skip(found.chains[0][1])
    assert (first.index, first.status, first.passed) == (1, "skipped", False)
    assert first.arguments_ok
    assert first.output_hash == output_hash(OTHER)


def test_equal_outputs_share_an_execution() -> None:
    """They stand where the first of them stands."""
    found = planned(GOOD, OTHER, GOOD, None, GOOD, share_identical=True)
    assert indices(found) == [[(0, 2, 4)], [(1,)]]


def test_equal_outputs_keep_their_places_until_a_pass() -> None:
    """Whether one of them is skipped must not hang on when its row was interrupted."""
    assert indices(planned(GOOD, OTHER, GOOD, share_identical=True, until_pass=True)) == [
        [(0,), (1,), (2,)]
    ]


def test_what_is_judged_is_left_out() -> None:
    """A continued run executes the rest only."""
    found = planned(GOOD, NO_ARGUMENT, OTHER, None, judged={0: False, 1: False, 3: False})
    assert indices(found) == [[(2,)]]
    assert (found.verdicts, found.unjudged) == ((), ())


def test_a_continued_row_skips_what_follows_its_known_pass() -> None:
    """What precedes it is executed, since pass@1 can change; static verdicts are given anyway."""
    found = planned(GOOD, OTHER, THIRD, NO_ARGUMENT, GOOD, judged={2: True}, until_pass=True)
    assert indices(found) == [[(0,), (1,)]]
    assert statuses(found) == {3: "wrong_arguments", 4: "skipped"}


def test_a_known_pass_stops_nothing_unless_asked() -> None:
    """Without until-pass every output gets its own verdict."""
    assert indices(planned(GOOD, OTHER, judged={0: True})) == [[(1,)]]


def test_equal_outputs_after_a_known_pass_are_skipped() -> None:
    """Sharing an execution does not bring back what can't change pass@k."""
    found = planned(GOOD, OTHER, GOOD, judged={1: True}, until_pass=True, share_identical=True)
    assert indices(found) == [[(0,)]]
    assert statuses(found) == {2: "skipped"}


def execute(
    found: Plan, passing: frozenset[str], unlucky: frozenset[int], *, until_pass: bool
) -> list[Verdict]:
    """What an engine makes of a plan; the outputs in `unlucky` meet broken sandboxes."""
    verdicts = list(found.verdicts)
    for chain in found.chains:
        has_passed = False
        for execution in chain:
            if has_passed and until_pass:
                verdicts += skip(execution)
            elif unlucky.isdisjoint(execution.indices):
                has_passed = has_passed or execution.code in passing
                verdicts += (verdict_of(execution, index, passing) for index in execution.indices)
    return verdicts


def verdict_of(execution: Execution, index: int, passing: frozenset[str]) -> Verdict:
    return rules.executed_verdict(
        execution.sample,
        index,
        execution.code_hash,
        execution.checks,
        observation(exit_code=0 if execution.code in passing else 1),
        environment="e",
        attempts=1,
        contended=False,
        started_at="2026-01-01T00:00:00.000+00:00",
        slot=0,
    )


def scores(outputs: int, verdicts: list[Verdict], *, until_pass: bool) -> list[int | None]:
    tally = Tally(until_pass=until_pass)
    tally.declare(SAMPLE.key, outputs)
    for verdict in verdicts:
        tally.add(verdict)
    return [tally.passed(SAMPLE.key, k) for k in KS]


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(
    outputs=st.lists(st.sampled_from([GOOD, OTHER, THIRD, NO_ARGUMENT, None]), max_size=6),
    passing=st.frozensets(st.sampled_from([GOOD, OTHER, THIRD])),
    unlucky=st.frozensets(st.integers(0, 5)),
    until_pass=st.booleans(),
    share_identical=st.booleans(),
)
def test_no_short_cut_changes_pass_at_k(
    outputs: list[str | None],
    passing: frozenset[str],
    unlucky: frozenset[int],
    until_pass: bool,
    share_identical: bool,
) -> None:
    """Until-pass, shared executions and interruptions give the pass@k of a full run."""
    full = execute(planned(*outputs), passing, frozenset(), until_pass=False)
    expected = scores(len(outputs), full, until_pass=False)

    options: dict[str, Any] = {"until_pass": until_pass, "share_identical": share_identical}
    first = execute(planned(*outputs, **options), passing, unlucky, until_pass=until_pass)
    judged = {verdict.index: verdict.passed for verdict in first}
    rest = planned(*outputs, judged=judged, **options)
    second = execute(rest, passing, frozenset(), until_pass=until_pass)
    assert scores(len(outputs), first + second, until_pass=until_pass) == expected

    assert len(judged) == len(first)  # no output twice
    assert judged.keys().isdisjoint(verdict.index for verdict in second)
    assert {verdict.index for verdict in first + second} == {
        index for index, code in enumerate(outputs) if code is not None
    }
