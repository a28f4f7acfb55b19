"""Budget-forced RL: the loop of the whole system.

Generate with adapter v, score, estimate advantages, update to v + 1, publish it to every engine. On-policy and
asynchronous training are this one path; `rl.max_staleness` says how far generation may lag.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from actors.kl import next_kl_beta
from actors.learner_group import LearnerGroup
from actors.reward import inputs_of_rollouts
from actors.types import (
    BASE_VERSION,
    DroppedGroup,
    RolloutGroup,
    Sampling,
    StageSpec,
    TrainBatch,
    UpdateResult,
)
from configs.schema.run import RunConfig
from orchestrator.cluster.dispatcher import MAX_ATTEMPTS
from orchestrator.data.prompts import Prompter, make_cap
from orchestrator.data.tasks import seeded_rng
from orchestrator.evaluation.held_out import HeldOut
from orchestrator.record import checkpoint, ledger
from orchestrator.record.checkpoint import StageState
from orchestrator.record.events import Event
from orchestrator.record.interrupt import stop_between_steps
from orchestrator.record.metrics import group_metrics
from orchestrator.record.progress import Progress
from orchestrator.record.run_files import write_samples
from orchestrator.record.watchdog import Watchdog
from orchestrator.rl.batching import build_batch, groups_of_ranks, sequence_kls
from orchestrator.rl.probe import prove_adapters_reach, prove_cap_holds
from orchestrator.rl.rollout_pool import RolloutPool
from orchestrator.stage import Stage
from orchestrator.stages.steps import StepClock, begin, is_due, save
from rewards.length.registry import next_state as next_length_state


def train(stage: Stage, start_adapter: bytes | None) -> None:
    """RL from `start_adapter` (None: a fresh one), or from the stage's newest checkpoint, to `rl.num_steps`."""
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
        if config.rl.keep_best != "none" and state.step == 0:
            held_out.begin(*published)  # what later ones are compared with
        while state.step < config.rl.num_steps:
            clock = StepClock(watchdog.begin)
            groups = take_held(stage, pool)
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
                samples = write_samples(config.run_dir, state.step, groups, stage.cluster.fetch_each, stage.prompt_text)
                stage.tracker.log_table(samples, f"samples/step_{state.step:06d}")
                save(stage, state, published)
            stop.raise_if_set()
    stage.tracker.log_directory(checkpoint.list_checkpoints(stage.directory)[-1], "adapter")


def rl_spec(config: RunConfig, start_adapter: bytes | None) -> StageSpec:
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
        loss_args=rl.loss_args,
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
        load_adapter=stage.cluster.engines.load_adapter,
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
    """Seed of a group's sampling; it follows from the run's seed, the prompt's index and the adapter's version alone."""
    return seeded_rng(seed, "rollout", f"{index}/{version}").getrandbits(48)


def take_held(stage: Stage, pool: RolloutPool) -> list[RolloutGroup]:
    """The next step's groups, with the ranks holding their completions. Those whose completions went with a node are made again.

    Raises RuntimeError when they go again and again.
    """
    config, learner = stage.config, stage.cluster.learner
    for attempt in range(1, MAX_ATTEMPTS + 1):
        groups = pool.take(config.rl.groups_per_step)
        lost = learner.hold(groups_of_ranks(groups, config.learner.num_ranks))
        if not lost:
            return groups
        for group_id in sorted(lost):
            stage.event(
                Event.REDISPATCHED, group_id=group_id, call="generate", attempt=attempt + 1, cause="completions lost"
            )
        pool.make_again(groups, lost)
    raise RuntimeError(f"completions of groups {sorted(lost)} were lost, and of others {MAX_ATTEMPTS - 1} times before")


def make_batch(
    groups: Sequence[RolloutGroup], config: RunConfig, state: StageState, learner: LearnerGroup
) -> TrainBatch:
    """One step's rows. With KL in the reward, the learner, which holds the completions, first says how far they are from the
    reference."""
    rl, num_ranks = config.rl, config.learner.num_ranks
    kl_of_rollouts = None
    if rl.kl_in == "reward" and state.kl_beta > 0:
        adapter = "reference" if rl.kl_reference == "start" else "base"
        kl_of_rollouts = sequence_kls(
            groups, lambda batch: learner.sequence_kls(batch, adapter, rl.kl_estimator), num_ranks
        )
    return build_batch(
        groups,
        num_ranks=num_ranks,
        policy_version=state.step,
        max_staleness=rl.max_staleness,
        advantage=rl.advantage,
        advantage_args=rl.advantage_args,
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
        measured = batch.reward_kl if rl.kl_in == "reward" else update.kl
        kl_beta = next_kl_beta(kl_beta, measured, rl.kl_target, rl.kl_gain)
    scored = [
        inputs_of_rollouts(group.prompt, group.rollouts, config.reward.span, update.policy_version)
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
    gap, limit = update.logprob_gap, config.rollout.max_logprob_gap
    if gap > limit and config.rl.max_staleness == 0:
        raise RuntimeError(
            f"step {update.policy_version}: engine and learner disagree about {batch.num_loss_tokens} sampled tokens: "
            f"mean |logprob gap| {gap:.4f} nats, expected at most {limit} (rollout.max_logprob_gap)"
        )
