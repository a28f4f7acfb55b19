"""Which rows share a prompt, and what they cost. Below its `start` a row is its prompt: computed once for those that share it."""

from collections.abc import Sequence

from actors.types import TrainRow


def by_prompt(rows: Sequence[TrainRow]) -> list[list[int]]:
    """Indices of rows with equal tokens below an equal start, in the order in which the first of them comes; a row that starts at
    0 has no prompt and stands alone."""
    groups: dict[tuple[int, bytes], list[int]] = {}
    for index, row in enumerate(rows):
        key = row.start, row.token_ids[: row.start].tobytes()
        groups.setdefault(key if row.start else (-index, b""), []).append(index)
    return list(groups.values())


def own_tokens(row: TrainRow) -> int:
    """Tokens from `start` on."""
    return len(row.token_ids) - row.start


def computed_tokens(group: Sequence[TrainRow]) -> int:
    """Of rows that share a prompt: the prompt once, and each row's own."""
    return group[0].start + sum(map(own_tokens, group))
