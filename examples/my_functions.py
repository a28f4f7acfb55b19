"""Functions of one's own for every place that takes one: `terse run --config examples/own_functions.yaml`.

They are ordinary functions of an ordinary module. `terse run` finds modules in the directory that it is started in, and on
PYTHONPATH; with `ray job submit --working-dir .` they travel to every node.
"""

import random
import re
from collections.abc import Iterator, Sequence

import numpy as np

from terse import AnswerVerdict, LengthInputs, LossInputs, LossSettings, Outcome, Reference, Score, Surrogate


def last_number(text: str, reference: Reference, *, tolerance: int = 0) -> AnswerVerdict:
    """A verifier: the last number of the completion, right when it is near enough."""
    numbers = re.findall(r"-?\d+", text.rpartition("</think>")[2])
    if not numbers:
        return AnswerVerdict(outcome=Outcome.UNPARSABLE)
    is_right = abs(int(numbers[-1]) - int(reference.answer)) <= tolerance
    return AnswerVerdict(outcome=Outcome.CORRECT if is_right else Outcome.WRONG, answer=numbers[-1])


def full_or_part(inputs: LengthInputs, *, part: float) -> list[Score]:
    """A length reward: full pay within the budget, a part of it beyond."""
    scores = []
    for num_tokens, correct in zip(inputs.num_tokens, inputs.correct, strict=True):
        factor = 1.0 if inputs.budget_tokens is None or num_tokens <= inputs.budget_tokens else part
        scores.append(Score(value=correct * factor, breakdown={"accuracy": float(correct), "length": factor}))
    return scores


def capped_reinforce(inputs: LossInputs, settings: LossSettings, *, cap: float) -> Surrogate:
    """A loss: REINFORCE with an importance weight of at most `cap`. The KL penalty and the mean over tokens come on top."""
    weight = inputs.log_ratio.detach().exp()
    capped = weight.clamp(max=cap)
    return Surrogate(-capped * inputs.advantages * inputs.policy_logprobs, capped, weight > cap)


def ranks(rewards_per_group: Sequence[Sequence[float]], *, scale: float = 1.0) -> list[np.ndarray]:
    """An advantage: the place of a completion in its group, from -scale to scale; equal rewards share a place."""
    advantages = []
    for rewards in rewards_per_group:
        values = np.asarray(rewards)
        below = (values[:, None] > values).sum(1) - (values[:, None] < values).sum(1)
        advantages.append(scale * below / max(1, len(values) - 1))
    return advantages


def sums(*, num_rows: int, seed: int) -> Iterator[dict[str, str]]:
    """A task source: rows with a question and an answer, the same for the same arguments."""
    rng = random.Random(seed)
    for _ in range(num_rows):
        a, b, c = rng.randint(10, 99), rng.randint(10, 99), rng.randint(1, 9)
        yield {"question": f"{a}+{b}-{c}=?", "answer": str(a + b - c)}


def same_number(answer: str, other: str) -> bool:
    """Whether two answers are one vote."""
    return int(answer) == int(other)
