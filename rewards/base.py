"""What scoring a completion yields."""

import enum
from dataclasses import dataclass, field

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
"""Around the thought of a completion; the answer follows."""


class Outcome(enum.StrEnum):
    """How scoring ended; only `CORRECT` earns an accuracy reward."""

    CORRECT = "correct"
    WRONG = "wrong"
    UNPARSABLE = "unparsable"
    """No answer could be extracted from the completion."""
    TIMEOUT = "timeout"
    """Verification overran its deadline and its process was killed."""
    CRASHED = "crashed"
    """The scoring process died on this completion."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerVerdict:
    """What the verifier of answers says of one completion."""

    outcome: Outcome
    answer: str
    """Answer as extracted from the completion; empty when there was none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardResult:
    """The reward of one completion and what it is made of.

    Example: `RewardResult(value=0.5, outcome=Outcome.CORRECT, answer="83", breakdown={"accuracy": 1.0, "length": 0.5})`
    """

    value: float
    outcome: Outcome
    answer: str
    breakdown: dict[str, float] = field(default_factory=dict)
    """Component name → its part, before they are combined."""
