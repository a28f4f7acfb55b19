"""Losses over trained tokens, as pure functions of `[N]` tensors.

A loss is a sum of tokens' terms, each with a weight that depends only on its own sequence and on counts over
the whole step (all ranks and micro-batches), so the parts of a step add up to the same loss however its
sequences are sharded; a sequence itself is never split. Metrics are sums over tokens (`masked` over sequences,
and one maximum), to be added up in the same way.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor

from actors.kl import kl_penalty
from actors.types import StageSpec
from configs.built_ins import LOSSES
from configs.functions import load_function, name_problem


@dataclass(frozen=True, slots=True, kw_only=True)
class LossSettings:
    """How a step's policy loss is made. `kl_beta` may differ from step to step: `dataclasses.replace`."""

    name: str
    """As `rl.loss` names it"""
    args: Mapping[str, Any]
    """Keyword arguments of a loss of one's own"""
    loss_mean: str
    """A key of `LOSS_MEANS`"""
    clip_low: float
    """The ratio is clipped to [1 - clip_low, 1 + clip_high]."""
    clip_high: float
    importance_cap: float
    """The ratio is truncated here before anything else."""
    sequence_mask_gap: float
    """Sequences further than this from the policy that sampled them are left out (`masked_sequences`); 0 is off"""
    kl_beta: float
    kl_estimator: str
    """The estimator of `kl_penalty`; unread without reference logprobs"""
    entropy_bonus: float
    """Coefficient of the mean entropy, which is subtracted from the loss"""
    max_completion_tokens: int
    """Read by `loss_mean` `constant`"""

    def __post_init__(self) -> None:
        if problem := name_problem("rl.loss", self.name, LOSSES):
            raise ValueError(problem)
        if self.loss_mean not in LOSS_MEANS:
            raise ValueError(f"loss_mean must be one of {', '.join(LOSS_MEANS)}, got {self.loss_mean!r}")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LossInputs:
    """The N trained tokens of one micro-batch, and the counts of the whole step that they are a part of.

    Example: rows `[0, 0, 2]` are two tokens of sequence 0 and one of sequence 2; sequence 1 has none.
    """

    policy_logprobs: Tensor
    """`[N]`, with gradient"""
    behaviour_logprobs: Tensor
    """`[N]`"""
    reference_logprobs: Tensor | None
    """`[N]`; None without a KL term"""
    advantages: Tensor
    """`[N]`"""
    entropies: Tensor
    """`[N]`, with gradient when there is an entropy bonus"""
    rows: Tensor
    """int64 `[N]`, the token's sequence within this micro-batch, in any order"""
    num_loss_tokens: int
    """Trained tokens of the step, over all ranks and micro-batches"""
    num_sequences: int
    """Sequences of the step, likewise; those without trained tokens included"""

    @property
    def log_ratio(self) -> Tensor:
        """`[N]`, of policy to behaviour"""
        return self.policy_logprobs - self.behaviour_logprobs

    @property
    def num_rows(self) -> int:
        """Sequences here, up to the last one with a trained token."""
        return int(self.rows.max()) + 1 if len(self.rows) else 0

    @property
    def row_tokens(self) -> Tensor:
        """`[num_rows]`, trained tokens of each sequence, at least 1 to divide by; dtype of the logprobs"""
        ones = torch.ones_like(self.behaviour_logprobs)
        return ones.new_zeros(self.num_rows).index_add(0, self.rows, ones).clamp(min=1)

    def row_means(self, values: Tensor) -> Tensor:
        """Mean of each sequence's `values` `[N]` → `[num_rows]`; 0 for a sequence without trained tokens."""
        return values.new_zeros(self.num_rows).index_add(0, self.rows, values) / self.row_tokens


class Surrogate(NamedTuple):
    """What a policy loss makes of each token, all `[N]`."""

    terms: Tensor
    """To be minimised, with gradient"""
    ratio: Tensor
    """The importance ratio that the loss uses, truncated, detached"""
    clipped: Tensor
    """bool, where the clip took effect"""


def sft_loss(policy_logprobs: Tensor, num_loss_tokens: int) -> Tensor:
    """Cross entropy: `-sum(policy_logprobs) / num_loss_tokens`.

    Example: logprobs `[-1, -3]` of 2 tokens → 2.0; as one of two equal shards (4 tokens) → 1.0.
    """
    return -policy_logprobs.sum() / num_loss_tokens


def policy_gradient_loss(inputs: LossInputs, settings: LossSettings) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss `settings.name` with KL penalty and entropy bonus: this micro-batch's part of the step's loss.

        loss = sum(weight (surrogate + kl_beta KL - entropy_bonus entropy))

    with `weight` from `LOSS_MEANS` for all three. The per-token KL in the loss is GRPO (arXiv 2402.03300, eq. 3).

    Returns the loss and the detached sums over tokens `clipped`, `ratio`, `gap` (|policy - behaviour|), `kl` (0
    without a reference), the sum over sequences `masked`, and the maximum `gap_max` (0 when N = 0).

    Example: `grpo`, `token`, clips 0.2, cap 2, no KL, 3 tokens, ratios `[1.0, 1.5, 3.0]`, advantages `[1, 1, -1]`:
    terms `[-1.0, -1.2, +2.0]`, loss -0.0667, clipped 1; only the first token has a gradient (-1/3).

    Raises ValueError when `kl_beta` > 0 and there are no reference logprobs, or when there is an entropy bonus
    and the entropies carry no gradient: it would do nothing.
    """
    if settings.kl_beta > 0 and inputs.reference_logprobs is None:
        raise ValueError(f"kl_beta = {settings.kl_beta} needs reference logprobs, got None")
    if settings.entropy_bonus and inputs.policy_logprobs.requires_grad and not inputs.entropies.requires_grad:
        raise ValueError(f"entropy_bonus = {settings.entropy_bonus} needs entropies with gradient, got detached ones")
    surrogate = load_function("rl.loss", settings.name, LOSSES)(inputs, settings, **settings.args)
    if not isinstance(surrogate, Surrogate) or any(value.shape != inputs.rows.shape for value in surrogate):
        raise ValueError(
            f"rl.loss: expected a Surrogate of tensors [{len(inputs.rows)}], one value a token, {settings.name} returned "
            f"{surrogate!s:.200}"
        )
    terms, num_masked = surrogate.terms, inputs.rows.new_zeros(())
    if settings.sequence_mask_gap:
        masked = masked_sequences(inputs, settings.sequence_mask_gap)
        terms, num_masked = terms.masked_fill(masked[inputs.rows], 0.0), masked.sum()
    kl_sum = terms.new_zeros(())
    if inputs.reference_logprobs is not None:
        kl = kl_penalty(inputs.policy_logprobs, inputs.reference_logprobs, settings.kl_estimator)
        kl_sum = kl.detach().sum()
        if settings.kl_beta:  # a KL that is only watched must not reach the loss: 0 * inf
            terms = terms + settings.kl_beta * kl
    if settings.entropy_bonus:
        terms = terms - settings.entropy_bonus * inputs.entropies
    gap = inputs.log_ratio.detach().abs()
    metrics = {
        "clipped": surrogate.clipped.sum(),
        "ratio": surrogate.ratio.sum(),
        "gap": gap.sum(),
        "gap_max": gap.max() if len(gap) else gap.new_zeros(()),
        "kl": kl_sum,
        "masked": num_masked,
    }
    return (terms * LOSS_MEANS[settings.loss_mean](inputs, settings)).sum(), metrics


def grpo_surrogate(inputs: LossInputs, settings: LossSettings) -> Surrogate:
    """PPO's clip at every token, `-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A)`, `r = exp(policy - behaviour)`.

    Sources: PPO (arXiv 1707.06347, eq. 7), unequal clips from DAPO (arXiv 2503.14476). A token whose ratio is past
    the cap gets no gradient: the clip does that where A > 0, the cap where A < 0, where PPO's gradient is
    unbounded (dual clip, arXiv 1912.09729).

    Example: clips 0.2, cap 2: ratio 1.5, A 1 → -1.2, no gradient; ratio 1.5, A -1 → 1.5, gradient 1.5.
    """
    return _clip_ratio(inputs.log_ratio, inputs.advantages, settings)


def gspo_surrogate(inputs: LossInputs, settings: LossSettings) -> Surrogate:
    """As `grpo_surrogate` with one ratio per sequence, `s = exp(mean over its tokens of (policy - behaviour))`.

    Source: GSPO (arXiv 2507.18071, eqs. 5 and 7). A sequence's tokens all have its term, so `loss_mean`
    `sequence` is the paper's objective. The mean log ratio of a sequence is far smaller than that of a token:
    the paper clips at 3e-4 and 4e-4.

    Example: one sequence, token ratios `[1.0, 1.44]`, A 1, no clip: s = 1.2, terms `[-1.2, -1.2]`; with
    `sequence` the loss is -1.2 and each token's gradient -0.6.
    """
    return _clip_ratio(inputs.row_means(inputs.log_ratio)[inputs.rows], inputs.advantages, settings)


def cispo_surrogate(inputs: LossInputs, settings: LossSettings) -> Surrogate:
    """REINFORCE with a clipped weight, `-w A policy`, `w = clip(r, 1 - clip_low, 1 + clip_high)` without gradient.

    Source: CISPO (arXiv 2506.13585, section 3.1). Only the weight is clipped, so every token keeps a gradient,
    `-w A`. The paper runs it without lower bound (`clip_low` 1), tunes the upper one, and takes the `token` mean.
    `importance_cap` bounds the weight too: keep it at 1 + `clip_high` or above.

    Example: clips 0.2, ratios `[0.5, 1.0, 3.0]`, policy -1, A 1: weights `[0.8, 1.0, 1.2]` = terms.
    """
    ratio = _capped_ratio(inputs.log_ratio.detach(), settings)
    weight = ratio.clamp(1 - settings.clip_low, 1 + settings.clip_high)
    return Surrogate(-weight * inputs.advantages * inputs.policy_logprobs, ratio, weight != ratio)


PolicyLoss = Callable[..., Surrogate]
"""`(inputs, settings, **args)`: what `rl.loss` names. Runs on learner ranks, for each micro-batch; KL, entropy bonus and the mean
over tokens come on top of it."""

LOSS_MEANS: dict[str, Callable[[LossInputs, LossSettings], Tensor | float]] = {
    # Tokens weigh equally: DAPO (arXiv 2503.14476, eq. 8).
    "token": lambda inputs, _: 1 / inputs.num_loss_tokens,
    # Sequences weigh equally: GRPO as printed (arXiv 2402.03300, eq. 3).
    "sequence": lambda inputs, _: 1 / (inputs.row_tokens[inputs.rows] * inputs.num_sequences),
    # Tokens weigh equally, and the same in every step: Dr. GRPO (arXiv 2503.20783).
    "constant": lambda inputs, settings: 1 / (inputs.num_sequences * settings.max_completion_tokens),
}
"""The weight of each token's term, `[N]` or one for all.

Example: sequences of 1 and 3 tokens, at most 4: `token` 1/4 each, `sequence` `[1/2, 1/6, 1/6, 1/6]`, `constant` 1/8.
"""


def masked_sequences(inputs: LossInputs, gap: float) -> Tensor:
    """Sequences that the policy would hardly have sampled, bool `[num_rows]`: `|mean(policy - behaviour)| > gap`.

    Masked importance sampling in its geometric form: the geometric mean of the sequence's ratios must lie in
    [exp(-gap), exp(gap)], which a long sequence meets as easily as a short one, unlike the product of the ratios
    (richardli.xyz/post/rl-collapse-part3; verl's `rollout_rs: geometric`).
    Left out means of the surrogate only: KL and entropy stay, and so do the counts that the loss divides by,
    for those are known before any logprob is.

    Example: log ratios `[0.3, 0.1]` and `[0.3, -0.3]` of two sequences, gap 0.15 → `[True, False]`.
    """
    return inputs.row_means(inputs.log_ratio.detach()).abs() > gap


def step_metrics(
    kind: str, sums: dict[str, float], gap_max: float, num_loss_tokens: int, num_sequences: int
) -> dict[str, float]:
    """Metrics of one step from sums over all its tokens: `loss` is the loss itself, the others are divided."""
    metrics = {
        "train/loss": sums["loss"],
        "train/entropy": sums["entropy"] / num_loss_tokens,
        "train/num_loss_tokens": float(num_loss_tokens),
        "train/num_tokens": sums["tokens"],
        "train/shared_frac": 1 - sums["computed_tokens"] / sums["tokens"],
    }
    if kind == "rl":
        metrics |= {
            "train/kl": sums["kl"] / num_loss_tokens,
            "train/clip_frac": sums["clipped"] / num_loss_tokens,
            "train/ratio_mean": sums["ratio"] / num_loss_tokens,
            "train/masked_frac": sums["masked"] / num_sequences,
            "rollout/logprob_gap_mean": sums["gap"] / num_loss_tokens,
            "rollout/logprob_gap_max": gap_max,
        }
    return metrics


def loss_settings(stage: StageSpec, kl_beta: float) -> LossSettings:
    """A stage's settings with the KL weight of one step."""
    names = {field.name for field in fields(LossSettings)} - {"name", "args", "kl_beta"}
    return LossSettings(
        name=stage.loss, args=stage.loss_args, kl_beta=kl_beta, **{name: getattr(stage, name) for name in names}
    )


def _capped_ratio(log_ratio: Tensor, settings: LossSettings) -> Tensor:
    # The cap acts on the logarithm: exp of a huge difference would be inf, and its gradient 0 * inf.
    return log_ratio.clamp(max=math.log(settings.importance_cap)).exp()


def _clip_ratio(log_ratio: Tensor, advantages: Tensor, settings: LossSettings) -> Surrogate:
    low, high = 1 - settings.clip_low, 1 + settings.clip_high
    ratio = _capped_ratio(log_ratio, settings)
    terms = -torch.minimum(ratio * advantages, ratio.clamp(low, high) * advantages)
    ratio = ratio.detach()
    clipped = torch.where(advantages > 0, ratio > high, (ratio < low) & (advantages < 0))
    return Surrogate(terms, ratio, clipped)
