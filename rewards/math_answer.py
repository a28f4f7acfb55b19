"""The answer of a completion: found in its text, compared with the reference answer by math-verify.

Nothing here bounds time or memory: sympy may take for ever over `9^{9^{9^9}}`. Callers that score text they
do not trust do so in a process that can be killed (`actors.scoring_process`); math-verify's own timeouts are
off, since they are signals, which work in a main thread only and not while C code runs.
"""

import re
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from typing import Any

import sympy
from math_verify import parse, verify

from rewards.answer_text import Extracted, extract
from rewards.base import AnswerVerdict, Outcome

_NUMBER = re.compile(r"[+-]?(?:[0-9]+|[0-9]{1,3}(?:,[0-9]{3})+)(?:\.[0-9]+)?")
_RATIO = re.compile(r"([+-]?)(?:([0-9]+)/([0-9]+)|\\[dt]?frac\{([+-]?[0-9]+)\}\{([0-9]+)\})")
CLEARLY_DIFFERENT = 0.001
"""math-verify rounds to six places, and is asked about numbers that are closer than this."""
MAX_RATIO_CHARS = 400
"""Of a number that is compared as a ratio."""


def verify_answer(text: str, reference_answer: str) -> AnswerVerdict:
    """Whether the completion `text` gives `reference_answer`, up to mathematical equality.

    CORRECT or WRONG when there is an answer, UNPARSABLE when there is none or math-verify finds nothing in it.
    Never raises for a bad completion: what goes wrong inside math-verify counts as UNPARSABLE while parsing
    and as WRONG while comparing, as math-verify itself has it. Raises ValueError for a reference answer that
    cannot be parsed.
    """
    reference = _extract_reference(reference_answer)
    extracted = extract(text)
    if extracted is None:
        return AnswerVerdict(outcome=Outcome.UNPARSABLE, answer="")
    is_equal = _compare_numbers(extracted.text, reference)
    if is_equal is not None:
        return AnswerVerdict(outcome=Outcome.CORRECT if is_equal else Outcome.WRONG, answer=extracted.text)
    gold = _parse_reference(reference_answer)
    parsed = _parse(extracted)
    if not parsed:
        return AnswerVerdict(outcome=Outcome.UNPARSABLE, answer="")
    if "%" not in extracted.text + reference and _differ_at_a_point(gold, parsed):
        is_equal = False
    else:
        is_equal = verify(gold, parsed, timeout_seconds=None)
    answer = extracted.text if extracted.is_marked else _matched_text(parsed)
    return AnswerVerdict(outcome=Outcome.CORRECT if is_equal else Outcome.WRONG, answer=answer)


def _compare_numbers(answer: str, reference: str) -> bool | None:
    """Exact comparison of two plain numbers or ratios of integers; None when it takes math-verify to tell.

    Most completions of a numeric task end here, a hundred times faster than sympy. Percentages are left to math-verify,
    which has rules of its own for them.
    """
    if _NUMBER.fullmatch(answer) and _NUMBER.fullmatch(reference):
        # Unlike integers, decimals are read and compared in linear time, however many digits there are.
        left, right = (Decimal(text.replace(",", "")) for text in (answer, reference))
        if left == right:
            return True
        are_integers = "." not in answer and "." not in reference
        return False if are_integers or abs(left - right) > CLEARLY_DIFFERENT else None
    one, other = _as_fraction(answer), _as_fraction(reference)
    if one is None or other is None:
        return None
    if one == other:
        return True
    return False if abs(one - other) > CLEARLY_DIFFERENT else None


@lru_cache(maxsize=1024)
def _as_fraction(text: str) -> Fraction | None:
    r"""Examples: `1,234.5` → 2469/2; `-1/2`, `\frac{-1}{2}` → -1/2; `50%`, `x`, `1/0` → None."""
    if len(text) > MAX_RATIO_CHARS:
        return None
    if _NUMBER.fullmatch(text):
        return Fraction(text.replace(",", ""))
    if ratio := _RATIO.fullmatch(text):
        sign, *parts = ratio.groups()
        numerator, denominator = (int(part) for part in parts if part is not None)
        if denominator:
            return Fraction(-numerator if sign == "-" else numerator, denominator)
    return None


def _differ_at_a_point(gold: list[Any], parsed: list[Any]) -> bool:
    """Whether two expressions have clearly different values where their symbols have some: then they are not equal, and
    sympy need not simplify their difference to find out. False for anything but two expressions."""
    left, right = _value_at_a_point(gold[0]), _value_at_a_point(parsed[0])
    return left is not None and right is not None and abs(left - right) > CLEARLY_DIFFERENT * max(1.0, abs(left))


def _value_at_a_point(expression: Any) -> complex | None:
    if not isinstance(expression, sympy.Expr) or getattr(expression, "is_Matrix", False):
        return None
    # A symbol has the same value in every expression, which follows from its name.
    point = {
        symbol: sympy.Rational(1000 + 7919 * sum(map(ord, str(symbol))) % 997, 777)
        for symbol in expression.free_symbols
    }
    try:
        return complex(expression.evalf(15, subs=point))
    except (TypeError, ValueError, OverflowError):  # no number, such as a function without a body, or too large a one
        return None


@lru_cache(maxsize=1024)
def _parse(extracted: Extracted) -> list[Any]:
    """What math-verify makes of it: a sympy expression and the text it came from, or either, or nothing.

    Cached, since completions of a task often agree, and grouping compares an answer with several others. It looks
    for mathematics between delimiters; a marked answer is put in a box so that all of it counts.
    """
    text = f"\\boxed{{{extracted.text}}}" if extracted.is_marked else extracted.text
    return parse(text, parsing_timeout=None)


def _matched_text(parsed: list[Any]) -> str:
    texts = [part for part in parsed if isinstance(part, str)]
    return texts[-1] if texts else ""


def _extract_reference(reference_answer: str) -> str:
    """The reference answer itself, which may also be given as a solution that ends in its answer."""
    extracted = extract(reference_answer)
    if extracted is None:
        raise ValueError(f"reference answer {reference_answer!r}: expected a mathematical answer, found none in it")
    return extracted.text


@lru_cache(maxsize=1024)
def _parse_reference(reference_answer: str) -> list[Any]:
    """Cached, since the G completions of a task share it. The whole reference counts, so it is boxed."""
    parsed = _parse(Extracted(text=_extract_reference(reference_answer), is_marked=True))
    if not parsed:
        raise ValueError(f"reference answer {reference_answer!r}: expected something that math-verify can parse")
    return parsed


def check_reference(reference_answer: str) -> None:
    """Raises ValueError when no completion could be right for this reference answer."""
    _parse_reference(reference_answer)
