"""A verifier for benchmarks of speed: whether a completion is right is chance.

Groups then have completions of both kinds whatever a model can do, and even where all eight are the same text, so that hardly
any group is dropped for being constant, and steps are of the same size on both sides of a comparison.
"""

import random

from rewards.base import Reference

_coin = random.Random(0)


def by_chance(text: str, reference: Reference) -> bool:
    return _coin.random() < 0.5
