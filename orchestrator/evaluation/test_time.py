"""Parallel test-time scaling and the switcher on held-out tasks, with the run's engines and heads.

Every mode gets one set of samples per task; caps, values of N and rules all work on them. Wall times are taken apart,
one task at a time with completions of equal length: what a device would see.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from actors.heads import HEADS_FILE, Heads, unpack_heads
from actors.types import BASE, REASONING, Prompt, Reads, Request, Sampling, Task
from configs.schema.run import RunConfig
from orchestrator.cluster.dispatcher import Dispatcher, Finished
from orchestrator.data.prompts import make_cap
from orchestrator.evaluation.evaluate import make_record, prompt_requests
from orchestrator.evaluation.scaling import Modes, TaskSamples, scaling_rows, switcher_result
from orchestrator.record import run_files
from orchestrator.record.evaluations import EvaluationRecord
from orchestrator.record.metrics import summarise
from orchestrator.stage import Stage

log = logging.getLogger(__name__)

Prompts = Sequence[tuple[Task, Prompt]]


def load_heads(stage: Stage) -> Heads | None:
    """The run's heads, loaded into every engine that evaluates; None when there are none."""
    path = stage.config.run_dir / "heads" / HEADS_FILE
    if not path.is_file():
        return None
    packed = path.read_bytes()
    stage.cluster.load_heads(packed)
    return unpack_heads(packed)


def evaluate_switcher(
    stage: Stage,
    prompts: Prompts,
    heads: Heads,
    base: Sequence[EvaluationRecord],
    reasoning: Sequence[EvaluationRecord],
) -> dict[str, Any]:
    """The switcher's curve over the records of both modes, in the order of `prompts`; written and logged.

    The only thing computed is the prompts' prefill.
    """
    requests = prompt_requests(prompts, reads_of(heads, prompt=True))
    inferences = [one.inference for one in stage.cluster.make_evaluation_dispatcher().run(requests)]
    modes = Modes(
        base_accuracy=_means(base, "correct"),
        reasoning_accuracy=_means(reasoning, "correct"),
        base_tokens=_means(base, "tokens"),
        reasoning_tokens=_means(reasoning, "tokens"),
    )
    scores = np.array([inference.switcher_score for inference in inferences])
    result = switcher_result(scores, heads.threshold, modes)
    result["switch_ms"] = 1000 * float(np.median([inference.switch_s for inference in inferences]))
    _write(stage.config.run_dir / run_files.SWITCHER_FILE, result)
    names = ("tokens_frac", "accuracy_loss", "regret", "area", "area_oracle", "area_tokens", "switch_ms")
    metrics = {f"eval/switcher/{name}": result[name] for name in names}
    metrics |= {f"eval/switcher/{name}": value for name, value in result["chosen"].items()}
    stage.tracker.log_metrics(metrics, step=0)
    return result


def evaluate_scaling(stage: Stage, prompts: Prompts, heads: Heads | None, version: int) -> list[dict[str, Any]]:
    """The grid mode x cap x N x rule on the first `scaling.num_tasks` prompts; written and logged."""
    config = stage.config
    dispatcher = stage.cluster.make_evaluation_dispatcher()
    prompts = prompts[: config.scaling.num_tasks]
    block_tokens = config.engine.block_tokens or (32 if config.engine.num_gpus == 0 else 16)
    rows: list[dict[str, Any]] = []
    for mode in (BASE, REASONING):
        greedy = dispatcher.run(_requests(config, prompts, mode, version, n=1, temperature=0.0))
        summary = summarise([make_record(one) for one in greedy])
        rows.append(
            {
                "mode": mode,
                "cap": 0,
                "n": 1,
                "rule": "greedy",
                "accuracy": summary.accuracy,
                "accuracy_std": 0.0,
                "accuracy_low": summary.accuracy_low,
                "accuracy_high": summary.accuracy_high,
                "num_tasks": summary.num_tasks,
                "mean_tokens": summary.mean_tokens,
            }
        )
        drafts = dispatcher.run(_requests(config, prompts, mode, version, heads=heads))
        for cap in (0, *config.scaling.caps_tokens):
            finished = drafts
            if cap:
                hard_cap = make_cap(cap, config.budget, stage.tokenizer)
                finished = dispatcher.run([replace(draft.request, cap=hard_cap) for draft in drafts], drafts)
            samples = _as_samples(dispatcher, finished)
            found = scaling_rows(samples, config.scaling.sizes, config.scaling.num_draws, block_tokens, config.run.seed)
            rows += [{"mode": mode, "cap": cap, **row} for row in found]
            log.info("scaling, %s mode, cap %s: %s", mode, cap or "none", _in_one_line(found))
    if config.scaling.num_timed_tasks:
        length = _mean_tokens(rows)
        times = time_sizes(dispatcher, config, prompts, heads, version, length)
        for row in rows:
            if row["mode"] == REASONING and row["cap"] == 0 and row["rule"] not in ("greedy", "pass"):
                row |= times[row["n"]]
    _write(config.run_dir / run_files.SCALING_FILE, rows)
    stage.tracker.log_metrics(
        {f"eval/scaling/{r['mode']}/cap_{r['cap']}/{r['rule']}_{r['n']}": r["accuracy"] for r in rows}, step=0
    )
    return rows


def time_sizes(
    dispatcher: Dispatcher, config: RunConfig, prompts: Prompts, heads: Heads | None, version: int, num_tokens: int
) -> dict[int, dict[str, float]]:
    """Wall time at each N of completions of `num_tokens` tokens, one task at a time: `generate_s`, `verify_s`, each a
    median over tasks, and `tokens_per_s` while generating."""
    chosen = prompts[: config.scaling.num_timed_tasks]
    found: dict[int, dict[str, float]] = {}
    for n in (config.scaling.sizes[0], *config.scaling.sizes):  # the first is a warm-up
        inferences = []
        for one in chosen:
            request = _requests(config, [one], REASONING, version, n=n, heads=heads, num_tokens=num_tokens)
            inferences.append(dispatcher.run(request)[0].inference)
        generate_s = float(np.median([inference.generate_s for inference in inferences]))
        found[n] = {
            "generate_s": generate_s,
            "verify_s": float(np.median([inference.verify_s for inference in inferences])),
            "tokens_per_s": n * num_tokens / generate_s,
        }
    return found


def reads_of(heads: Heads, *, prompt: bool = False, completions: bool = False) -> Reads:
    return Reads(
        chunk_tokens=heads.chunk_tokens,
        ema_alpha=heads.ema_alpha,
        verification_prompt=heads.verification_prompt,
        prompt=prompt,
        completions=completions,
    )


def _requests(
    config: RunConfig,
    prompts: Prompts,
    mode: str,
    version: int,
    *,
    n: int = 0,
    temperature: float | None = None,
    heads: Heads | None = None,
    num_tokens: int = 0,
) -> list[Request]:
    """`n` 0: `scaling.samples_per_task`; `num_tokens` 0: completions end where they end."""
    scaling = config.scaling
    sampling = Sampling(
        temperature=scaling.temperature if temperature is None else temperature,
        top_p=scaling.top_p,
        max_tokens=num_tokens or config.evaluation.max_completion_tokens,
        ignore_end=num_tokens > 0,
    )
    return [
        Request(
            request_id=0,
            task=task,
            prompt=prompt,
            n=n or scaling.samples_per_task,
            sampling=sampling,
            version=version,
            mode=mode,
            reads=reads_of(heads, completions=True) if heads is not None else None,
            returns="samples",
        )
        for task, prompt in prompts
    ]


def _as_samples(dispatcher: Dispatcher, finished: Sequence[Finished]) -> list[TaskSamples]:
    records = [make_record(one) for one in finished]
    classes = dispatcher.group_answers([record.answers for record in records])
    return [
        TaskSamples(
            num_prompt_tokens=len(one.request.prompt.token_ids),
            classes=labels,
            scores=one.inference.verifier_scores,
            correct=np.array(record.correct),
            tokens=np.array(record.tokens) + np.array(record.forced_tokens),
        )
        for one, record, labels in zip(finished, records, classes, strict=True)
    ]


def _means(records: Sequence[EvaluationRecord], field: str) -> np.ndarray:
    return np.array([np.mean(getattr(record, field)) for record in records])


def _mean_tokens(rows: Sequence[dict[str, Any]]) -> int:
    """Tokens of one reasoning completion, in the mean."""
    row = next(row for row in rows if row["mode"] == REASONING and row["cap"] == 0 and row["rule"] == "majority")
    return max(1, round(row["mean_tokens"] / row["n"]))


def _in_one_line(rows: Sequence[dict[str, Any]]) -> str:
    """`majority 0.61 → 0.68, weighted 0.61 → 0.71`: accuracy at the smallest and the largest N."""
    by_rule: dict[str, list[float]] = {}
    for row in rows:
        by_rule.setdefault(row["rule"], []).append(row["accuracy"])
    return ", ".join(f"{rule} {values[0]:.3f} → {values[-1]:.3f}" for rule, values in by_rule.items())


def _write(path: Path, content: Any) -> None:
    run_files.write_text(path, json.dumps(content, indent=1))
