"""Learner against a plain transformers + PEFT loop: trained tokens per second and peak memory, same rows, same run.

    python -m tests.benchmarks.learner --quick
    python -m tests.benchmarks.learner --model DIR --dtype bfloat16 --rows 32 --tokens 64 512

The plain loop is what one writes first: rows in the order they come, a fixed number per micro-batch, padded to
the longest, logits of every position. Both run one SFT step (loss over completions, AdamW) per round, alternately,
each in its own process so that its peak memory is its own; the ratio of the best rounds is the result.
"""

import argparse
import json
import multiprocessing
import os
import resource
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from actors.types import StageSpec, TrainRow
from configs.models import resolve_model_path
from configs.schema.run import EMBEDDED_MODEL, LearnerSection, LoraSection, ModelSection


def make_rows(arguments: argparse.Namespace, vocab_size: int) -> tuple[TrainRow, ...]:
    """Lengths log-uniform between the limits, as completions are; the first quarter of each row is its prompt. With `--prompt`,
    completions of such lengths, `--group` of them behind a prompt of so many tokens, the adapter on from its last one."""
    rng = np.random.default_rng(0)
    low, high = arguments.tokens
    rows, prompt = [], np.empty(0, dtype=np.int32)
    for index in range(arguments.rows):
        num_tokens = int(np.exp(rng.uniform(np.log(low), np.log(high))))
        num_prompt = arguments.prompt or num_tokens // 4
        if arguments.prompt:
            num_tokens += arguments.prompt
        if index % arguments.group == 0:
            prompt = rng.integers(0, vocab_size, arguments.prompt).astype(np.int32)
        own = rng.integers(0, vocab_size, num_tokens - len(prompt)).astype(np.int32)
        mask = np.arange(num_tokens) >= num_prompt
        rows.append(
            TrainRow(
                token_ids=np.concatenate([prompt, own]),
                start=max(0, arguments.prompt - 1),
                loss_mask=mask,
                behaviour_logprobs=np.zeros(num_tokens, dtype=np.float32),
                advantage=0.0,
            )
        )
    return tuple(rows)


def prepare_learner(arguments: argparse.Namespace, rows: tuple[TrainRow, ...]) -> Callable[[], float]:
    from actors.learner import LearnerRank
    from actors.rendezvous import choose_master

    rank = LearnerRank(
        rank=0,
        num_ranks=1,
        model=ModelSection(dtype=arguments.dtype),
        model_path=arguments.model,
        lora=LoraSection(rank=arguments.rank, alpha=2 * arguments.rank),
        learner=LearnerSection(
            num_gpus_per_rank=0, num_threads=arguments.threads, micro_batch_tokens=arguments.micro_batch_tokens
        ),
        seed=0,
    )
    rank.connect(*choose_master([rank.find_place()]))
    rank.begin_stage(StageSpec(kind="sft", num_steps=100, learning_rate=1e-4, warmup_frac=0.0))
    num_loss_tokens = int(sum(row.loss_mask.sum() for row in rows))
    return lambda: rank.update(rows, num_loss_tokens).metrics["train/loss"]


def prepare_plain(arguments: argparse.Namespace, rows: tuple[TrainRow, ...]) -> Callable[[], float]:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(arguments.threads)
    base = AutoModelForCausalLM.from_pretrained(
        arguments.model, dtype=getattr(torch, arguments.dtype), attn_implementation="sdpa"
    )
    targets = list(LoraSection().target_modules)
    model = get_peft_model(base, LoraConfig(r=arguments.rank, lora_alpha=2 * arguments.rank, target_modules=targets))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    num_loss_tokens = int(sum(row.loss_mask.sum() for row in rows))

    def step() -> float:
        total = 0.0
        for begin in range(0, len(rows), arguments.plain_rows):
            part = rows[begin : begin + arguments.plain_rows]
            width = max(len(row.token_ids) for row in part)
            token_ids, labels = torch.zeros(len(part), width, dtype=torch.long), torch.full((len(part), width), -100)
            attention_mask = torch.zeros(len(part), width, dtype=torch.long)
            for i, row in enumerate(part):
                tokens = torch.from_numpy(row.token_ids.astype(np.int64))
                token_ids[i, : len(tokens)], attention_mask[i, : len(tokens)] = tokens, 1
                labels[i, : len(tokens)] = torch.where(torch.from_numpy(row.loss_mask), tokens, -100)
            logits = model(input_ids=token_ids, attention_mask=attention_mask, use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(
                logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=-100, reduction="sum"
            )
            (loss / num_loss_tokens).backward()
            total += loss.item() / num_loss_tokens
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return total

    return step


PREPARE = {"learner": prepare_learner, "plain": prepare_plain}


def work(name: str, arguments: argparse.Namespace, rows: tuple[TrainRow, ...], pipe: Connection) -> None:
    """One side, in its own process: a step each time it is asked; on False, its memory, then the end."""
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    step = PREPARE[name](arguments, rows)
    idle_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    pipe.send(None)
    while pipe.recv():
        started_s = time.monotonic()
        loss = step()
        pipe.send((time.monotonic() - started_s, loss))
    pipe.send((idle_bytes, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    from transformers import AutoConfig

    rows = make_rows(arguments, AutoConfig.from_pretrained(arguments.model).vocab_size)
    num_tokens = sum(len(row.token_ids) for row in rows)
    context = multiprocessing.get_context("spawn")
    pipes, processes = {}, []
    for name in [arguments.only] if arguments.only else PREPARE:
        pipes[name], theirs = context.Pipe()
        processes.append(context.Process(target=work, args=(name, arguments, rows, theirs)))
        processes[-1].start()
        pipes[name].recv()
    times: dict[str, list[float]] = {name: [] for name in pipes}
    losses: dict[str, float] = {}
    for i in range(arguments.rounds + 1):
        for name, pipe in pipes.items():
            pipe.send(True)
            seconds, loss = pipe.recv()
            if i or not arguments.rounds:  # the first of several rounds warms up
                times[name].append(seconds)
            losses.setdefault(name, loss)
    result: dict[str, Any] = {"num_rows": len(rows), "num_tokens": num_tokens}
    for name, pipe in pipes.items():
        pipe.send(False)
        idle_bytes, peak_bytes = pipe.recv()
        result[name] = {
            "first_loss": losses[name],
            "best_s": min(times[name]),
            "tokens_per_s": num_tokens / min(times[name]),
            "peak_mib": peak_bytes / 2**20,
            "peak_over_idle_mib": (peak_bytes - idle_bytes) / 2**20,
        }
    for process in processes:
        process.join()
    if arguments.only:
        return result
    result["speed_ratio"] = result["plain"]["best_s"] / result["learner"]["best_s"]
    result["peak_memory_ratio"] = result["learner"]["peak_mib"] / result["plain"]["peak_mib"]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=EMBEDDED_MODEL, help="`embedded` or a model directory")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--rows", type=int, default=96)
    parser.add_argument("--tokens", type=int, nargs=2, default=(40, 240), help="shortest and longest row")
    parser.add_argument(
        "--prompt", type=int, default=0, help="tokens of a prompt that completions share; 0: none is shared"
    )
    parser.add_argument("--group", type=int, default=8, help="completions of one prompt")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--micro-batch-tokens", type=int, default=2048, help="of the learner")
    parser.add_argument("--plain-rows", type=int, default=16, help="rows per micro-batch of the plain loop")
    parser.add_argument(
        "--rounds", type=int, default=5, help="after one that warms up; 0: that one is what is measured"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=tuple(PREPARE), help="one side, to compare two versions of it")
    parser.add_argument("--quick", action="store_true", help="2 rounds of 48 rows")
    arguments = parser.parse_args()
    arguments.model = str(resolve_model_path(arguments.model))
    if arguments.quick:
        arguments.rounds, arguments.rows = 2, 48
    print(json.dumps(run(arguments), indent=2))


if __name__ == "__main__":
    main()
