"""Advantages: a completion's reward against its group's baseline. Pure functions."""

from collections.abc import Sequence

import numpy as np

STD_EPSILON = 1e-6


def group_advantages(rewards: Sequence[float]) -> np.ndarray:
    """GRPO advantages `[G]` of one group: `(r - mean) / (std + eps)`, population std.

    Example: `[0, 0, 1, 1] → [-1, -1, 1, 1]`. All equal gives zeros. Source: Shao et al. 2024
    (arXiv 2402.03300), as arXiv 2603.16867 uses it.
    """
    values = np.asarray(rewards, dtype=np.float64)
    centred = values - values.mean()
    return centred / (values.std() + STD_EPSILON)
