"""The product's engine and learner on a random model, as the GPU checks use them."""

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from actors.engine import Engine
from actors.learner import LearnerRank
from actors.masked_lora import add_adapter
from actors.micro_batches import MicroBatch
from actors.policy_model import PolicyModel
from actors.rendezvous import LOOPBACK, free_port
from actors.types import StageSpec, TrainRow
from configs.schema.run import EngineSection, LearnerSection, ModelSection
from tests.gpu.models import DEVICE, IS_TINY, NUM_GPUS, lora_of, make_model, random_adapter, random_tensors


def build_engine(
    name: str, root: Path, rank: int, *, max_length_tokens: int = 2048, max_num_seqs: int = 256, masked: bool = True
) -> Engine:
    """With sleep mode and a cache of 4 GiB; inside a running event loop."""
    return Engine(
        model_path=make_model(name, root),
        stop_token_ids=(),
        model=ModelSection(dtype="bfloat16", max_length_tokens=max_length_tokens, masked_lora=masked),
        config=EngineSection(
            num_gpus=NUM_GPUS, max_num_seqs=max_num_seqs, max_lora_rank=rank, kv_cache_gib=0.25 if IS_TINY else 4
        ),
        num_adapters=2,
        seed=0,
        shares_gpu=True,
    )


def build_policy(name: str, root: Path, rank: int) -> PolicyModel:
    """The learner's model with adapters of seeds 1 (`policy`) and 2 (`reference`)."""
    policy = PolicyModel(ModelSection(dtype="bfloat16"), make_model(name, root), lora_of(rank), False)
    for label, seed in (("policy", 1), ("reference", 2)):
        add_adapter(policy.layers, label, random_tensors(name, rank, seed), rank, trainable=False)
    return policy.to(DEVICE)


def logprobs(policy: PolicyModel, prompt: np.ndarray, completion: np.ndarray, adapter: str | None, start: int):
    """The learner's logprobs of a completion, float32 `[T]`."""
    token_ids = np.concatenate([prompt, completion]).astype(np.int32)
    row = TrainRow(
        token_ids=token_ids,
        start=start,
        loss_mask=np.arange(len(token_ids)) >= len(prompt),
        behaviour_logprobs=np.zeros(len(token_ids), np.float32),
        advantage=0.0,
    )
    with torch.no_grad():
        return policy(MicroBatch.from_rows([row]).to(torch.device(DEVICE)), adapter, 1.0)[0].float().cpu().numpy()


@contextmanager
def learner(
    name: str, root: Path, rank: int, *, micro_batch_tokens: int, checkpointing: bool, kl_beta: float
) -> Iterator[LearnerRank]:
    """One rank in an RL stage."""
    one = LearnerRank(
        rank=0,
        num_ranks=1,
        model=ModelSection(dtype="bfloat16"),
        model_path=make_model(name, root),
        lora=lora_of(rank),
        learner=LearnerSection(
            num_gpus_per_rank=NUM_GPUS, micro_batch_tokens=micro_batch_tokens, gradient_checkpointing=checkpointing
        ),
        seed=0,
    )
    one.connect(LOOPBACK, free_port())
    one.begin_stage(
        StageSpec(
            kind="rl",
            num_steps=1000,
            learning_rate=1e-5,
            warmup_frac=0.0,
            kl_beta=kl_beta,
            reference="start" if kl_beta else "none",
            start_adapter=random_adapter(name, rank, 1, 0.01),
        )
    )
    try:
        yield one
    finally:
        one.close()
        gc.collect()  # DeepSpeed's engine holds itself in a circle, and with it the model of the next one's peak


def timed_update(one: LearnerRank, rows: tuple[TrainRow, ...], rounds: int = 2) -> tuple[float, float, Any]:
    """Seconds of the fastest step after one that warms up, peak of torch's allocations in GB, the last result."""
    num_trained = int(sum(row.loss_mask.sum() for row in rows))
    if DEVICE == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    result = one.update(rows, num_trained)
    best = float("inf")
    for _ in range(rounds):
        began = time.monotonic()
        result = one.update(rows, num_trained)  # its metrics wait for the GPU
        best = min(best, time.monotonic() - began)
    return best, torch.cuda.max_memory_allocated() / 1e9 if DEVICE == "cuda" else 0.0, result
