"""Length rewards that hold each completion against its siblings in the group.

c is 1 for a right answer and 0 for any other, L the tokens of a completion. Sums are exact (`math.fsum`), so that
the order of the group does not matter to the last bit.
"""

import math

from rewards.length.types import LengthInputs, Score, accuracy_plus, accuracy_times

STD_EPSILON = 1e-7
"""Added to the standard deviation by the authors of arXiv 2502.04463."""


def sigmoid(value: float) -> float:
    """1 / (1 + exp(-value)), without overflow."""
    if value >= 0:
        return 1 / (1 + math.exp(-value))
    return math.exp(value) / (1 + math.exp(value))


def self_normalised(inputs: LengthInputs, alpha: float) -> tuple[Score, ...]:
    """R = c · (1 - alpha · sigmoid((L - mean) / (std + 1e-7))), mean and std over the group's right answers.

    See `arora_zanette`.
    """
    lengths = inputs.correct_lengths
    if not lengths:
        return accuracy_times([1.0] * len(inputs.num_tokens), inputs)
    mean = sum(lengths) / len(lengths)
    std = math.sqrt(math.fsum((length - mean) ** 2 for length in lengths) / len(lengths))
    factors = [1 - alpha * sigmoid((length - mean) / (std + STD_EPSILON)) for length in inputs.num_tokens]
    return accuracy_times(factors, inputs)


def arora_zanette(inputs: LengthInputs, *, alpha: float) -> tuple[Score, ...]:
    """R = c · (1 - alpha · sigmoid((L - mean) / std)), mean and std over this prompt's right answers.

    Source: Arora and Zanette, "Training Language Models to Reason Efficiently", arXiv 2502.04463, with their code's
    1e-7 beside the std. Ours: the population std (which one is meant is not stated). One right answer, or equal
    lengths, is at the mean: 1 - alpha / 2. A wrong answer gets 0; without a right one there is no mean and `length`
    is 1.

    Example: alpha = 0.4, right answers of 80 and 120 tokens (mean 100, std 20): 1 - 0.4 · sigmoid(-1) = 0.8924 and
    1 - 0.4 · sigmoid(1) = 0.7076.
    """
    return self_normalised(inputs, alpha)


def kimi(inputs: LengthInputs, *, weight: float, warmup_steps: int) -> tuple[Score, ...]:
    """R = c + weight · (lam if right else min(0, lam)), lam = 0.5 - (L - minL) / (maxL - minL) over the whole group.

    Source: Kimi k1.5, arXiv 2501.12599: a wrong answer never gains by being short, and loses by being long. Equal
    lengths give 0. Training starts without the term there; weight and length of that warm-up are not given: ours
    are `weight` (1) and `warmup_steps` (0).

    Example: weight 1, lengths 50 right, 100 wrong, 150 right, 150 wrong (lam 0.5, 0, -0.5, -0.5)
    → 1.5, 0, 0.5, -0.5.
    """
    shortest, longest = min(inputs.num_tokens), max(inputs.num_tokens)
    if shortest == longest or inputs.step < warmup_steps:
        return accuracy_plus([0.0] * len(inputs.num_tokens), inputs)
    places = [0.5 - (length - shortest) / (longest - shortest) for length in inputs.num_tokens]
    terms = [
        weight * (place if correct else min(0.0, place)) for place, correct in zip(places, inputs.correct, strict=True)
    ]
    return accuracy_plus(terms, inputs)


def shorter_better(inputs: LengthInputs, *, accuracy_weight: float, beta: float) -> tuple[Score, ...]:
    """R = alpha · c - beta |L - SOL|, SOL the shortest right answer, or the group's mean length if none is right.

    Source: ShorterBetter, arXiv 2504.21370 (alpha 1 and 2 there, beta 1e-3): nothing is gained by being shorter
    than the shortest right answer. A wrong answer loses for its distance too, so in a group that is all wrong the
    one nearest the mean earns most.

    Example: alpha = 2, beta = 0.001, lengths 80 right, 100 right, 50 wrong (SOL 80) → 2, 1.98, -0.03; all wrong with
    lengths 50 and 150 (SOL 100) → -0.05, -0.05.
    """
    lengths = inputs.num_tokens
    optimal = min(inputs.correct_lengths, default=sum(lengths) / len(lengths))
    return accuracy_plus([-beta * abs(length - optimal) for length in lengths], inputs, accuracy_weight)


def group_relative(inputs: LengthInputs, *, alpha: float, scale_by_pass_rate: bool) -> tuple[Score, ...]:
    """R = c / (1 + alpha · L / mean), mean over the whole group.

    Source: GR3, arXiv 2603.10535 (alpha 0.33). With `scale_by_pass_rate`, alpha is multiplied by the share of right
    answers: ALP (arXiv 2506.05256) makes its penalty per token proportional to max(rate, 1/G) in this way; where an
    answer is right the rate is at least 1/G, so the maximum changes nothing here. A wrong answer gets 0. Ours: in a
    group without any token each length is the mean.

    Example: alpha = 0.5, lengths 50 right, 100 wrong, 150 right (mean 100) → 1/1.25 = 0.8, 0, 1/1.75 = 0.5714; scaled
    by the pass rate 2/3 (alpha 1/3) → 0.8571, 0, 0.6667.
    """
    lengths = inputs.num_tokens
    alpha *= inputs.solve_rate if scale_by_pass_rate else 1.0
    mean = sum(lengths) / len(lengths)
    return accuracy_times([1 / (1 + alpha * (length / mean if mean else 1.0)) for length in lengths], inputs)
