"""Budget-forced RL: the loop of the whole system.

Generate with adapter v, score, estimate advantages, update to v + 1, publish it to every engine. On-policy and
asynchronous training are this one path; `rl.max_staleness` says how far generation may lag.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import ray

from actors.engine import Sampling
from actors.kl import next_kl_beta
from actors.learner_group import LearnerGroup
from actors.reward import inputs_of_rollouts
from actors.rollout import BASE_VERSION
from actors.types import AdapterRef, DroppedGroup, RolloutGroup, StageSpec, TrainBatch, UpdateResult
from configs.schema.run import RunConfig
from orchestrator.data.prompts import Prompter, make_cap
from orchestrator.data.tasks import seeded_rng
from orchestrator.evaluation.held_out import HeldOut
from orchestrator.record import checkpoint, ledger
from orchestrator.record.checkpoint import Checkpoint, KeepRule, StageState
from orchestrator.record.events import Event
from orchestrator.record.interrupt import stop_between_steps
from orchestrator.record.metrics import group_metrics
from orchestrator.record.progress import Progress
from orchestrator.record.run_files import forget_steps_after, write_samples
from orchestrator.record.watchdog import Watchdog
from orchestrator.rl.batching import build_batch, sequence_kls
from orchestrator.rl.probe import prove_adapters_reach, prove_cap_holds
from orchestrator.rl.rollout_pool import RolloutPool
from orchestrator.stage import Stage
from rewards.length.registry import next_state as next_length_state

log = logging.getLogger(__name__)

Published = tuple[AdapterRef, Any]
"""An adapter's name and the object-store reference of its bytes."""


def train(stage: Stage, start_adapter: bytes) -> None:
    """RL from `start_adapter`, or from the stage's newest checkpoint, to `rl.num_steps`."""
    config, learner = stage.config, stage.cluster.learner
    state = begin(stage, rl_spec(config, start_adapter)) or StageState(kl_beta=config.rl.kl_beta)
    prompter = Prompter(config, stage.tokenizer)
    pool = make_pool(stage, prompter, state)
    published = learner.publish()
    prove_adapters_reach(stage.cluster, *published, prompt=prompter.at(0)[1])
    pool.use_adapter(*published, state.length_state)
    with (
        stop_between_steps() as stop,
        Progress("rl", state.step, config.rl.num_steps) as progress,
        Watchdog(pool.describe_waiting) as watchdog,
        HeldOut(stage) as held_out,
    ):
        while state.step < config.rl.num_steps:
            clock = StepClock(watchdog.begin)
            groups = pool.take(config.rl.groups_per_step)
            clock.mark("rollout")
            with stage.cluster.engines_asleep():
                batch = make_batch(groups, config, state, learner)
                update = learner.update(batch)
                published = learner.publish()
            check_update(update, batch, config, state.step)
            clock.mark("update")
            dropped = pool.pop_dropped()
            state = next_state(state, update, batch, [*groups, *dropped], config)
            pool.use_adapter(*published, state.length_state)
            clock.mark("publish")
            state = replace(state, cursor=pool.cursor)
            ledger.append(config.run_dir, state.step, groups, dropped, state.cursor)
            metrics = group_metrics(groups, dropped, policy_version=state.step - 1)
            metrics |= {
                "rollout/prompts_too_long": float(prompter.num_too_long),
                "train/kl_beta": batch.kl_beta,
                "reward/kl": batch.reward_kl,
            }
            timings = clock.metrics(metrics["rollout/num_tokens"])
            stage.record(state.step, metrics | update.metrics | timings, progress)
            held_out.advance()
            if is_due(state.step, config.rl.evaluate_every_steps):
                held_out.begin(*published)
            if stop.is_set or state.step == config.rl.num_steps or is_due(state.step, config.rl.checkpoint_every_steps):
                samples = write_samples(config.run_dir, state.step, groups, stage.prompt_text)
                stage.tracker.log_table(samples, f"samples/step_{state.step:06d}")
                save(stage, state, published)
            stop.raise_if_set()
    stage.tracker.log_directory(checkpoint.list_checkpoints(stage.directory)[-1], "adapter")


def begin(stage: Stage, spec: StageSpec) -> StageState | None:
    """Have the learner begin a stage, from its newest checkpoint that holds; returns that one's state, None without one.

    What was written after it is forgotten, and events say so.
    """
    saved, damages = checkpoint.load_latest(stage.directory)
    for problem in damages:
        stage.event(Event.CHECKPOINT_SKIPPED, problem=problem)
    if saved:
        stage.event(Event.RESUMED, saved.state.step)
    forget_steps_after(stage.config.run_dir, stage.name, saved.state.step if saved else 0)
    stage.cluster.learner.begin_stage(spec)
    if saved:
        stage.cluster.learner.load_state(saved.learner)
        log.info("%s goes on from the checkpoint of step %d", stage.name, saved.state.step)
    return saved.state if saved else None


def rl_spec(config: RunConfig, start_adapter: bytes) -> StageSpec:
    """The learner's part of the settings; RL trains without dropout, at the rollout's temperature."""
    rl = config.rl
    return StageSpec(
        kind="rl",
        num_steps=rl.num_steps,
        learning_rate=rl.learning_rate,
        warmup_frac=rl.warmup_frac,
        weight_decay=rl.weight_decay,
        temperature=config.rollout.temperature,
        dropout=0.0,
        loss=rl.loss,
        loss_mean=rl.loss_mean,
        clip_low=rl.clip_low,
        clip_high=rl.clip_high,
        importance_cap=rl.importance_cap,
        sequence_mask_gap=rl.sequence_mask_gap,
        entropy_bonus=rl.entropy_bonus,
        max_completion_tokens=config.rollout.max_completion_tokens,
        kl_beta=rl.kl_beta,
        kl_estimator=rl.kl_estimator,
        reference=rl.kl_reference if rl.kl_beta > 0 else "none",
        start_adapter=start_adapter,
    )


def make_pool(stage: Stage, prompter: Prompter, state: StageState) -> RolloutPool:
    rollout = stage.config.rollout
    cap = make_cap(rollout.cap_tokens, stage.config.budget, stage.tokenizer) if rollout.cap_tokens else None
    if cap:
        prove_cap_holds(stage.cluster, cap, prompter.at(0)[1], BASE_VERSION)
    return RolloutPool(
        dispatcher=stage.cluster.make_dispatcher(),
        load_adapter=partial(stage.cluster.load_adapter, pools=[stage.cluster.engines]),
        prompt_at=prompter.at,
        cursor=state.cursor,
        sampling=Sampling(
            temperature=rollout.temperature,
            top_p=rollout.top_p,
            top_k=rollout.top_k,
            min_p=rollout.min_p,
            max_tokens=rollout.max_completion_tokens,
        ),
        config=stage.config.rl,
        cap=cap,
        seed_of=partial(rollout_seed, stage.config.run.seed) if stage.config.run.deterministic else None,
        show=stage.show,
    )


def rollout_seed(seed: int, index: int, version: int) -> int:
    """Of the sampling of a group: follows from the run's seed, the prompt's index and the adapter's version alone."""
    return seeded_rng(seed, "rollout", f"{index}/{version}").getrandbits(48)


def make_batch(
    groups: Sequence[RolloutGroup], config: RunConfig, state: StageState, learner: LearnerGroup
) -> TrainBatch:
    """One step's rows. With KL in the reward, the learner first says how likely the reference finds them."""
    rl, num_ranks = config.rl, config.learner.num_ranks
    kl_of_rollouts = None
    if rl.kl_in == "reward" and state.kl_beta > 0:
        adapter = "reference" if rl.kl_reference == "start" else "base"
        kl_of_rollouts = sequence_kls(
            groups, lambda b: learner.sequence_logprobs(b, adapter), num_ranks, rl.kl_estimator
        )
    return build_batch(
        groups,
        num_ranks=num_ranks,
        policy_version=state.step,
        max_staleness=rl.max_staleness,
        advantage=rl.advantage,
        overlong_filtering=rl.overlong_filtering,
        kl_beta=state.kl_beta,
        kl_of_rollouts=kl_of_rollouts,
    )


def next_state(
    state: StageState,
    update: UpdateResult,
    batch: TrainBatch,
    finished: Sequence[RolloutGroup | DroppedGroup],
    config: RunConfig,
) -> StageState:
    """After one step: its number, the KL weight steered towards its target, and what length rewards remember of the
    groups that came in for it, trained on or not."""
    rl, kl_beta = config.rl, state.kl_beta
    if rl.kl_target > 0:
        measured = batch.reward_kl if rl.kl_in == "reward" else update.metrics["train/kl"]
        kl_beta = next_kl_beta(kl_beta, measured, rl.kl_target, rl.kl_gain)
    scored = [
        inputs_of_rollouts(group.rollouts, config.reward.span, update.policy_version)
        for group in finished
        if group.rollouts
    ]
    length_state = next_length_state(state.length_state, scored, config.reward, update.policy_version)
    return replace(state, step=update.policy_version, kl_beta=kl_beta, length_state=length_state)


def check_update(update: UpdateResult, batch: TrainBatch, config: RunConfig, version_before: int) -> None:
    """The learner took exactly one step, and agreed with the engines about the rollouts' logprobs."""
    if update.policy_version != version_before + 1:
        raise RuntimeError(
            f"expected policy version {version_before + 1} after the update, got {update.policy_version}"
        )
    gap, limit = update.metrics["rollout/logprob_gap_mean"], config.rollout.max_logprob_gap
    if gap > limit and config.rl.max_staleness == 0:
        raise RuntimeError(
            f"step {update.policy_version}: engine and learner disagree about {batch.num_loss_tokens} sampled tokens: "
            f"mean |logprob gap| {gap:.4f} nats, expected at most {limit} (rollout.max_logprob_gap)"
        )


def save(stage: Stage, state: StageState, published: Published) -> None:
    """Checkpoint the learner as it is now, with the task stream's position."""
    started_s, run = time.monotonic(), stage.config.run
    packed: Any = ray.get(published[1])
    saved = Checkpoint(state=state, adapter=packed, learner=stage.cluster.learner.save_state())
    checkpoint.save(stage.directory, saved, KeepRule(num_newest=run.keep_checkpoints, every_steps=run.keep_every_steps))
    size_bytes, seconds = len(saved.adapter) + len(saved.learner), time.monotonic() - started_s
    stage.event(Event.CHECKPOINT, state.step, seconds=round(seconds, 3), size_bytes=size_bytes)
    if stage.mirror and (problem := stage.mirror.try_to_push()):
        stage.event(Event.MIRROR_BEHIND, state.step, problem=problem)


def is_due(step: int, every_steps: int) -> bool:
    """Every so many steps; 0 is never."""
    return every_steps > 0 and step % every_steps == 0


class StepClock:
    """Where a step's time went: `time/rollout_s`, `time/update_s`, `time/publish_s`, `time/step_s`."""

    WAITS_FOR = ("groups to be generated and scored", "the learner's update", "engines to load the adapter", "files")
    """In each part of a step; `files` are metrics, samples and checkpoints, and evaluation counts among them."""

    def __init__(self, begin: Callable[[str], None]) -> None:
        """`begin` is told what is waited for, part after part."""
        self._start_s = self._last_s = time.monotonic()
        self._parts: dict[str, float] = {}
        self._begin = begin
        begin(self.WAITS_FOR[0])

    def mark(self, part: str) -> None:
        """Everything since the last mark was `part`."""
        now = time.monotonic()
        self._parts[f"time/{part}_s"] = now - self._last_s
        self._last_s = now
        self._begin(self.WAITS_FOR[len(self._parts)])

    def metrics(self, num_tokens: float) -> dict[str, float]:
        """With `rollout/tokens_per_s`: tokens generated for the step, over all of its time."""
        step_s = self._last_s - self._start_s
        return {**self._parts, "time/step_s": step_s, "rollout/tokens_per_s": num_tokens / max(step_s, 1e-9)}
