"""Which rows share a prompt, and what they cost. Below its `start` a row is its prompt: computed once for those that share it."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np


class Row(Protocol):
    """A `TrainRow`, or what stands for one whose tokens are elsewhere."""

    @property
    def start(self) -> int: ...

    @property
    def num_tokens(self) -> int: ...

    @property
    def shared(self) -> np.ndarray: ...


def by_prompt(rows: Sequence[Row]) -> list[list[int]]:
    """Indices of rows with equal tokens below an equal start, in the order in which the first of them comes; a row that starts at
    0 has no prompt and stands alone."""
    groups: dict[tuple[int, bytes], list[int]] = {}
    for index, row in enumerate(rows):
        key = (row.start, row.shared.tobytes()) if row.start else (-index, b"")
        groups.setdefault(key, []).append(index)
    return list(groups.values())


def own_tokens(row: Row) -> int:
    """Tokens from `start` on."""
    return row.num_tokens - row.start


def computed_tokens(group: Sequence[Row]) -> int:
    """Of rows that share a prompt: the prompt once, and each row's own."""
    return group[0].start + sum(map(own_tokens, group))
