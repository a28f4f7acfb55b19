"""Which of N completions is the answer: the largest sum of verifier scores over equal answers.

The device has no math-verify. Answers are equal here when their normal forms are (`rewards.notation.normal_form`), or the numbers in
them (`rewards.notation.quantity`): `7`, `7.0`, `$7$`, `7 apples` are one answer, `1/2` and `0.5` another, `2x` and `x+x` are two.
"""

from collections.abc import Sequence
from fractions import Fraction

from actors.scaling import UNPARSABLE, weighted_majority
from rewards.answer_text import extract
from rewards.notation.normal_form import normal_form
from rewards.notation.quantity import read_quantity
from rewards.notation.structure import value_of
from rewards.notation.words import as_words

MAX_EXACT_DIGITS = 60
"""Length of a number; longer ones are compared as they are written."""


def answer_key(text: str) -> str:
    """What a completion is compared by; empty when it has no answer.

    Examples: `\\boxed{1,024.0}` → `1024`; `0.5` → `1/2`; `so it is 7.` → `7`; `\\boxed{x + 1}` → `x+1`; `<think>3` → ``.
    """
    extracted = extract(text)
    if extracted is None:
        return ""
    answer = value_of(normal_form(extracted.text))
    quantity = read_quantity(answer) if len(answer) <= MAX_EXACT_DIGITS else None
    if quantity is not None:
        return f"{Fraction(quantity.value)}{'%' if 'percent' in quantity.unit else ''}"
    return (" " if as_words(answer) else "").join(answer.lower().split())


def vote(texts: Sequence[str], scores: Sequence[float]) -> int | None:
    """Index of the completion that wins; None when none has an answer. Equal scores make it the majority.

    Example: texts `7`, `8`, `7.0`, scores 0.4, 0.7, 0.4 → 0.
    """
    keys = [answer_key(text) for text in texts]
    labels = {key: label for label, key in enumerate(dict.fromkeys(key for key in keys if key))}
    return weighted_majority([labels.get(key, UNPARSABLE) for key in keys], list(scores))
