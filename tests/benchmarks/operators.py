"""Operators of one learner step, counted: on a GPU each is a launch.

    python -m tests.benchmarks.operators [--prompt 150] [--groups 16] [--tokens 250] [--gpu-chunks]

A narrow model with the layers and the vocabulary of Qwen2.5-0.5B, so that the step that is counted is cheap on a CPU: RL with a KL
term, bf16, groups of 8 behind one prompt, micro-batches of 16,384 tokens. Views are not counted. A norm is one function there and
one back on a GPU, and 8 and 9 operators on the CPU, where it is counted here.
"""

import argparse
import tempfile
from collections import Counter

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from actors.types import StageSpec, TrainRow
from configs.schema.run import LearnerSection, LoraSection, ModelSection

LAYERS, VOCABULARY = 24, 151_936
VIEWS = frozenset(
    "view t transpose expand as_strided slice unsqueeze detach select _unsafe_view permute alias split squeeze empty "
    "empty_like new_empty empty_strided new_empty_strided lift_fresh _local_scalar_dense chunk unbind".split()
)


class Operators(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = function.overloadpacket.__name__
        if name not in VIEWS:
            self.counts[name] += 1
        return function(*args, **(kwargs or {}))


def make_model(directory: str) -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=28,
        intermediate_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=14,
        num_key_value_heads=2,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    Qwen2ForCausalLM(config).bfloat16().save_pretrained(directory)


def make_rows(num_groups: int, num_prompt: int, num_tokens: int) -> tuple[TrainRow, ...]:
    rng, rows = np.random.default_rng(0), []
    for _ in range(num_groups):
        prompt = rng.integers(0, VOCABULARY, num_prompt)
        for _ in range(8):
            token_ids = np.concatenate([prompt, rng.integers(0, VOCABULARY, num_tokens)]).astype(np.int32)
            rows.append(
                TrainRow(
                    token_ids=token_ids,
                    start=num_prompt - 1,
                    loss_mask=np.arange(len(token_ids)) >= num_prompt,
                    behaviour_logprobs=np.full(len(token_ids), -3.0, dtype=np.float32),
                    advantage=float(rng.normal()),
                )
            )
    return tuple(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, default=16)
    parser.add_argument("--prompt", type=int, default=150)
    parser.add_argument("--tokens", type=int, default=250)
    parser.add_argument("--gpu-chunks", action="store_true", help="as many logits at a time as a GPU takes")
    arguments = parser.parse_args()

    from actors.learner import LearnerRank
    from actors.rendezvous import choose_master

    if arguments.gpu_chunks:
        from configs import model_shape

        model_shape.CHUNK_LOGITS["cpu"] = model_shape.CHUNK_LOGITS["cuda"]
    with tempfile.TemporaryDirectory() as directory:
        make_model(directory)
        rank = LearnerRank(
            rank=0,
            num_ranks=1,
            model=ModelSection(dtype="bfloat16"),
            model_path=directory,
            lora=LoraSection(rank=4, alpha=8.0),
            learner=LearnerSection(num_gpus_per_rank=0, num_threads=2, micro_batch_tokens=16_384),
            seed=0,
        )
        rank.connect(*choose_master([rank.find_place()]))
        rank.begin_stage(
            StageSpec(kind="rl", num_steps=9, learning_rate=1e-4, warmup_frac=0.0, kl_beta=1e-3, reference="start")
        )
        rows = make_rows(arguments.groups, arguments.prompt, arguments.tokens)
        num_loss_tokens = int(sum(row.loss_mask.sum() for row in rows))
        with Operators() as operators:
            rank.update(rows, num_loss_tokens)
        rank.close()
    print(f"{sum(operators.counts.values()):,} operators: {dict(operators.counts.most_common(12))}")


if __name__ == "__main__":
    main()
