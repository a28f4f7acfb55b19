"""Which of N completions is the answer: the largest sum of verifier scores over equal answers.

The device has no math-verify. Answers are equal here when their texts are, after spaces, `$`, `\\text{…}` and thousands
separators are gone and numbers are written in one way: `7`, `7.0` and `$7$` are one answer, `1/2` and `0.5` are two.
"""

import re
from collections.abc import Sequence
from decimal import Decimal

from actors.scaling import UNPARSABLE, weighted_majority
from rewards.answer_text import extract

_NUMBER = re.compile(r"[+-]?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?")
_WRAPPED = re.compile(r"\\(?:text|mathrm|mbox)\{([^{}]*)\}")


def answer_key(text: str) -> str:
    """What a completion is compared by; empty when it has no answer.

    A marked answer (boxed, or after `####`) counts as a whole; of another the last number does, or all of its text.
    Examples: `\\boxed{1,024.0}` → `1024`; `so it is 7.` → `7`; `<think>3` → ``.
    """
    extracted = extract(text)
    if extracted is None:
        return ""
    answer = _WRAPPED.sub(r"\1", extracted.text)
    answer = re.sub(r"\s|\\?\$|\\[ ,;!]", "", answer).rstrip(".").lower() if extracted.is_marked else answer
    if extracted.is_marked:
        return _plain_number(answer) if _NUMBER.fullmatch(answer) else answer
    numbers = _NUMBER.findall(answer)
    return _plain_number(numbers[-1]) if numbers else " ".join(answer.lower().split())


def vote(texts: Sequence[str], scores: Sequence[float]) -> int | None:
    """Index of the completion that wins; None when none has an answer. Equal scores make it the majority.

    Example: texts `7`, `8`, `7.0`, scores 0.4, 0.7, 0.4 → 0.
    """
    keys = [answer_key(text) for text in texts]
    labels = {key: label for label, key in enumerate(dict.fromkeys(key for key in keys if key))}
    return weighted_majority([labels.get(key, UNPARSABLE) for key in keys], list(scores))


def _plain_number(text: str) -> str:
    value = Decimal(text.replace(",", ""))
    return format(value.normalize() if value else Decimal(0), "f")
