import numpy as np
import pytest

from actors.micro_batches import MicroBatch, learning_rate, split_rows
from actors.types import StageSpec, TrainRow


def row(num_tokens, trained=(1,), advantage=0.0):
    mask = np.zeros(num_tokens, dtype=bool)
    mask[list(trained)] = True
    return TrainRow(
        token_ids=np.arange(10, 10 + num_tokens, dtype=np.int32),
        start=0,
        loss_mask=mask,
        behaviour_logprobs=-np.arange(num_tokens, dtype=np.float32),
        advantage=advantage,
    )


def test_rows_are_packed_longest_first_within_the_budget():
    assert list(split_rows([row(2), row(4), row(3), row(4)], 8)) == [[1, 3], [2, 0]]


def test_a_row_over_the_budget_goes_alone_and_no_rows_make_no_batch():
    assert list(split_rows([row(9), row(3)], 4)) == [[0], [1]]
    assert list(split_rows([], 4)) == []


def test_positions_are_those_before_the_trained_tokens():
    batch = MicroBatch.from_rows([row(4, (2, 3), 1.0), row(3, (1,), -1.0)])
    assert batch.token_ids.tolist() == [[10, 11, 12, 13], [10, 11, 12, 0]]
    assert batch.rows.tolist() == [0, 0, 1]
    assert batch.positions.tolist() == [1, 2, 0]
    assert batch.targets.tolist() == [12, 13, 11]
    assert batch.behaviour_logprobs.tolist() == [-2, -3, -1]
    assert batch.advantages.tolist() == [1, 1, -1]
    assert batch.area_tokens == 8


def test_training_on_the_first_token_is_refused():
    with pytest.raises(ValueError, match="token 0"):
        MicroBatch.from_rows([row(3, (0, 1))])


def test_learning_rate_warms_up_and_falls_to_zero():
    stage = StageSpec(kind="sft", num_steps=10, learning_rate=1.0, warmup_frac=0.2)
    rates = [learning_rate(stage, step) for step in range(12)]
    assert rates[:4] == pytest.approx([0.5, 1.0, 1.0, 0.96194], abs=1e-4)
    assert rates[6] == pytest.approx(0.5)  # half way down
    assert rates[10:] == [0.0, 0.0]
    assert rates[1:] == sorted(rates[1:], reverse=True)
