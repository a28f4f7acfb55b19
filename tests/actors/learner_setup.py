"""Rows, settings and stages of the learner tests."""

import numpy as np

from actors.types import StageSpec, TrainRow
from configs.schema.run import LearnerSection, LoraSection, ModelSection

LORA = LoraSection(rank=4, alpha=8.0)
SFT = StageSpec(kind="sft", num_steps=8, learning_rate=2e-2, warmup_frac=0.25)


def settings_of(random_model_dir, dtype="float32", **learner):
    defaults = {"num_gpus_per_rank": 0, "num_threads": 1, "micro_batch_tokens": 64}
    return {
        "model": ModelSection(dtype=dtype),
        "model_path": str(random_model_dir),
        "lora": LORA,
        "learner": LearnerSection(**(defaults | learner)),
        "seed": 3,
    }


def make_rows(num_rows=10, seed=0, start=0):
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(num_rows):
        num_tokens, num_prompt = int(rng.integers(8, 24)), int(rng.integers(2, 6))
        mask = np.arange(num_tokens) >= num_prompt
        logprobs = np.where(mask, rng.normal(-3.0, 0.5, num_tokens), 0.0)
        rows.append(
            TrainRow(
                token_ids=rng.integers(1, 40, num_tokens).astype(np.int32),
                start=num_prompt - 1 if start is None else start,
                loss_mask=mask,
                behaviour_logprobs=logprobs.astype(np.float32),
                advantage=float(rng.normal()),
            )
        )
    return tuple(rows)


def num_trained(rows):
    return int(sum(row.loss_mask.sum() for row in rows))


def trained_adapter(rank, num_steps=3):
    """A packed adapter that differs from the base, from a short SFT stage."""
    rank.begin_stage(SFT)
    rows = make_rows(seed=9)
    for _ in range(num_steps):
        rank.update(rows, num_trained(rows))
    return rank.publish()[1].tobytes()
