"""Schedule: what of a submission is to be executed, and in which order. Pure."""

from collections.abc import Mapping

import msgspec

from mlbench_exec import rules
from mlbench_exec.rules import StaticCheck
from mlbench_exec.samples import Sample
from mlbench_exec.scores import KS
from mlbench_exec.submissions import Submission, output_hash
from mlbench_exec.verdicts import Unjudged, Verdict


class Execution(msgspec.Struct, frozen=True, kw_only=True):
    """One program to run, for one output or, with shared executions, for several equal ones.

    In a chain until a pass, equal programs stand in their own places.
    """

    sample: Sample
    indices: tuple[int, ...]
    code: str
    code_hash: str
    checks: StaticCheck


Chain = tuple[Execution, ...]  # run one after another; until a pass, where that is asked for


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What becomes of one row: verdicts that need no sandbox, and chains that do."""

    verdicts: tuple[Verdict, ...]
    unjudged: tuple[Unjudged, ...]
    chains: tuple[Chain, ...]


def plan(
    submission: Submission,
    sample: Sample,
    judged: Mapping[int, bool],
    *,
    until_pass: bool = False,
    share_identical: bool = False,
) -> Plan:
    """Plan a row. `judged` holds what is known already: whether it passed, by index.

    With `until_pass`, outputs that can't change any pass@k are skipped: those after one that
    passed, and those beyond the largest k. What a static check fails keeps that verdict.
    """
    verdicts: list[Verdict] = []
    unjudged: list[Unjudged] = []
    executions: dict[object, Execution] = {}
    joins = share_identical and not until_pass  # else their turn comes, unless it is skipped
    first_pass = min((index for index, passed in judged.items() if passed), default=None)
    for index, code in enumerate(submission.outputs):
        if index in judged:
            continue
        if code is None:
            unjudged.append(_not_text(submission, index))
            continue
        checks, code_hash = rules.check(sample, code), output_hash(code)
        if not checks.ok:
            verdicts.append(rules.static_verdict(sample, index, code_hash, checks))
        elif until_pass and (index >= KS[-1] or (first_pass is not None and index > first_pass)):
            verdicts.append(rules.skipped_verdict(sample, index, code_hash, checks))
        else:
            same = executions.get(code_hash) if joins else None
            executions[code_hash if joins else index] = Execution(
                sample=sample,
                indices=(*(same.indices if same else ()), index),
                code=code,
                code_hash=code_hash,
                checks=checks,
            )
    all_of_them = tuple(executions.values())
    chains = (all_of_them,) if until_pass and all_of_them else tuple((e,) for e in all_of_them)
    return Plan(verdicts=tuple(verdicts), unjudged=tuple(unjudged), chains=chains)


def skip(execution: Execution) -> tuple[Verdict, ...]:
    """The verdicts of a chain's later executions once an earlier one has passed."""
    return tuple(
        rules.skipped_verdict(execution.sample, index, execution.code_hash, execution.checks)
        for index in execution.indices
    )


def _not_text(submission: Submission, index: int) -> Unjudged:
    return Unjudged(
        reason='the output is not a string; write "" for an empty answer',
        kind="input",
        github_id=submission.github_id,
        id=submission.id,
        index=index,
        place=submission.place,
    )
