import numpy as np
import pytest

from actors.micro_batches import MicroBatch, learning_rate, pack_rows
from actors.types import StageSpec, TrainRow


def row(num_tokens, trained=(1,), advantage=0.0, start=0, first=10):
    mask = np.zeros(num_tokens, dtype=bool)
    mask[list(trained)] = True
    return TrainRow(
        token_ids=np.arange(first, first + num_tokens, dtype=np.int32),
        start=start,
        loss_mask=mask,
        behaviour_logprobs=-np.arange(num_tokens, dtype=np.float32),
        advantage=advantage,
    )


def test_rows_are_packed_fullest_first_within_the_budget():
    assert pack_rows([row(2), row(4), row(3), row(4)], 8) == [[1, 3], [2, 0]]


def test_a_row_over_the_budget_goes_alone_and_no_rows_make_no_batch():
    assert pack_rows([row(9), row(3)], 4) == [[0], [1]]
    assert pack_rows([], 4) == []


def test_rows_of_one_prompt_stay_together_and_the_prompt_counts_once():
    group = [row(12, (11,), start=10) for _ in range(3)]  # 10 + 3 * 2 tokens
    others = [row(12, (11,), start=10, first=50), row(5)]  # 12 and 5
    assert pack_rows([*group, *others], 17) == [[0, 1, 2], [3, 4]]
    # Too many for one micro-batch: parted, each part with the prompt.
    assert pack_rows(group, 14) == [[0, 1], [2]]


def test_every_row_is_packed_once_whatever_the_budget():
    rng = np.random.default_rng(0)
    rows = [
        row(int(n), (int(n) - 1,), start=int(n - 1) // 2, first=int(rng.integers(3))) for n in rng.integers(2, 40, 200)
    ]
    for budget in (1, 30, 100, 10_000):
        batches = pack_rows(rows, budget)
        assert sorted(index for batch in batches for index in batch) == list(range(200))
        sizes = [MicroBatch.from_rows([rows[i] for i in batch]).computed_tokens for batch in batches]
        assert all(size <= budget for size, batch in zip(sizes, batches, strict=True) if len(batch) > 1)


def test_a_batch_has_each_prompt_once_and_the_states_before_the_trained_tokens():
    rows = [row(4, (2, 3), 1.0, start=1), row(4, (3,), -1.0, start=1), row(3, (1,), 2.0)]
    batch = MicroBatch.from_rows(rows)
    assert batch.prompt_ids.tolist() == [10]
    assert batch.token_ids.tolist() == [11, 12, 13, 11, 12, 13, 10, 11, 12]
    assert batch.positions.tolist() == [1, 2, 3, 1, 2, 3, 0, 1, 2]
    assert batch.rows.tolist() == [0, 0, 1, 2]
    assert batch.states.tolist() == [0, 1, 4, 6]
    assert batch.targets.tolist() == [12, 13, 13, 11]
    assert batch.behaviour_logprobs.tolist() == [-2, -3, -3, -1]
    assert batch.advantages.tolist() == [1, 1, -1, 2]
    assert batch.segments.key_index.tolist() == [0, 1, 2, 3, 0, 4, 5, 6, 7, 8, 9]
    assert batch.segments.query_ends.tolist() == [0, 3, 6, 9]
    assert batch.segments.key_ends.tolist() == [0, 4, 8, 11]
    assert batch.computed_tokens == 10


@pytest.mark.parametrize(("trained", "start"), [((0, 1), 0), ((2,), 2), ((1, 3), 1)])
def test_training_on_a_token_that_nothing_predicts_is_refused(trained, start):
    with pytest.raises(ValueError, match=f"row 0: loss_mask must be false up to token {start}, got true"):
        MicroBatch.from_rows([row(4, trained, start=start)])


def test_learning_rate_warms_up_and_falls_to_zero():
    stage = StageSpec(kind="sft", num_steps=10, learning_rate=1.0, warmup_frac=0.2)
    rates = [learning_rate(stage, step) for step in range(12)]
    assert rates[:4] == pytest.approx([0.5, 1.0, 1.0, 0.96194], abs=1e-4)
    assert rates[6] == pytest.approx(0.5)  # half way down
    assert rates[10:] == [0.0, 0.0]
    assert rates[1:] == sorted(rates[1:], reverse=True)
