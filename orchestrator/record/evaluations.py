"""What is kept of an evaluation, task by task."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationRecord:
    """One held-out task, evaluated with n completions in one mode under one cap."""

    task_id: str
    difficulty: int
    mode: str
    """`base` or `reasoning`"""
    cap: int
    """Tokens after which an answer was forced; 0: no such cap, only the limit on completion tokens"""
    n: int
    answers: tuple[str, ...]
    """`[n]`, as extracted; empty when there was none to extract"""
    outcomes: tuple[str, ...]
    """`[n]`, `rewards.base.Outcome`"""
    tokens: tuple[int, ...]
    """`[n]`, tokens that the policy generated; forced ones not counted"""
    forced_tokens: tuple[int, ...]
    """`[n]`, tokens appended at the cap"""
    correct: tuple[bool, ...]
    """`[n]`"""
    truncated: tuple[bool, ...]
    """`[n]`, ended by a limit and not by the policy"""
    seconds: float
    """From dispatch to the last score."""
    source: str = ""
    """Label of the task's source"""
    budget_tokens: int | None = None
    """Named in the prompt; None when it names none"""
