"""Time to the first reasoning token after a base prefill: prompt blocks shared over not shared.

    python -m tests.benchmarks.kv_sharing [--model models/smollm2-135m] [--rounds 5]

One engine, one adapter. For each prompt length: a base request of one token (the switcher's prefill), then a
reasoning request of one token on the same prompt, with `start` at the last prompt token (shared) or 0 (an ordinary
LoRA, not shared). Prompts are random and never repeated. Medians over the rounds, alternating.
"""

import argparse
import asyncio
import statistics
import time

import numpy as np

from actors import adapters
from actors.engine import Engine
from actors.masked_lora import peft_config
from actors.types import Sampling
from configs.schema.run import EngineSection, LoraSection, ModelSection
from tests.actors.dense_reference import random_adapter
from tests.fakes import published

LENGTHS = (64, 128, 256, 512, 1024, 2048)
ONE = Sampling(temperature=0.0, max_tokens=1)


async def first_token_s(engine: Engine, prompt: np.ndarray, start: int) -> tuple[float, int]:
    """Seconds and cached prompt tokens of the reasoning request that follows a base request."""
    await engine.generate(prompt, 1, ONE, None)
    began = time.monotonic()
    (generated,) = await engine.generate(prompt, 1, ONE, 1, start)
    return time.monotonic() - began, generated.num_cached_tokens


async def measure(model_path: str, rounds: int) -> None:
    lora = LoraSection(rank=16, alpha=32)
    engine = Engine(
        model_path=model_path,
        stop_token_ids=(),
        model=ModelSection(dtype="bfloat16", max_length_tokens=2112),
        config=EngineSection(num_gpus=0, max_num_seqs=8, max_lora_rank=16, num_threads=2, kv_cache_gib=2),
        num_adapters=1,
        seed=0,
    )
    tensors = random_adapter(model_path, lora.rank, seed=0)
    packed = adapters.pack(tensors, peft_config(lora, tensors))
    await engine.load_adapter(*published(packed, 1))
    rng = np.random.default_rng(0)
    print("prompt tokens   cached   not shared   shared   ratio")
    for num_tokens in LENGTHS:
        seconds: dict[bool, list[float]] = {True: [], False: []}
        for round_index in range(rounds + 1):
            for is_shared in (True, False):
                prompt = rng.integers(10, 1000, num_tokens).astype(np.int32)
                took, cached = await first_token_s(engine, prompt, num_tokens - 1 if is_shared else 0)
                if is_shared:
                    num_cached = cached
                elif cached:
                    raise RuntimeError(f"expected nothing cached for an ordinary LoRA, got {cached} tokens")
                if round_index:  # the first round warms up
                    seconds[is_shared].append(took)
        shared, not_shared = statistics.median(seconds[True]), statistics.median(seconds[False])
        print(
            f"{num_tokens:13d}   {num_cached:6d}   {not_shared * 1e3:7.1f} ms  {shared * 1e3:6.1f} ms    "
            f"{shared / not_shared:.2f}",
            flush=True,
        )
    await engine.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="models/smollm2-135m", help="terse fetch-model smollm2-135m makes it")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    asyncio.run(measure(arguments.model, arguments.rounds))


if __name__ == "__main__":
    main()
