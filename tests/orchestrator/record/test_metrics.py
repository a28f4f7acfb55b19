from dataclasses import replace

import numpy as np
import pytest

from actors.types import DroppedGroup
from orchestrator.record.evaluations import EvaluationRecord
from orchestrator.record.metrics import (
    accuracy_interval,
    as_metrics,
    bootstrap_interval,
    by_budget,
    by_difficulty,
    by_source,
    evaluation_metrics,
    group_metrics,
    length_reduction,
    summarise,
    wilson_interval,
)
from rewards.base import Outcome
from tests.fakes import make_group, make_prompt


def make_record(task_id, tokens, correct, difficulty=1, cap=0):
    return EvaluationRecord(
        task_id=task_id,
        difficulty=difficulty,
        mode="reasoning",
        cap=cap,
        n=len(tokens),
        answers=("1",) * len(tokens),
        outcomes=tuple(Outcome.CORRECT if right else Outcome.WRONG for right in correct),
        forced_tokens=(0,) * len(tokens),
        tokens=tuple(tokens),
        correct=tuple(correct),
        truncated=(False,) * len(tokens),
        seconds=1.0,
    )


def test_wilson_interval_of_nine_in_ten():
    # Centre (0.9 + 0.19207) / 1.38415 = 0.78899, half width (1.959964 / 1.38415) * sqrt(0.009 + 0.009604) = 0.19313
    assert wilson_interval(0.9, 10) == pytest.approx((0.5958, 0.9821), abs=2e-4)


def test_wilson_interval_stays_within_zero_and_one():
    assert wilson_interval(1.0, 5)[1] == 1.0
    assert wilson_interval(0.0, 5)[0] == pytest.approx(0.0, abs=1e-12)


def test_the_task_is_the_unit_of_accuracy():
    summary = summarise([make_record("a", [10, 20, 30], [True, True, False]), make_record("b", [40], [False])])
    assert summary.accuracy == pytest.approx(1 / 3)
    assert summary.mean_tokens == 25
    assert summary.num_tasks == 2
    assert as_metrics("eval/rl", summary)["eval/rl/mean_tokens"] == 25
    assert summary.accuracy_per_1k_tokens == pytest.approx(2 * 1000 / 100)


def test_what_limits_ended_and_what_could_not_be_read_is_counted():
    record = replace(
        make_record("a", [10, 20, 30, 40], [True, False, False, False]),
        outcomes=(Outcome.CORRECT, Outcome.WRONG, Outcome.UNPARSABLE, Outcome.UNPARSABLE),
        forced_tokens=(0, 0, 2, 0),
        truncated=(False, True, True, False),
    )
    summary = summarise([record])
    assert (summary.truncated_frac, summary.unparsable_frac, summary.forced_frac) == (0.5, 0.5, 0.25)


def test_bootstrap_interval_of_nine_in_ten():
    """Resampled means of nine 1 and one 0 are binomial (10, 0.9) over 10: 2.5 % of them lie at or below 0.7."""
    assert bootstrap_interval(np.array([1.0] * 9 + [0.0])) == pytest.approx((0.7, 1.0))


def test_bootstrap_interval_shrinks_with_the_number_of_tasks():
    few, many = np.array([0.0, 1.0] * 20), np.array([0.0, 1.0] * 2000)
    width_of_few, width_of_many = np.ptp(bootstrap_interval(few)), np.ptp(bootstrap_interval(many))
    assert width_of_few == pytest.approx(2 * 1.96 * 0.5 / 40**0.5, rel=0.1)
    assert width_of_many == pytest.approx(width_of_few / 10, rel=0.1)


def test_tasks_that_all_came_out_alike_get_wilsons_interval():
    assert accuracy_interval(np.ones(10)) == wilson_interval(1.0, 10)


def test_no_records_raise():
    with pytest.raises(ValueError, match="expected evaluation records"):
        summarise([])


def test_difficulties_are_summarised_apart():
    records = [make_record("a", [1], [True], 2), make_record("b", [3], [False], 1), make_record("c", [5], [True], 2)]
    assert {level: (s.accuracy, s.mean_tokens) for level, s in by_difficulty(records).items()} == {1: (0, 3), 2: (1, 3)}


def test_length_reduction_per_task_and_over_all_tokens():
    before = [make_record("a", [100], [True]), make_record("b", [60], [True])]
    after = [make_record("b", [20], [True]), make_record("a", [50], [True])]
    reduction = length_reduction(before, after)
    assert reduction["per_task_mean"] == pytest.approx(2.5)
    assert reduction["per_task_se"] == pytest.approx(0.5)
    assert reduction["ratio_of_means"] == pytest.approx(160 / 70)


def test_length_reduction_needs_tasks_in_common():
    with pytest.raises(ValueError, match="none in common"):
        length_reduction([make_record("a", [1], [True])], [make_record("b", [1], [True])])


def test_group_metrics_count_rollouts_drops_and_staleness():
    groups = [make_group([0.0, 0.5], version=4, num_tokens=6), make_group([1.0, 0.0], version=3, num_tokens=2)]
    metrics = group_metrics(
        groups, [DroppedGroup(group_id=9, reason="constant", prompt=make_prompt(), rollouts=())], policy_version=4
    )
    assert metrics["reward/mean"] == pytest.approx(0.375)
    assert metrics["reward/accuracy"] == pytest.approx(0.5)
    assert metrics["reward/length"] == pytest.approx(0.375)
    assert metrics["reward/correct_frac"] == 0.5
    assert metrics["rollout/completion_tokens_mean"] == 4
    assert metrics["rollout/completion_tokens_max"] == 6
    assert metrics["rollout/staleness_mean"] == 0.5
    assert metrics["rollout/staleness_max"] == 1
    assert metrics["rollout/dropped_frac"] == pytest.approx(1 / 3)
    always_right = DroppedGroup(
        group_id=9, reason="constant", prompt=make_prompt(), rollouts=make_group([1.0, 1.0]).rollouts
    )
    assert group_metrics(groups, [always_right], policy_version=4)["reward/accuracy"] == pytest.approx(4 / 6)
    assert metrics["rollout/dropped_constant"] == 1


def test_sources_are_told_apart_where_there_are_several():
    groups = [replace(make_group([1.0, 0.0], group_id=i), source="ab"[i % 2]) for i in range(4)]
    dropped = [
        DroppedGroup(
            group_id=9, reason="constant", prompt=make_prompt(), rollouts=make_group([1.0, 1.0]).rollouts, source="a"
        )
    ]
    metrics = group_metrics(groups, dropped, policy_version=4)
    assert metrics["source/a/dropped_frac"] == pytest.approx(1 / 3)
    assert metrics["source/b/dropped_frac"] == 0
    assert metrics["source/a/num_groups"] == 3
    assert metrics["source/b/accuracy"] == 0.5
    assert not [name for name in group_metrics(groups[::2], [], policy_version=4) if name.startswith("source/")]


def test_summaries_by_source_and_budget():
    records = [
        replace(make_record(f"t{i}", [40 + i], [i % 2 == 0]), source="ab"[i % 2], budget_tokens=(40, 80)[i // 5])
        for i in range(10)
    ]
    assert [(name, found.accuracy) for name, found in by_source(records).items()] == [("a", 1.0), ("b", 0.0)]
    budgets = by_budget(records)
    assert list(budgets) == ["40", "80"]
    assert budgets["40"].within_budget_frac == pytest.approx(0.2)
    assert budgets["80"].budget_gap_mean == pytest.approx((35 + 34 + 33 + 32 + 31) / 5 / 80)
    metrics = evaluation_metrics("eval/rl", records)
    assert metrics["eval/rl/source/a/accuracy"] == 1.0
    assert metrics["eval/rl/budget/80/within_budget_frac"] == 1.0
    assert metrics["eval/rl/tokens_per_correct"] == pytest.approx(sum(range(40, 50)) / 5)
    assert by_budget([make_record("t", [1], [True])]) == {}
