"""A verifier for benchmarks of speed: whether a completion is right is chance, but the same for the same text.

Groups then have completions of both kinds whatever a model can do, so that no group is dropped for being constant, and steps
are of the same size on both sides of a comparison.
"""

import zlib

from rewards.base import Reference


def by_chance(text: str, reference: Reference) -> bool:
    return zlib.crc32(text.encode()) % 2 == 0
