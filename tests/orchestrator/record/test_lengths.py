import pytest

from orchestrator.record.lengths import MAX_BINS, budget_bins, length_metrics


def test_right_and_wrong_completions_apart_by_hand():
    assert length_metrics([50, 150], [True, False], [100, 100]) == {
        "correct_tokens_mean": 50.0,
        "tokens_per_correct": 200.0,
        "wrong_tokens_mean": 150.0,
        "budget_gap_mean": 0.5,
        "within_budget_frac": 0.5,
    }


def test_what_there_is_nothing_for_is_left_out():
    assert set(length_metrics([50], [True], [None])) == {"correct_tokens_mean", "tokens_per_correct"}
    assert set(length_metrics([50], [False], [None])) == {"wrong_tokens_mean"}
    assert length_metrics([90, 110, 500], [True] * 3, [100, 100, None])["budget_gap_mean"] == pytest.approx(0.1)


def test_few_budgets_are_told_apart_and_many_put_together():
    assert budget_bins([80, 40, 80]) == {40: "40", 80: "80"}
    assert budget_bins([]) == {}
    many = budget_bins(list(range(1, 601)))
    assert len(set(many.values())) == MAX_BINS
    assert (many[1], many[600]) == ("1–100", "501–600")
    uneven = budget_bins([10] * 1000 + list(range(20, 120)))
    assert uneven[10] == "10"
    assert set(uneven) == {10, *range(20, 120)}
