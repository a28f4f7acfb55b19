"""KL divergence from a reference: its estimators, and the controller that keeps it near a target."""

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor  # seconds, which the driver, who steers the coefficient, need not wait

MAX_KL_ERROR = 0.2
"""Largest error that one step of the controller takes account of, as a share of the target."""


def kl_penalty(policy_logprobs: "Tensor", reference_logprobs: "Tensor", estimator: str) -> "Tensor":
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


def sequence_kl(behaviour_logprobs: np.ndarray, reference_logprobs: np.ndarray, estimator: str) -> float:
    """Estimate of KL(behaviour || reference) of one sequence: the sum of `kl_penalty` over its tokens `[T]`.

    For a KL term in the reward, where k1 is the one to take: its sum is the sequence's log ratio, and what a
    reward subtracts has no gradient of its own that could vanish on average.

    Example: behaviour `[-1.0, -2.0]`, reference `[-1.5, -1.0]`: k1 `0.5 - 1.0 = -0.5`, k2 `0.125 + 0.5 = 0.625`.

    Raises ValueError when the shapes differ.
    """
    import torch

    if behaviour_logprobs.shape != reference_logprobs.shape:
        raise ValueError(
            f"expected reference logprobs of shape {behaviour_logprobs.shape}, got {reference_logprobs.shape}"
        )
    behaviour, reference = (torch.from_numpy(a.astype(np.float64)) for a in (behaviour_logprobs, reference_logprobs))
    return kl_penalty(behaviour, reference, estimator).sum().item()


def next_kl_beta(kl_beta: float, measured_kl: float, target_kl: float, gain: float = 0.1) -> float:
    """The KL coefficient for the next step: a proportional controller in log space.

        error = clip((measured_kl - target_kl) / target_kl, -0.2, 0.2)
        next  = kl_beta (1 + gain error)

    Source: Ziegler et al. 2019 (arXiv 1909.08593), who take gain 0.1. Only the ratio of the two
    KLs counts: per token or per sequence, but both in the same unit. A `kl_beta` of 0 stays 0.

    Example: coefficient 0.001, target 0.01, gain 0.1: measured 0.011 → 0.00101 (error 0.1), measured 0.05 →
    0.00102 (error 4, clipped to 0.2), measured 0 → 0.00098.

    Raises ValueError for a measured KL that is not finite, a target that is not above 0, a gain outside [0, 5).
    """
    if not math.isfinite(measured_kl):
        raise ValueError(f"measured_kl must be finite, got {measured_kl}")
    if not target_kl > 0:
        raise ValueError(f"target_kl must be above 0, got {target_kl}")
    if not 0 <= gain < 1 / MAX_KL_ERROR:
        raise ValueError(f"gain must be at least 0 and below {1 / MAX_KL_ERROR:g}, got {gain}")
    error = min(max(measured_kl / target_kl - 1, -MAX_KL_ERROR), MAX_KL_ERROR)
    return kl_beta * (1 + gain * error)
