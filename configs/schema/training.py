"""Settings of training: budgets, SFT, RL and its rollouts; part of `configs.schema`."""

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class BudgetSection:
    """Token budgets: drawn per task, named in the prompt, used by the length reward."""

    buckets_tokens: tuple[int, ...] = (1000, 3000, 4000, 6000)
    """One is drawn per task from the seeded task stream (the paper: 1K, 3K, 4K, 6K)."""
    weights: tuple[float, ...] = ()
    """How likely each bucket is, relative to the others; empty: all equally."""
    per_difficulty_tokens: int = 0
    """Added for each unit of the task's difficulty."""
    curriculum_factor: float = 1.0
    """Training budgets begin this many times as large, and shrink (or grow) linearly to what they are …"""
    curriculum_steps: int = 0
    """… over so many RL steps, counted in prompts handed out; 0: no curriculum."""
    prompt_template: str = "{question}\n\nThink for at most {budget_tokens} tokens."
    """How the prompt names the budget."""
    forced_answer_text: str = "\n</think>\n\nThe final answer is \\boxed{"
    """What a hard cap appends where it cuts a completion."""
    answer_tokens: int = 32
    """Generated at most after that."""


@dataclass(frozen=True, kw_only=True)
class SftSection:
    """Supervised fine-tuning of the adapter on reasoning traces."""

    adapter: str = ""
    """An adapter to begin RL from instead of training one: a directory in PEFT's format, or a hub name."""
    num_steps: int = 100
    """Optimiser steps. 0, without `adapter`: no SFT, and RL begins with a fresh adapter, that is, from the model's own
    reasoning."""
    rows_per_step: int = 64
    """Traces per optimiser step, over all ranks."""
    learning_rate: float = 2e-4
    """Learning rate at its peak: linear warm-up, then a half cosine down to 0."""
    warmup_frac: float = 0.1
    """Share of the steps that warms up."""
    weight_decay: float = 0.0
    """A setting of AdamW."""
    checkpoint_every_steps: int = 20
    """A checkpoint is also made at the end."""


@dataclass(frozen=True, kw_only=True)
class RlSection:
    """Budget-forced RL of the adapter (GRPO)."""

    num_steps: int = 200
    """May grow on a run that was trained before: it goes on with the learning rate of the longer schedule, whose warm-up is
    past."""
    groups_per_step: int = 32
    """Prompts trained on per optimiser step; constant groups are replaced."""
    group_size: int = 8
    """Completions per prompt, G."""
    learning_rate: float = 2e-5
    """Learning rate at its peak: linear warm-up, then a half cosine down to 0."""
    warmup_frac: float = 0.05
    """Share of the steps that warms up."""
    weight_decay: float = 0.0
    """A setting of AdamW."""
    loss: str = "grpo"
    """grpo: a clipped ratio per token; gspo: one per sequence; cispo: REINFORCE with a clipped weight; or a function of your
    own, `package.module:function`."""
    loss_args: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of a loss of your own."""
    loss_mean: Literal["token", "sequence", "constant"] = "token"
    """token: all trained tokens weigh alike (DAPO); sequence: all completions do (GRPO as printed); constant: divided
    by completions x rollout.max_completion_tokens (Dr. GRPO)."""
    advantage: str = "grpo"
    """grpo: (r - mean) / std of the group; dr_grpo: r - mean; rloo: r - mean of the others; batch_std: r - mean, over
    the std of the whole step (DLER); or a function of your own, `package.module:function`."""
    advantage_args: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of an advantage of your own."""
    clip_low: float = 0.2
    """The ratio is clipped to [1 - clip_low, 1 + clip_high]."""
    clip_high: float = 0.2
    """See clip_low."""
    importance_cap: float = 2.0
    """Truncation of the importance weight between engine and learner logprobs."""
    sequence_mask_gap: float = 0.0
    """Completions whose mean logprob is further than this from the policy's, in nats, are left out; 0 leaves none."""
    overlong_filtering: bool = False
    """Completions cut at the length limit are not trained on (DAPO); their rewards still count for the group's mean."""
    entropy_bonus: float = 0.0
    """Weight of the mean entropy, which is subtracted from the loss."""
    kl_beta: float = 1e-3
    """Weight of the KL penalty; 0 turns it off."""
    kl_in: Literal["loss", "reward"] = "loss"
    """loss: a term per token; reward: each completion's KL is taken off its reward before advantages."""
    kl_target: float = 0.0
    """Measured KL that kl_beta is steered to, in nats per token (in the reward: per completion); 0 keeps it as it is."""
    kl_gain: float = 0.1
    """How fast kl_beta follows: at most a fifth of this a step (Ziegler et al. 2019)."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    """Estimator of the KL, from the logprobs of sampled tokens (Schulman 2020): k1 unbiased, k2 a square, k3 unbiased and never negative."""
    kl_reference: Literal["start", "base"] = "start"
    """`start`: the adapter that RL started from; `base`: the model without adapter."""
    max_staleness: int = 0
    """Optimiser steps that a group may lie behind the learner; 0 is on-policy."""
    max_consecutive_drops: int = 512
    """Groups dropped in a row before the run gives up."""
    checkpoint_every_steps: int = 10
    """A checkpoint is also made at the end."""
    evaluate_every_steps: int = 0
    """Held-out evaluation between steps; 0 is only at the end."""
    keep_best: Literal["none", "accuracy", "aes"] = "none"
    """With evaluate_every_steps: keep the adapter that did best on held-out tasks as `rl/best_<step>`, for `export.step=best` and
    `evaluation.step=best`. accuracy: most often right, of equals the shorter; aes: by the accuracy-efficiency score of O1-Pruner
    (arXiv 2501.12570) against what RL began from."""
    best_cap_tokens: int = 0
    """With keep_best: completions of more tokens count as wrong; 0: none do."""


@dataclass(frozen=True, kw_only=True)
class RolloutSection:
    """Generating completions for training."""

    num_actors: int = 1
    """Engines."""
    max_completion_tokens: int = 6144
    """A completion that reaches it is cut, and counts as truncated."""
    cap_tokens: int = 0
    """Hard cap in training: a completion is cut there and made to answer, and what was forced is not trained on.
    0 is none."""
    temperature: float = 0.8
    """Sampling temperature; the learner computes logprobs at the same."""
    top_p: float = 1.0
    """Must stay 1 in RL: a truncated distribution biases the importance ratios."""
    top_k: int = 0
    """Must stay 0 in RL, for the same reason."""
    min_p: float = 0.0
    """Must stay 0 in RL, for the same reason."""
    max_logprob_gap: float = 0.1
    """Mean |behaviour - learner| logprob gap at staleness 0 above which the run stops, in nats."""
    generate_timeout_s: float = 1800.0
    """Without one call to an engine or reward actor that ends for so long, the run fails."""
