"""Parallel test-time scaling and the switcher on the built-in tasks, from a finished run's adapters and heads.

    python -m tests.benchmarks.scaling [--run runs/quickstart] [--tasks 200] [--parts scaling switcher time grouping]

Four parts:

    scaling    greedy, majority, weighted, best of N, 20 draws of 16 samples, in both modes, at T = 0.7, where the policy
               is nearly always right, and at T = 1.2, where there is room
    switcher   a mixed set, half of it one operation: accuracy and tokens of base, switcher, reasoning
    time       N completions of equal length over one, for one task at a time and for a full batch; the verifier's
               share; the switcher's arithmetic per prompt
    grouping   8 x 1,000 answers by mathematical equality, on two reward actors

It works in a run directory of its own beside the given one, which it only reads.
"""

import argparse
import logging
import shutil
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from actors import adapters
from actors.tokenizer import load_tokenizer
from actors.types import BASE_VERSION, REASONING, Request, Sampling
from configs.load import load_config
from configs.models import resolve_model_path
from configs.schema.run import RunConfig
from orchestrator.cluster.cluster import start_cluster
from orchestrator.data.prompts import held_out_prompts
from orchestrator.evaluation.evaluate import evaluate, make_record
from orchestrator.evaluation.test_time import evaluate_scaling, evaluate_switcher, load_heads, reads_of, time_sizes
from orchestrator.pipeline import require_adapter
from orchestrator.report.scaling import scaling_tables, switcher_tables
from orchestrator.stage import Stage

VERSION = 1
PARTS = ("scaling", "switcher", "time", "grouping")
TEMPERATURES = (0.7, 1.2)
LENGTHS = (50, 200)
"""Tokens of a timed completion: after RL, and of a verbose policy."""


class NoTracker:
    """Nothing of a benchmark goes to MLflow."""

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=Path("runs/quickstart"))
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    config = load_config(arguments.run / "config.yaml", ["reward.num_actors=2", f"run.dir={arguments.run.parent}"])
    packed = require_adapter(config, "rl")
    model_path = resolve_model_path(config.model.path)
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        own = replace(config, run=replace(config.run, dir=str(directory)))
        shutil.copytree(config.run_dir / "heads", own.run_dir / "heads")
        cluster = stack.enter_context(start_cluster(own, model_path))
        cluster.load_adapter(adapters.make_ref(packed, VERSION), packed)
        tokenizer = load_tokenizer(model_path, config.model)

        def stage_on(difficulties: tuple[int, ...], num_tasks: int, temperature: float = 0.7) -> Stage:
            data = replace(own.data, evaluation=(replace(own.data.evaluation[0], difficulties=difficulties),))
            changed = replace(
                own,
                data=data,
                evaluation=replace(own.evaluation, num_tasks=num_tasks),
                scaling=replace(
                    own.scaling, num_tasks=num_tasks, num_timed_tasks=0, caps_tokens=(), temperature=temperature
                ),
            )
            tracker: Any = NoTracker()
            return Stage(
                name="bench",
                config=changed,
                cluster=cluster,
                tracker=tracker,
                tokenizer=tokenizer,
                base_dir=Path(model_path),
            )

        if "scaling" in arguments.parts:
            for temperature in TEMPERATURES:
                show_scaling(stage_on((1, 2, 3, 4), arguments.tasks, temperature))
        if "switcher" in arguments.parts:
            show_switcher(stage_on((1, 2, 1, 3, 1, 4), 2 * arguments.tasks))
        if "time" in arguments.parts:
            show_times(stage_on((2, 3), 64))
        if "grouping" in arguments.parts:
            show_grouping(cluster)


def show_scaling(stage: Stage) -> None:
    prompts = held_out_prompts(stage.config, stage.tokenizer)
    rows = evaluate_scaling(stage, prompts, load_heads(stage), VERSION)
    for table in scaling_tables(rows):
        print(f"\nT = {stage.config.scaling.temperature}")
        print("\n".join(table.lines()))


def show_switcher(stage: Stage) -> None:
    prompts = held_out_prompts(stage.config, stage.tokenizer)
    dispatcher = stage.cluster.make_evaluation_dispatcher()
    base, reasoning = (
        [make_record(one) for one in evaluate(dispatcher, prompts, stage.config.evaluation, version)]
        for version in (BASE_VERSION, VERSION)
    )
    heads = load_heads(stage)
    assert heads is not None
    result = evaluate_switcher(stage, prompts, heads, base, reasoning)
    print(f"\nswitcher, {len(prompts)} tasks, half of them one operation")
    for table in switcher_tables(result):
        print("\n".join(table.lines()))
    for name in ("tokens_frac", "accuracy_loss", "regret", "area", "area_oracle", "area_tokens", "switch_ms"):
        print(f"  {name:<24}{result[name]:.4f}")


def show_times(stage: Stage) -> None:
    config, heads = stage.config, load_heads(stage)
    prompts = held_out_prompts(config, stage.tokenizer)
    dispatcher = stage.cluster.make_evaluation_dispatcher()
    timed: RunConfig = replace(config, scaling=replace(config.scaling, num_timed_tasks=8))
    for num_tokens in LENGTHS:
        alone = time_sizes(dispatcher, timed, prompts, heads, VERSION, num_tokens=num_tokens)
        one = alone[1]["generate_s"]
        print(f"\none task at a time, {num_tokens} tokens each: N, seconds, over N = 1, verifier's share, tokens/s")
        for n, row in alone.items():
            share = row["verify_s"] / row["generate_s"]
            print(
                f"  {n:<4}{row['generate_s']:<8.3f}{row['generate_s'] / one:<8.2f}{share:<8.1%}{row['tokens_per_s']:.0f}"
            )
    print("64 tasks at once: N, seconds, over N = 1, with verifier over without")
    first = None
    for n in config.scaling.sizes:
        seconds = []
        for reads in (None, reads_of(heads, completions=True) if heads else None):
            requests = [
                Request(
                    request_id=0,
                    task=task,
                    prompt=prompt,
                    n=n,
                    sampling=Sampling(temperature=0.7, max_tokens=50, ignore_end=True),
                    version=VERSION,
                    mode=REASONING,
                    reads=reads,
                    returns="samples",
                )
                for task, prompt in prompts
            ]
            started_s = time.monotonic()
            dispatcher.run(requests)
            seconds.append(time.monotonic() - started_s)
        first = first or seconds[0]
        print(f"  {n:<4}{seconds[0]:<8.2f}{seconds[0] / first:<8.2f}{seconds[1] / seconds[0]:.2f}")


def show_grouping(cluster: Any) -> None:
    """Answers as benchmarks have them: integers, fractions, decimals and percentages of few values per task."""
    rng = np.random.default_rng(0)
    answers = []
    for _ in range(1000):
        numerator, denominator = int(rng.integers(1, 50)), int(rng.choice([2, 4, 5, 8, 10]))
        value = numerator / denominator
        forms = [
            f"{numerator}/{denominator}",
            f"\\frac{{{numerator}}}{{{denominator}}}",
            f"{value}",
            f"{100 * value}\\%",
        ]
        forms += [str(numerator), str(numerator + 1), f"{numerator}x+{denominator}", f"{denominator}+{numerator}x"]
        answers.append([forms[int(rng.integers(0, len(forms)))] for _ in range(8)])
    dispatcher = cluster.make_evaluation_dispatcher()
    started_s = time.monotonic()
    classes = dispatcher.group_answers(answers)
    print(f"\ngrouping 8 x {len(answers)} answers, 2 reward actors: {time.monotonic() - started_s:.1f} s,")
    print(
        f"  {np.mean([len(set(one)) for one in answers]):.1f} texts and {np.mean([len(set(c)) for c in classes]):.1f} classes per task"
    )


if __name__ == "__main__":
    main()
