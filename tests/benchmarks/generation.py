"""Tokens/s of a CPU engine with top-p, by vLLM's sort of the vocabulary and from candidates, over no top-p.

    python -m tests.benchmarks.generation [--model models/qwen2.5-coder-0.5b] [--sequences 16] [--tokens 48] [--rounds 5]

One engine with Terse's settings, in this process so that the sampler can be changed between rounds. The three
alternate; each round samples every sequence to its full length. Rates are medians over the rounds; `sampler` is the
share of a round's time inside vLLM's sampler.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

from actors.engine_arguments import engine_arguments, set_environment
from configs.models import resolve_model_path
from configs.schema.run import EngineSection, ModelSection

QUESTIONS = (
    "Write a Python function that reverses a list.",
    "Explain in two sentences why the sky is blue.",
    "Compute 37+58-12 step by step.",
    "Write four lines about a river.",
)


class Timed:
    """A function, and the seconds spent in it."""

    def __init__(self, function: Callable[..., Any]):
        self.function = function
        self.seconds = 0.0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        started = time.monotonic()
        result = self.function(*args, **kwargs)
        self.seconds += time.monotonic() - started
        return result


def measure(arguments: argparse.Namespace) -> None:
    config = EngineSection(num_gpus=0, max_num_seqs=arguments.sequences, num_threads=2, kv_cache_gib=1)
    set_environment(config)
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from vllm import LLM, SamplingParams
    from vllm.v1.sample.ops import topk_topp_sampler
    from vllm.v1.sample.sampler import Sampler

    from actors.tokenizer import load_tokenizer

    path = str(resolve_model_path(arguments.model))
    model = ModelSection(dtype="bfloat16", max_length_tokens=512)
    llm = LLM(**engine_arguments(model_path=path, model=model, config=config, num_adapters=1, seed=0))
    patched = topk_topp_sampler.apply_top_k_top_p_pytorch
    tokenizer = load_tokenizer(path, model)
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": QUESTIONS[index % len(QUESTIONS)]}],
            add_generation_prompt=True,
            return_dict=False,
        )
        for index in range(arguments.sequences)
    ]
    sampler = Timed(Sampler.forward)
    Sampler.forward = lambda *args, **kwargs: sampler(*args, **kwargs)

    def run_round(function: Any, top_p: float) -> tuple[float, float]:
        """Tokens/s, and the sampler's share of the time."""
        topk_topp_sampler.apply_top_k_top_p_pytorch = function
        params = SamplingParams(
            temperature=arguments.temperature,
            top_p=top_p,
            max_tokens=arguments.tokens,
            ignore_eos=True,
            logprobs=0,
            detokenize=False,
        )
        sampler.seconds = 0.0
        started = time.monotonic()
        outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)
        took = time.monotonic() - started
        return sum(len(output.outputs[0].token_ids) for output in outputs) / took, sampler.seconds / took

    sides = {
        "no top-p": (patched, 1.0),
        f"top-p {arguments.top_p}, vLLM's sort": (patched.terse_original, arguments.top_p),
        f"top-p {arguments.top_p}, candidates": (patched, arguments.top_p),
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for round_index in range(arguments.rounds + 1):
        for name, side in sides.items():
            result = run_round(*side)
            if round_index:  # the first round warms up
                found[name].append(result)
    print(f"{arguments.sequences} sequences x {arguments.tokens} tokens, temperature {arguments.temperature}")
    first = statistics.median(rate for rate, _ in found["no top-p"])
    for name, results in found.items():
        rate = statistics.median(rate for rate, _ in results)
        share = statistics.median(share for _, share in results)
        print(f"{name:26s} {rate:7.1f} tok/s   time {first / rate:.2f}   sampler {share:.0%}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="models/qwen2.5-coder-0.5b", help="terse fetch-model makes it")
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--top-p", type=float, default=0.95)
    parser.add_argument("--rounds", type=int, default=5)
    measure(parser.parse_args())


if __name__ == "__main__":
    main()
