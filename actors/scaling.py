"""Parallel test-time scaling: N answers to one task become one (arXiv 2603.16867, parallel test-time scaling).

Answers come grouped into classes of mathematical equality: `classes[i]` is the class of answer i, numbered from 0,
and `UNPARSABLE` for a completion without an answer. Every rule picks the index of one of the N completions, whose
answer is the result, or None when no completion has an answer, which counts as wrong.

    majority    the class with the most votes
    weighted    the class with the largest sum of verifier scores: argmax_a sum_i s_i 1[a_i = a]
    best        the completion with the highest verifier score

Ties: equal sums are decided by votes (so weights of zero give the majority), equal votes and equal scores by which
class or completion comes first. Samples come in no order, so that is a fair draw. An unparsable completion never
votes and is never picked, whatever its score. With N = 1 every rule gives the sample itself.
"""

import math
from collections.abc import Callable, Sequence

UNPARSABLE = -1
"""Class of a completion without an answer."""

Rule = Callable[[Sequence[int], Sequence[float]], int | None]
"""(classes `[N]`, verifier scores `[N]`) → index of the completion picked."""


def majority(classes: Sequence[int], scores: Sequence[float] = ()) -> int | None:
    """Example: classes `[0, 1, 1, -1]` → 1; `[0, 1]`, a tie, → 0; `[-1, -1]` → None. Scores are not looked at."""
    return weighted_majority(classes, [0.0] * len(classes))


def weighted_majority(classes: Sequence[int], scores: Sequence[float]) -> int | None:
    """Example: classes `[0, 1, 1]`, scores `[0.9, 0.2, 0.3]` → 0; with scores of zero → 1, the majority."""
    first: dict[int, int] = {}
    weights: dict[int, list[float]] = {}
    for index, (label, score) in enumerate(zip(classes, scores, strict=True)):
        if label != UNPARSABLE:
            first.setdefault(label, index)
            weights.setdefault(label, []).append(score)
    if not first:
        return None
    # The exact sum does not depend on the order of the samples, so a tie is one in every order.
    winner = max(first, key=lambda label: (math.fsum(weights[label]), len(weights[label]), -first[label]))
    return first[winner]


def best_of_n(classes: Sequence[int], scores: Sequence[float]) -> int | None:
    """Example: classes `[0, 1, -1]`, scores `[0.2, 0.4, 0.9]` → 1: the last has no answer."""
    able = [index for index, label in enumerate(classes) if label != UNPARSABLE]
    if len(scores) != len(classes):
        raise ValueError(f"expected a score for each of {len(classes)} answers, got {len(scores)}")
    return max(able, key=lambda index: (scores[index], -index), default=None)


RULES: dict[str, Rule] = {"majority": majority, "weighted": weighted_majority, "best": best_of_n}
"""By the name that results carry."""


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Probability that one of k samples is right, unbiased from n samples of which c are (arXiv 2107.03374):
    `1 - C(n - c, k) / C(n, k)`.

    Example: n = 4, c = 1, k = 2 → 0.5. Raises ValueError for k over n.
    """
    if not 1 <= k <= num_samples:
        raise ValueError(f"k: expected from 1 to {num_samples} (samples), got {k}")
    return 1.0 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)


def group_answers(answers: Sequence[str], find_equal: Callable[[list[str], str], list[bool]]) -> tuple[int, ...]:
    """Classes `[N]` of answers `[N]`, numbered in the order of their first members; empty answers are `UNPARSABLE`.

    The first answer of a class represents it, and an answer belongs to the earliest class whose representative it
    equals: mathematical equality with roundings is not transitive. Answers with the same text are compared once.
    `find_equal(texts, representative)` says which of the distinct texts equal the representative.

    Example: `["1/2", "3", "0.5", ""]` → `(0, 1, 0, -1)`.
    """
    label_of: dict[str, int] = {}
    remaining = list(dict.fromkeys(answer for answer in answers if answer))
    num_classes = 0
    while remaining:
        representative, *others = remaining
        equal = find_equal(others, representative) if others else []
        members = [representative, *(text for text, same in zip(others, equal, strict=True) if same)]
        label_of |= dict.fromkeys(members, num_classes)
        remaining = [text for text in others if text not in label_of]
        num_classes += 1
    return tuple(label_of[answer] if answer else UNPARSABLE for answer in answers)
