"""What scoring a completion yields."""

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

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
    ERROR = "error"
    """The verifier raised an exception, or the program that it judges did."""


class BadReference(ValueError):
    """Raised by a verifier for a task that no completion can be judged against: the run is stopped, since data are wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """What a verifier is told of the task.

    Example: `Reference(answer="83", question="37+58-12=?")`
    """

    answer: str
    """The reference answer, empty when rows have none"""
    question: str = ""
    """The last user turn, without the budget"""
    labels: tuple[str, ...] = ()
    """What an answer may be, when it is one of a few words or letters"""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """The row fields that the source's `verifier_fields` names"""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerVerdict:
    """What the verifier of answers says of one completion."""

    outcome: Outcome
    """`CORRECT`, `WRONG`, `UNPARSABLE` or `ERROR`"""
    answer: str = ""
    """Answer as extracted from the completion; empty when there was none. Votes are counted over answers."""


Verifier = Callable[..., AnswerVerdict | bool]
"""`(text, reference, **settings)`: a completion's text, thought included, and a `Reference` → a verdict, or whether it is right.

It runs in a process without network, without writing and under `reward.deadline_s`; an exception counts as ERROR,
`BadReference` stops the run."""

SameAnswer = Callable[..., bool]
"""`(answer, other, **settings)`: two answers as verdicts have them, not empty → whether they are one vote. Runs where verifiers do."""


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
