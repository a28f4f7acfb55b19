"""What `device --benchmark` measures, on the export itself: times to the first token, decoding, memory, sizes."""

import resource
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from deploy.device.decoding import Limits, Sampling, decode_sequences
from deploy.device.runtime import DeviceModel, turn_adapter_on

PROMPT_TOKENS = 512
DECODE_TOKENS = 64
STREAMS = (1, 2, 4, 8)
REPEATS = 5


def run_benchmark(device: DeviceModel) -> dict[str, Any]:
    """Times are medians of five; the prompt is random tokens, 512 or what the model's length leaves room for."""
    room = device.manifest.max_length_tokens - DECODE_TOKENS
    num_prompt = min(PROMPT_TOKENS, room)
    prompt = np.random.default_rng(0).integers(0, device.model.num_tokens, num_prompt).tolist()
    context = device.make_context(num_prompt + max(STREAMS) * DECODE_TOKENS, max(STREAMS))

    def base() -> None:
        device.prefill(context, prompt, "base")

    def reasoning() -> None:
        device.prefill(context, prompt, "reasoning")
        turn_adapter_on(context, prompt)

    def encode_with_adapter() -> None:
        context.clear()
        context.set_adapter(True)
        for first in range(0, num_prompt, context.batch_tokens):
            tokens = prompt[first : first + context.batch_tokens]
            count = len(tokens)
            context.decode(tokens, range(first, first + count), [0] * count, [False] * (count - 1) + [True])

    result: dict[str, Any] = {
        "num_prompt_tokens": num_prompt,
        "base_first_token_s": median_s(base),
        "reasoning_first_token_s": median_s(reasoning),
        "switch_s": median_s(lambda: turn_adapter_on(context, prompt), before=base),
        "adapter_prefill_s": median_s(encode_with_adapter),
    }
    result["switch_frac_of_prefill"] = result["switch_s"] / result["base_first_token_s"]
    # Base first, then reasoning wanted: without sharing the prompt is computed a second time, with the adapter.
    result["switched_first_token_s"] = result["base_first_token_s"] + result["switch_s"]
    result["unshared_first_token_s"] = result["base_first_token_s"] + result["adapter_prefill_s"]
    if device.heads is not None:
        result["switcher_first_token_s"] = median_s(lambda: device.prefill(context, prompt, "auto"))
    result["decode_tokens_per_s"] = {
        mode: {str(n): decode_rate(device, prompt, n, mode) for n in STREAMS} for mode in ("base", "reasoning")
    }
    # Linux counts kilobytes, macOS bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    result["peak_memory_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    result["file_bytes"] = {name: entry["size_bytes"] for name, entry in device.manifest.files.items()}
    return result


def decode_rate(device: DeviceModel, prompt: list[int], num_sequences: int, mode: str) -> float:
    """Tokens per second of all sequences together, greedy, behind a short prompt."""
    short = prompt[: min(16, len(prompt))]
    context = device.make_context(len(short) + num_sequences * DECODE_TOKENS, num_sequences)
    limits = Limits(max_tokens=DECODE_TOKENS)

    def decode() -> float:
        _, _, logits = device.prefill(context, short, "base")
        if mode == "reasoning":
            logits = turn_adapter_on(context, short)
        for number in range(1, num_sequences):
            context.fork(0, number)
        started_s = time.perf_counter()
        decode_sequences(
            context, len(short), logits, num_sequences, limits, Sampling(temperature=0.0), lambda number, token: None
        )
        # The first token of each sequence was computed with the prompt.
        return num_sequences * (DECODE_TOKENS - 1) / (time.perf_counter() - started_s)

    return statistics.median(decode() for _ in range(REPEATS))


def median_s(work: Callable[[], object], before: Callable[[], object] = lambda: None) -> float:
    times = []
    for _ in range(REPEATS):
        before()
        started_s = time.perf_counter()
        work()
        times.append(time.perf_counter() - started_s)
    return statistics.median(times)


def benchmark_table(result: dict[str, Any]) -> str:
    tokens = result["num_prompt_tokens"]
    rows = [
        (f"first token, base, {tokens} prompt tokens", f"{result['base_first_token_s'] * 1000:.1f} ms"),
        ("first token, reasoning", f"{result['reasoning_first_token_s'] * 1000:.1f} ms"),
        ("switching to reasoning after the base's prefill", f"{result['switch_s'] * 1000:.1f} ms"),
        ("  of the prefill", f"{result['switch_frac_of_prefill']:.1%}"),
        ("base, then reasoning: prompt shared", f"{result['switched_first_token_s'] * 1000:.1f} ms"),
        ("base, then reasoning: prompt computed again", f"{result['unshared_first_token_s'] * 1000:.1f} ms"),
    ]
    if "switcher_first_token_s" in result:
        rows.append(("first token with the switcher asked", f"{result['switcher_first_token_s'] * 1000:.1f} ms"))
    for mode, rates in result["decode_tokens_per_s"].items():
        rows += [(f"decode, {mode}, N = {n}", f"{rate:.0f} tokens/s") for n, rate in rates.items()]
    rows.append(("peak memory", f"{result['peak_memory_bytes'] / 2**20:.0f} MiB"))
    names = ("base.gguf", "adapter.gguf")
    rows += [(name, f"{result['file_bytes'][name] / 2**20:.1f} MiB") for name in names if name in result["file_bytes"]]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)
