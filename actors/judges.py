"""The functions that a scoring process calls: loaded, with their settings, and what they return made a verdict."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from configs.built_ins import SAME_ANSWER, VERIFIERS
from configs.functions import load_function
from rewards.base import AnswerVerdict, Outcome, Reference

VERIFIER, SAME = "reward.verifier", "scaling.same_answer"
JUDGED = {
    outcome.value: outcome
    for outcome in (Outcome.CORRECT, Outcome.WRONG, Outcome.UNPARSABLE, Outcome.ERROR, Outcome.TIMEOUT)
}
"""What a verifier can say, by the name that travels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """A function that the scoring process calls, as the configuration names it, with its settings.

    Example: `Judge(name="my_checks:is_polite", args={"language": "en"})`
    """

    name: str = "math"
    """A built-in one, or `package.module:function`"""
    args: Mapping[str, Any] = field(default_factory=dict)
    key: str = VERIFIER
    """The setting that names it: `VERIFIER`, or `SAME` for one that compares answers"""


MATH, LABEL, SAME_VALUE = Judge(), Judge(name="label"), Judge(key=SAME)
Call = Callable[[str, Any], AnswerVerdict]
"""A judge with its settings: (text, what it is held against) → verdict"""


def make_call(judge: Judge) -> Call:
    """Raises UserError when there is no such function."""
    if judge.key == SAME:
        same = load_function(SAME, judge.name, SAME_ANSWER)
        return lambda text, other: as_verdict(bool(same(text, other, **judge.args)))
    verify = load_function(VERIFIER, judge.name, VERIFIERS)

    def call(text: str, reference: dict[str, Any]) -> AnswerVerdict:
        told = Reference(**{**reference, "labels": tuple(reference["labels"])})
        return as_verdict(verify(text, told, **judge.args))

    return call


def prepare(judges: Sequence[Judge]) -> str:
    """Call `prepare()` of the judges' modules that have it, once each, while this process still has its rights: to start what they
    need. Returns what they say is not confined."""
    tables = {VERIFIER: VERIFIERS, SAME: SAME_ANSWER}
    targets = [tables[judge.key].get(judge.name, judge.name) for judge in judges]
    modules = [sys.modules[name] for name in dict.fromkeys(target.partition(":")[0] for target in targets)]
    said = [module.prepare() for module in modules if callable(getattr(module, "prepare", None))]
    return "; ".join(str(text) for text in said if text)


def as_verdict(found: Any) -> AnswerVerdict:
    """True and False stand for a verdict without an answer. Raises TypeError for what is neither."""
    if isinstance(found, bool):
        return AnswerVerdict(outcome=Outcome.CORRECT if found else Outcome.WRONG)
    if not isinstance(found, AnswerVerdict) or not isinstance(found.answer, str) or found.outcome not in JUDGED:
        raise TypeError(f"expected an AnswerVerdict, True or False from the verifier, found {found!r:.100}")
    return found


def where_raised(error: Exception) -> str:
    """The exception and the line of the file that raised it."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = f" ({Path(trace.tb_frame.f_code.co_filename).name}, line {trace.tb_lineno})" if trace else ""
    return f"{type(error).__name__}: {error}{where}"
