"""Advantages: a completion's reward against its group's baseline. Pure functions.

The estimators take the rewards of all groups of a step and give one array `[G]` per group.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from configs.built_ins import ADVANTAGES
from configs.functions import load_function

STD_EPSILON = 1e-6

Rewards = Sequence[Sequence[float]]


def group_advantages(rewards: Sequence[float]) -> np.ndarray:
    """GRPO advantages `[G]` of one group: `(r - mean) / (std + eps)`, population std.

    Example: `[0, 0, 1, 1] → [-1, -1, 1, 1]`. All equal gives zeros. Source: Shao et al. 2024
    (arXiv 2402.03300), as arXiv 2603.16867 uses it.
    """
    values = centre(rewards)
    return values / (values.std() + STD_EPSILON)


def grpo(rewards_per_group: Rewards) -> list[np.ndarray]:
    """`group_advantages` of every group."""
    return [group_advantages(rewards) for rewards in rewards_per_group]


def dr_grpo(rewards_per_group: Rewards) -> list[np.ndarray]:
    """`r - mean`: dividing by the std would weigh very easy and very hard tasks up (Dr. GRPO, arXiv 2503.20783).

    Example: `[0, 0, 1, 1] → [-0.5, -0.5, 0.5, 0.5]`.
    """
    return [centre(rewards) for rewards in rewards_per_group]


def rloo(rewards_per_group: Rewards) -> list[np.ndarray]:
    """`r - mean of the others` = `(r - mean) G / (G - 1)`: a baseline that a reward has no part in (arXiv 2402.14740).

    Example: `[0, 0, 1, 1] → [-2/3, -2/3, 2/3, 2/3]`.

    Raises ValueError for a group of one, which has no others.
    """
    if any(len(rewards) < 2 for rewards in rewards_per_group):
        raise ValueError("rloo needs groups of at least 2, got a group of 1")
    return [centre(rewards) * len(rewards) / (len(rewards) - 1) for rewards in rewards_per_group]


def batch_std(rewards_per_group: Rewards) -> list[np.ndarray]:
    """`r - mean` of the group, over the population std of all the step's `r - mean` (+ eps).

    Sources: DLER (arXiv 2510.15110), after REINFORCE++ (arXiv 2501.03262). One scale for the whole step: groups
    whose rewards hardly differ stay small instead of being blown up to std 1.

    Example: groups `[0, 2]` and `[1, 1]`: centred `[-1, 1]` and `[0, 0]`, std sqrt(1/2) →
    `[-1.414, 1.414]` and `[0, 0]`.
    """
    centred = [centre(rewards) for rewards in rewards_per_group]
    scale = np.concatenate(centred).std() if centred else 1.0
    return [values / (scale + STD_EPSILON) for values in centred]


def centre(rewards: Sequence[float]) -> np.ndarray:
    """Rewards minus their mean, float64 `[G]`."""
    values = np.asarray(rewards, dtype=np.float64)
    return values - values.mean()


AdvantageEstimator = Callable[..., Sequence[np.ndarray]]
"""`(rewards_per_group, **args)`: what `rl.advantage` names. Runs on the driver, once a step."""


def estimate(name: str, args: Mapping[str, Any], rewards_per_group: Rewards) -> list[np.ndarray]:
    """Advantages `[G]` of every group of a step, by the function that `rl.advantage` names.

    Raises ValueError where a function of one's own does not return one finite number for each completion.
    """
    found = load_function("rl.advantage", name, ADVANTAGES)(rewards_per_group, **args)
    arrays = [np.asarray(values, dtype=np.float64) for values in found]
    wanted = [(len(rewards),) for rewards in rewards_per_group]
    if [values.shape for values in arrays] != wanted or not all(np.isfinite(values).all() for values in arrays):
        raise ValueError(
            f"rl.advantage: expected a finite number for each completion, arrays of shapes {wanted}, {name} returned "
            f"{arrays!s:.200}"
        )
    return arrays
