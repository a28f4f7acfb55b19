"""Losses over trained tokens, as pure functions of `[N]` tensors.

Each returns the sum over its tokens divided by `num_loss_tokens`, the number of trained tokens of the whole
step over all ranks and micro-batches, so the parts of a step add up to the same loss however it is sharded.
Metrics are sums over the tokens (and one maximum), to be added up and divided in the same way.
"""

import math

import torch
from torch import Tensor


def sft_loss(policy_logprobs: Tensor, num_loss_tokens: int) -> Tensor:
    """Cross entropy: `-sum(policy_logprobs) / num_loss_tokens`.

    Example: logprobs `[-1, -3]` of 2 tokens → 2.0; as one of two equal shards (4 tokens) → 1.0.
    """
    return -policy_logprobs.sum() / num_loss_tokens


def policy_gradient_loss(
    *,
    policy_logprobs: Tensor,
    behaviour_logprobs: Tensor,
    advantages: Tensor,
    reference_logprobs: Tensor | None,
    num_loss_tokens: int,
    clip_low: float,
    clip_high: float,
    importance_cap: float,
    kl_beta: float,
    kl_estimator: str,
) -> tuple[Tensor, dict[str, Tensor]]:
    """GRPO's clipped surrogate with a KL penalty; all tensors `[N]`, one entry per trained token.

        r    = min(exp(policy - behaviour), importance_cap)
        loss = sum(-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A) + kl_beta KL) / num_loss_tokens

    Sources: the clip is PPO (arXiv 1707.06347, eq. 7), tokens weigh equally as in DAPO (arXiv 2503.14476,
    eq. 8), the per-token KL is GRPO (arXiv 2402.03300, eq. 3). A token whose ratio is past the cap gets no
    gradient from the surrogate: the clip does that where A > 0, the cap where A < 0, where PPO's
    gradient is unbounded (dual clip, arXiv 1912.09729).

    Returns the loss and the detached sums `clipped`, `ratio`, `gap` (|policy - behaviour|), `kl` (0 without a
    reference), and the maximum `gap_max` (0 when N = 0).

    Example: clips 0.2, cap 2, no KL, 3 tokens, ratios `[1.0, 1.5, 3.0]`, advantages `[1, 1, -1]`:
    terms `[-1.0, -1.2, +2.0]`, loss -0.0667, clipped 1; only the first token has a gradient (-1/3).

    Raises ValueError when `kl_beta` > 0 and there are no reference logprobs.
    """
    if kl_beta > 0 and reference_logprobs is None:
        raise ValueError(f"kl_beta = {kl_beta} needs reference logprobs, got None")
    log_ratio = policy_logprobs - behaviour_logprobs
    # The cap acts on the logarithm: exp of a huge difference would be inf, and its gradient 0 * inf.
    ratio = log_ratio.clamp(max=math.log(importance_cap)).exp()
    surrogate = torch.minimum(ratio * advantages, ratio.clamp(1 - clip_low, 1 + clip_high) * advantages)
    total = -surrogate.sum()
    kl_sum = policy_logprobs.new_zeros(())
    if reference_logprobs is not None:
        kl = kl_penalty(policy_logprobs, reference_logprobs, kl_estimator)
        total = total + kl_beta * kl.sum()
        kl_sum = kl.detach().sum()
    with torch.no_grad():
        clipped = torch.where(advantages > 0, ratio > 1 + clip_high, (ratio < 1 - clip_low) & (advantages < 0))
        gap = log_ratio.abs()
        metrics = {
            "clipped": clipped.sum(),
            "ratio": ratio.sum(),
            "gap": gap.sum(),
            "gap_max": gap.max() if len(gap) else gap.new_zeros(()),
            "kl": kl_sum,
        }
    return total / num_loss_tokens, metrics


def kl_penalty(policy_logprobs: Tensor, reference_logprobs: Tensor, estimator: str) -> Tensor:
    """Per-token estimate of KL(policy || reference) from tokens of the policy, `[N]`.

    With d = reference - policy (Schulman, "Approximating KL divergence", 2020):
    `k1 = -d` (unbiased, of any sign), `k2 = d^2 / 2` (biased; its gradient is the unbiased one),
    `k3 = exp(d) - d - 1` (unbiased, never negative, low variance). As a penalty k1's gradient is zero on
    average: it pulls nowhere.

    Example: policy -1.0, reference -1.5: d = -0.5, k1 0.5, k2 0.125, k3 0.1065.
    """
    difference = reference_logprobs - policy_logprobs
    match estimator:
        case "k1":
            return -difference
        case "k2":
            return difference.square() / 2
        case "k3":
            return difference.exp() - difference - 1
    raise ValueError(f"kl_estimator must be k1, k2 or k3, got {estimator!r}")


def step_metrics(kind: str, sums: dict[str, float], gap_max: float, num_loss_tokens: int) -> dict[str, float]:
    """Metrics of one step from sums over all its tokens: `loss` is the loss itself, the others are divided."""
    metrics = {
        "train/loss": sums["loss"],
        "train/entropy": sums["entropy"] / num_loss_tokens,
        "train/num_loss_tokens": float(num_loss_tokens),
        "train/num_tokens": sums["tokens"],
        "train/padding_frac": 1 - sums["tokens"] / sums["area_tokens"],
    }
    if kind == "rl":
        metrics |= {
            "train/kl": sums["kl"] / num_loss_tokens,
            "train/clip_frac": sums["clipped"] / num_loss_tokens,
            "train/ratio_mean": sums["ratio"] / num_loss_tokens,
            "rollout/logprob_gap_mean": sums["gap"] / num_loss_tokens,
            "rollout/logprob_gap_max": gap_max,
        }
    return metrics
