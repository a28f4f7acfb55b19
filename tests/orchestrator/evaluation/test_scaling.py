"""Draws of N from S samples, KV blocks and routing curves, worked out by hand or by enumeration."""

import itertools

import numpy as np
import pytest

from actors.scaling import RULES
from orchestrator.evaluation.scaling import Modes, TaskSamples, peak_kv_blocks, scaling_rows, switcher_result


def make_samples(classes, correct, scores=None, tokens=None):
    return TaskSamples(
        num_prompt_tokens=70,
        classes=tuple(classes),
        scores=None if scores is None else tuple(scores),
        correct=np.array(correct, dtype=bool),
        tokens=np.array(tokens or [10] * len(classes)),
    )


SAMPLES = [
    make_samples([0, 0, 1, 2], [1, 1, 0, 0], [0.9, 0.8, 0.3, 0.1], [10, 20, 30, 40]),
    make_samples([0, 1, 1, -1], [1, 0, 0, 0], [0.9, 0.2, 0.1, 0.8], [10, 10, 10, 10]),
]


def rows_by(rows):
    return {(row["rule"], row["n"]): row for row in rows}


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("rule", RULES)
def test_many_draws_come_near_the_mean_over_all_ordered_draws(rule, n):
    expected = []
    for one in SAMPLES:
        right = []
        for chosen in itertools.permutations(range(4), n):
            picked = RULES[rule]([one.classes[i] for i in chosen], [one.scores[i] for i in chosen])
            right.append(picked is not None and one.correct[chosen[picked]])
        expected.append(np.mean(right))
    row = rows_by(scaling_rows(SAMPLES, [n], num_draws=3000, block_tokens=32, seed=0))[rule, n]
    assert row["accuracy"] == pytest.approx(np.mean(expected), abs=0.03)


def test_every_sample_at_once_leaves_nothing_to_chance():
    rows = rows_by(scaling_rows(SAMPLES, [4], num_draws=10, block_tokens=32, seed=0))
    # Task 1: majority, weighted and best are class 0, right. Task 2: majority is class 1, wrong; the scores say 0.
    assert [rows[rule, 4]["accuracy"] for rule in ("majority", "weighted", "best", "pass")] == [0.5, 1.0, 1.0, 1.0]
    assert rows["majority", 4]["accuracy_std"] == 0.0
    assert rows["majority", 4]["mean_tokens"] == (100 + 40) / 2


def test_with_one_sample_all_rules_are_one():
    rows = scaling_rows(SAMPLES, [1], num_draws=50, block_tokens=32, seed=1)
    assert len({row["accuracy"] for row in rows if row["rule"] != "pass"}) == 1
    assert rows_by(rows)["pass", 1]["accuracy"] == pytest.approx((0.5 + 0.25) / 2)


def test_the_spread_is_over_draws():
    rows = rows_by(scaling_rows(SAMPLES[:1], [1], num_draws=2000, block_tokens=32, seed=0))
    assert rows["majority", 1]["accuracy_std"] == pytest.approx(0.5, abs=0.02)  # right with probability one half


def test_rules_that_need_scores_are_left_out_without_them():
    rows = scaling_rows([make_samples([0, 1], [1, 0])], [1, 2], num_draws=5, block_tokens=32, seed=0)
    assert {row["rule"] for row in rows} == {"majority", "pass"}


def test_peak_kv_blocks_by_hand():
    assert peak_kv_blocks(70, np.array([30, 60]), 32) == 2 + 2 + 3
    assert peak_kv_blocks(64, np.array([1]), 32) == 3  # the prompt's last token is computed again, in its own block
    assert peak_kv_blocks(1, np.array([31, 32]), 32) == 1 + 2


MODES = Modes(
    base_accuracy=np.array([1.0, 1.0, 0.0, 0.0]),
    reasoning_accuracy=np.array([1.0, 1.0, 1.0, 0.5]),
    base_tokens=np.array([2.0, 2.0, 2.0, 2.0]),
    reasoning_tokens=np.array([10.0, 20.0, 30.0, 40.0]),
)


def test_a_curve_routes_by_falling_score():
    curve = MODES.curve(np.array([0.1, 0.2, 0.9, 0.8]))
    assert [point["routed_frac"] for point in curve] == [0, 0.25, 0.5, 0.75, 1]
    assert [point["accuracy"] for point in curve] == [0.5, 0.75, 0.875, 0.875, 0.875]
    assert [point["mean_tokens"] for point in curve] == [2, 9, 18.5, 23, 25]


def test_equal_scores_give_the_straight_line():
    curve = MODES.curve(np.full(4, 0.5))
    assert [point["accuracy"] for point in curve] == pytest.approx([0.5, 0.59375, 0.6875, 0.78125, 0.875])


def test_a_perfect_switcher_is_the_oracle_and_one_that_knows_nothing_has_no_area():
    perfect = switcher_result(np.array([0.1, 0.2, 0.9, 0.8]), 0.5, MODES)
    assert perfect["chosen"] == {"routed_frac": 0.5, "accuracy": 0.875, "mean_tokens": 18.5}
    assert perfect["regret"] == 0
    assert perfect["accuracy_loss"] == 0
    assert perfect["tokens_frac"] == 18.5 / 25
    # heights above the line 0.5 → 0.875 at shares 0, ¼, ½, ¾, 1: 0, .15625, .1875, .09375, 0
    assert perfect["area"] == pytest.approx((0.15625 + 0.1875 + 0.09375) / 4)
    assert perfect["area"] == perfect["area_oracle"]
    blind = switcher_result(np.full(4, 0.5), 0.5, MODES)
    assert blind["area"] == pytest.approx(0)
    assert blind["chosen"]["routed_frac"] == 1
    worst = switcher_result(np.array([0.9, 0.8, 0.2, 0.1]), 0.5, MODES)
    assert worst["regret"] == pytest.approx(0.375)
    assert worst["area"] < 0
