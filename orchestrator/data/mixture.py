"""Which source of a mixture each prompt comes from: seeded, in the shares that the weights say, and known from the index alone."""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

BLOCK = 1000
"""Shares are exact over so many prompts."""


def apportion(weights: Sequence[float], total: int) -> list[int]:
    """Whole numbers that add up to `total`, as near to the weights' shares as can be (largest remainders), at least 1 each where
    there is room.

    Example: weights 2, 1, 1 of 10 → 5, 3, 2 (the earlier one gets what two claim alike).
    """
    shares = [total * weight / math.fsum(weights) for weight in weights]
    counts = [math.floor(share) for share in shares]
    by_remainder = sorted(range(len(weights)), key=lambda place: counts[place] - shares[place])
    for place in by_remainder[: total - sum(counts)]:
        counts[place] += 1
    while total >= len(weights) and 0 in counts:
        counts[counts.index(max(counts))] -= 1
        counts[counts.index(0)] += 1
    return counts


class Schedule:
    """Source and place within that source of any index, without a look at those before.

    Every block of `BLOCK` indices holds each source as often as its weight says, in a seeded order, so a source's own tasks come
    one after the other whatever the mixture is.
    """

    def __init__(self, weights: Sequence[float], seed: int):
        self._counts, self._seed = apportion(weights, BLOCK), seed
        self._block = lru_cache(maxsize=4)(self._make_block)

    def at(self, index: int) -> tuple[int, int]:
        """Number of the source, and how many of its tasks come before this one."""
        if len(self._counts) == 1:
            return 0, index
        number, place = divmod(index, BLOCK)
        sources, ranks = self._block(number)
        source = int(sources[place])
        return source, number * self._counts[source] + int(ranks[place])

    def _make_block(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Sources int `[BLOCK]` and the place of each among those of its source in this block."""
        sources = np.random.default_rng([self._seed, number]).permutation(
            np.repeat(np.arange(len(self._counts)), self._counts)
        )
        ranks = np.empty(BLOCK, dtype=np.int64)
        for source, count in enumerate(self._counts):
            ranks[sources == source] = np.arange(count)
        return sources, ranks
