"""The heads stage: what the run's policy does with training tasks, in both modes, trains the switcher and the verifier.

Features come from the engines that generate, on the same requests. Labels:

    verifier   1 for a right completion, of either mode
    switcher   `benefit`: r (1 - b), with r and b the shares of right completions in reasoning and base mode: how
               likely reasoning is right where base is wrong. A prompt that neither gets right is left to the base.
               `sources`: 1 for a prompt of `data.hard`, 0 for one of `data.easy`
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from actors.head_metrics import head_metrics, threshold_for_accuracy, threshold_for_share
from actors.head_training import fit_switcher, fit_verifier, split_by_task
from actors.heads import HEADS_FILE, Heads, pack_heads
from actors.types import BASE, REASONING, Prompt, Reads, Request, Sampling, Task
from configs.models import weights_sha256
from configs.schema.heads import HeadsSection
from configs.schema.run import RunConfig
from orchestrator.cluster.dispatcher import Dispatcher
from orchestrator.data.prompts import Prompter, fitting_prompts
from orchestrator.data.tasks import held_out_tasks
from orchestrator.evaluation.evaluate import prompt_requests
from orchestrator.record import run_files
from orchestrator.stage import Stage
from rewards.base import Outcome

log = logging.getLogger(__name__)

MAX_DRAWS_PER_TASK = 4
"""Prompts of the training stream looked at for each one wanted: an endless stream repeats itself now and then."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HeadData:
    """Completions of training tasks as features and labels."""

    task_ids: tuple[str, ...]
    """`[M]`"""
    prompt_states: np.ndarray
    """float32 `[M, H]`, pooled, of the base"""
    base_correct: np.ndarray
    """bool `[M, N]`"""
    reasoning_correct: np.ndarray
    """bool `[M, N]`"""
    base_states: np.ndarray
    """float32 `[M, N, H]`, last states"""
    reasoning_states: np.ndarray
    """float32 `[M, N, H]`"""


def fit_heads(stage: Stage, version: int) -> None:
    """Generate with adapter `version`, train both heads, and leave them in the run directory."""
    config = stage.config.heads
    dispatcher = stage.cluster.make_evaluation_dispatcher()
    data = gather(dispatcher, training_prompts(stage, config.num_tasks), config, stage.config, version)
    sources = gather_sources(dispatcher, stage) if config.switcher_labels == "sources" else None
    heads, metrics = train_heads(data, config, stage.config.run.seed, sources)
    heads = replace(heads, base_sha256=weights_sha256(stage.base_dir))
    stage.tracker.log_metrics({f"heads/{name}": value for name, value in metrics.items()}, step=0)
    run_files.write_text(stage.directory / "metrics.json", json.dumps(metrics, indent=2))
    stage.tracker.log_file(run_files.write_bytes(stage.directory / HEADS_FILE, pack_heads(heads)), "heads")
    log.info(
        "heads: verifier AUC %.3f, switcher AUC %.3f; threshold %.3f routes %.0f %% of prompts to reasoning",
        metrics["verifier_auc"],
        metrics["switcher_auc"],
        heads.threshold,
        100 * metrics["routed_frac"],
    )


def make_reads(config: HeadsSection, *, prompt: bool = False, completions: bool = False, keeps: bool = False) -> Reads:
    return Reads(
        chunk_tokens=config.chunk_tokens,
        ema_alpha=config.ema_alpha,
        verification_prompt=config.verification_prompt,
        prompt=prompt,
        completions=completions,
        keeps_states=keeps,
    )


def training_prompts(stage: Stage, num_tasks: int) -> list[tuple[Task, Prompt]]:
    """The first different tasks of the training stream; fewer when it repeats itself before."""
    prompter = Prompter(stage.config, stage.tokenizer)
    found: dict[str, tuple[Task, Prompt]] = {}
    for index in range(MAX_DRAWS_PER_TASK * num_tasks):
        if len(found) == num_tasks:
            break
        task, prompt = prompter.at(index)
        found.setdefault(task.messages[-1]["content"], (task, prompt))
    if len(found) < num_tasks:
        log.info("heads.num_tasks: %d were asked for, data.train has %d different tasks", num_tasks, len(found))
    return list(found.values())


def gather(
    dispatcher: Dispatcher,
    prompts: Sequence[tuple[Task, Prompt]],
    config: HeadsSection,
    run: RunConfig,
    version: int,
) -> HeadData:
    """Both modes on every prompt, each completion with its last state; the prompts' states from base mode."""
    sampling = Sampling(temperature=config.temperature, max_tokens=run.evaluation.max_completion_tokens)
    requests = [
        Request(
            request_id=0,
            task=task,
            prompt=prompt,
            n=config.samples_per_task,
            sampling=sampling,
            version=version,
            mode=mode,
            reads=make_reads(config, prompt=mode == BASE, completions=True, keeps=True),
            returns="samples",
        )
        for mode in (BASE, REASONING)
        for task, prompt in prompts
    ]
    finished = dispatcher.run(requests)
    base, reasoning = finished[: len(prompts)], finished[len(prompts) :]
    correct = [
        np.array([[sample.reward.outcome == Outcome.CORRECT for sample in one.samples] for one in half])
        for half in (base, reasoning)
    ]
    return HeadData(
        task_ids=tuple(task.task_id for task, _ in prompts),
        prompt_states=np.array([one.inference.prompt_state for one in base]),
        base_correct=correct[0],
        reasoning_correct=correct[1],
        base_states=np.array([one.inference.completion_states for one in base]),
        reasoning_states=np.array([one.inference.completion_states for one in reasoning]),
    )


def gather_sources(dispatcher: Dispatcher, stage: Stage) -> tuple[np.ndarray, np.ndarray]:
    """Pooled states `[N, H]` of the easy and the hard prompts, and labels `[N]`."""
    config = stage.config
    states, labels = [], []
    for label, source in ((0, config.data.easy), (1, config.data.hard)):
        tasks = held_out_tasks([config.resolved(source)], config.budget, config.heads.num_source_tasks, config.run.seed)
        prompts = fitting_prompts(tasks, config, stage.tokenizer)
        requests = prompt_requests(prompts, make_reads(config.heads, prompt=True, keeps=True))
        found = [one.inference.prompt_state for one in dispatcher.run(requests)]
        states += found
        labels += [label] * len(found)
    return np.array(states), np.array(labels, dtype=float)


def train_heads(
    data: HeadData, config: HeadsSection, seed: int, sources: tuple[np.ndarray, np.ndarray] | None = None
) -> tuple[Heads, dict[str, float]]:
    """Both heads without the base's hash, and metrics on validation tasks.

    `sources`: pooled states and labels of named sources, for the switcher; without them its labels are the benefit.
    """
    held_out = split_by_task(data.task_ids, config.validation_frac, seed)
    num_samples, width = data.base_correct.shape[1], data.prompt_states.shape[1]
    states = np.concatenate([data.base_states.reshape(-1, width), data.reasoning_states.reshape(-1, width)])
    labels = np.concatenate([data.base_correct.ravel(), data.reasoning_correct.ravel()]).astype(float)
    rows_held_out = np.tile(np.repeat(held_out, num_samples), 2)
    verifier, verifier_fit = fit_verifier(states, labels, rows_held_out, config, seed)
    scores = verifier.scores(states)
    is_reasoning = np.arange(len(labels)) >= data.base_correct.size
    metrics: dict[str, float] = {"verifier_best_epoch": verifier_fit.best_epoch}
    for suffix, rows in (("", True), ("_base", ~is_reasoning), ("_reasoning", is_reasoning)):
        chosen = rows_held_out & rows
        found = head_metrics(scores[chosen], labels[chosen])
        metrics |= {f"verifier{suffix}_{name}": value for name, value in found.items()}

    base, reasoning = data.base_correct.mean(axis=1), data.reasoning_correct.mean(axis=1)
    if sources is None:
        switcher_states, switcher_labels, switcher_held_out = data.prompt_states, reasoning * (1 - base), held_out
    else:
        switcher_states, switcher_labels = sources
        names = [f"source/{index}" for index in range(len(switcher_labels))]
        switcher_held_out = split_by_task(names, config.validation_frac, seed)
    switcher, switcher_fit = fit_switcher(switcher_states, switcher_labels, switcher_held_out, config, seed)
    needs = (switcher_labels[switcher_held_out] >= 0.5).astype(float)
    found = head_metrics(switcher.scores(switcher_states[switcher_held_out]), needs)
    metrics |= {f"switcher_{name}": value for name, value in found.items()}
    if sources is None:
        scores = cross_scores(switcher_states, switcher_labels, config, seed)
    else:
        scores = switcher.scores(data.prompt_states)
    threshold = choose_threshold(scores, base, reasoning, config)
    routed = scores >= threshold
    metrics |= {
        "switcher_best_epoch": switcher_fit.best_epoch,
        "threshold": threshold,
        "routed_frac": float(routed.mean()),
        "routed_accuracy": float(np.where(routed, reasoning, base).mean()),
        "base_accuracy": float(base.mean()),
        "reasoning_accuracy": float(reasoning.mean()),
        "num_tasks": float(len(base)),
    }
    return Heads(
        switcher=switcher,
        verifier=verifier,
        threshold=threshold,
        chunk_tokens=config.chunk_tokens,
        ema_alpha=config.ema_alpha,
        verification_prompt=config.verification_prompt,
        base_sha256="",
    ), metrics


def cross_scores(states: np.ndarray, labels: np.ndarray, config: HeadsSection, seed: int) -> np.ndarray:
    """`[M]`: each task's score by a switcher that was trained without it, in as many folds as `validation_frac` makes.

    So a threshold is chosen on every task, where validation alone has too few to tell a loss of a hundredth.
    """
    num_folds = min(len(states), max(2, round(1 / config.validation_frac)))
    folds = np.random.default_rng(seed).permutation(len(states)) % num_folds
    scores = np.empty(len(states))
    for fold in range(num_folds):
        switcher, _ = fit_switcher(states, labels, folds == fold, config, seed)
        scores[folds == fold] = switcher.scores(states[folds == fold])
    return scores


def choose_threshold(scores: np.ndarray, base: np.ndarray, reasoning: np.ndarray, config: HeadsSection) -> float:
    """On tasks with switcher scores and accuracies in each mode, all `[M]`."""
    if config.threshold == "share":
        return threshold_for_share(scores, config.reasoning_share)
    return threshold_for_accuracy(scores, base, reasoning, config.max_accuracy_loss)
