r"""The answer of a completion: found in its text, compared with the reference answer.

    text ──► final answer (`answer_text`) ──► normal form (`normal_form`) ──► structure ──► atoms
                                                                                           │
                 words (`words`), numbers with units and bases (`quantity`), math-verify for the rest

Numbers are compared exactly, without sympy. math-verify judges expressions; what it finds equal has to agree in value, too,
where both are numbers: it rounds to six places, so tiny numbers are all alike to it.

Nothing here bounds the time or memory of math-verify: sympy may take for ever over `9^{9^{9^9}}`. Callers that score text
they do not trust do so in a process that can be killed (`actors.scoring_process`); math-verify's own timeouts are off, since
they are signals, which work in a main thread only and not while C code runs. All else takes linear time.
"""

import math
import re
from decimal import Decimal
from functools import lru_cache
from typing import Any

import sympy
from math_verify import parse, verify

from rewards.answer_text import Extracted, extract
from rewards.base import THINK_CLOSE, AnswerVerdict, BadReference, Outcome, Reference
from rewards.notation import structure
from rewards.notation.normal_form import normal_form
from rewards.notation.quantity import (
    DOUBLE_DIGITS,
    PLAIN,
    agree,
    equal_clocks,
    equal_quantities,
    equal_with_base,
    read_quantity,
    split_unit,
)
from rewards.notation.words import MAX_REFERENCE_WORDS, as_words

CLEARLY_DIFFERENT = 0.001
"""Numbers that differ by this share need no math-verify to be told apart."""
AGREEING = 1e-5
"""Share by which numbers that math-verify finds equal may differ."""
THE_SAME = 1e-12
"""Numbers that differ by no more are equal, whatever they are written as."""
MAX_EXPRESSION_CHARS = 400
"""Longer ones are not given to math-verify: they are right when they are the reference, to the letter."""
_INTEGER = re.compile(rf"[+-]?[0-9]{{1,{DOUBLE_DIGITS - 1}}}")
_NO_ANSWERS = frozenset(("nan", "none", "null", "na", "n/a", "tbd", "unknown", "missing"))
"""What stands for a value that is not there."""


def verify_math(text: str, reference: Reference) -> AnswerVerdict:
    """The verifier `math`: `verify_answer` against the reference answer."""
    return verify_answer(text, reference.answer)


def same_answer(answer: str, other: str) -> bool:
    """Whether two extracted answers are equal in value; one that cannot be read equals its own text alone."""
    try:
        return verify_answer(f"\\boxed{{{answer}}}", f"\\boxed{{{other}}}").outcome == Outcome.CORRECT
    except BadReference:
        return False


def verify_answer(text: str, reference_answer: str) -> AnswerVerdict:
    """Whether the completion `text` gives `reference_answer`, up to mathematical equality.

    CORRECT or WRONG when there is an answer, UNPARSABLE when there is none or nothing can be read in it. Never raises for a
    bad completion: what goes wrong inside math-verify counts as UNPARSABLE while parsing and as WRONG while comparing, as
    math-verify itself has it. Raises BadReference for a reference answer that cannot be parsed.
    """
    reference = _read_reference(reference_answer)
    number = text.rpartition(THINK_CLOSE)[2].strip()
    if _INTEGER.fullmatch(number) and _INTEGER.fullmatch(reference):
        # Most completions of a numeric task end here. Decimals are read and compared in linear time, unlike integers.
        outcome = Outcome.CORRECT if Decimal(number) == Decimal(reference) else Outcome.WRONG
        return AnswerVerdict(outcome=outcome, answer=number)
    extracted = extract(text)
    if extracted is None:
        return AnswerVerdict(outcome=Outcome.UNPARSABLE, answer="")
    answer = normal_form(extracted.text)
    if not extracted.is_expression and read_quantity(answer) is None:
        return _judge_sentence(extracted, reference)
    if not _is_readable(answer):
        return AnswerVerdict(outcome=Outcome.UNPARSABLE, answer="")
    is_equal = structure.equal(answer, reference, equal_atoms)
    return AnswerVerdict(outcome=Outcome.CORRECT if is_equal else Outcome.WRONG, answer=extracted.text)


def check_reference(reference_answer: str) -> None:
    """Raises BadReference when no completion could be right for this reference answer: a mark for a missing value, prose,
    a contradiction, mathematics that cannot be read."""
    reference = _read_reference(reference_answer)
    found = f"reference answer {reference_answer!r:.100}: expected an answer, found"
    if reference.lower().strip(".") in _NO_ANSWERS:
        raise BadReference(f"{found} a mark for a missing value")
    words = as_words(reference)
    if words is not None and read_quantity(reference) is None and len(words) > MAX_REFERENCE_WORDS:
        raise BadReference(f"{found} prose")
    for node in _leaves(structure.read(reference)):
        if node.kind == "false":
            raise BadReference(f"{found} a contradiction: {node.text:.60}")
        if not _is_atom_readable(node.text):
            raise BadReference(f"{found} {node.text!r:.60} in it")


def equal_atoms(answer: str, reference: str) -> bool:
    """Whether two normal forms without structure are equal."""
    if "".join(answer.split()) == "".join(reference.split()):
        return True
    if len(answer) == len(reference) == 1 and answer.isalpha():
        return answer.lower() == reference.lower() and answer.lower() != "i"
    if PLAIN.fullmatch(answer) is None or PLAIN.fullmatch(reference) is None:
        for rule in (equal_with_base, equal_clocks):
            if (found := rule(answer, reference)) is not None:
                return found
    one, other = read_quantity(answer), read_quantity(reference)
    if one is not None and other is not None:
        return equal_quantities(one, other)
    words = as_words(answer), as_words(reference)
    if words != (None, None):
        return words[0] == words[1]
    if max(len(answer), len(reference)) > MAX_EXPRESSION_CHARS:
        return False
    return _equal_expressions(answer, reference)


def _equal_expressions(answer: str, reference: str) -> bool:
    (left, left_unit), (right, right_unit) = split_unit(answer), split_unit(reference)
    if not agree(left_unit, right_unit):
        return False
    if left_unit or right_unit:
        one, other = read_quantity(left), read_quantity(right)
        if one is not None and other is not None:
            return equal_quantities(one, other)
    gold, parsed = _parse(right), _parse(left)
    if not gold or not parsed:
        return False
    difference = _difference(_value(gold[0]), _value(parsed[0]))
    if difference is not None and difference > CLEARLY_DIFFERENT:
        return False
    if difference is not None and difference <= THE_SAME:
        return True
    if verify(gold, parsed, timeout_seconds=None, allow_set_relation_comp=True):
        return difference is None or difference <= AGREEING
    return _agree_for_positive_symbols(gold[0], parsed[0])


def _difference(one: complex | None, other: complex | None) -> float | None:
    """Difference of two numbers, as a share of the larger; None when one is no number, or both are too large for a float."""
    if one is None or other is None:
        return None
    largest = max(abs(one), abs(other))
    if largest == math.inf:
        return None if abs(one) == abs(other) else math.inf
    return abs(one - other) / largest if largest else 0.0


def _value(expression: Any, point: dict[Any, Any] | None = None) -> complex | None:
    """Value of an expression of numbers alone, or with symbols where `point` says; None for everything else."""
    if not isinstance(expression, sympy.Expr) or getattr(expression, "is_Matrix", False):
        return None
    symbols = expression.free_symbols
    if {str(symbol) for symbol in symbols} - {"i"} and point is None:
        return None
    values = {symbol: (point or {}).get(str(symbol), sympy.I) for symbol in symbols}
    try:
        return complex(expression.evalf(25, subs=values))
    except (TypeError, ValueError, OverflowError):  # no number, such as a function without a body, or too large a one
        return None


def _agree_for_positive_symbols(gold: Any, parsed: Any) -> bool:
    r"""Roots of symbols are read as those of positive numbers: `1/\sqrt n` is `\sqrt{1/n}`, though `\sqrt{x^2}` is not x."""
    if not (isinstance(gold, sympy.Expr) and isinstance(parsed, sympy.Expr)):
        return False
    symbols = gold.free_symbols
    if not symbols or symbols != parsed.free_symbols or not any(map(_has_root_of_symbol, (gold, parsed))):
        return False
    for seed in (3, 7, 11):
        point = {str(symbol): sympy.Rational(seed + place, 5) for place, symbol in enumerate(sorted(symbols, key=str))}
        difference = _difference(_value(gold, point), _value(parsed, point))
        if difference is None or difference > THE_SAME:
            return False
    return True


def _has_root_of_symbol(expression: Any) -> bool:
    roots = [power for power in expression.atoms(sympy.Pow) if power.exp.is_number and not power.exp.is_integer]
    hides_a_sign = any(
        inner.exp.is_integer and inner.exp % 2 == 0 for power in roots for inner in power.base.atoms(sympy.Pow)
    )
    return bool(roots) and not hides_a_sign and not expression.has(sympy.Abs)


@lru_cache(maxsize=1024)
def _parse(text: str) -> list[Any]:
    """What math-verify makes of a normal form: a sympy expression and the text it came from, or either, or nothing.

    Cached, since completions of a task often agree, and grouping compares an answer with several others. It looks for
    mathematics between delimiters; the answer is put in a box so that all of it counts.
    """
    if len(text) > MAX_EXPRESSION_CHARS or not _is_balanced(text):
        return []
    return parse(f"\\boxed{{{text}}}", parsing_timeout=None)


def _is_balanced(text: str) -> bool:
    """Whether as many brackets close as open; math-verify takes seconds to find out. Half-open intervals mix two kinds."""
    bare = text.replace(r"\{", "").replace(r"\}", "")
    return bare.count("{") == bare.count("}") and sum(map(bare.count, "([")) == sum(map(bare.count, ")]"))


def _judge_sentence(extracted: Extracted, reference: str) -> AnswerVerdict:
    """Verdict on a completion whose answer is not marked and holds no mathematics: right when it says the words of the reference
    right after a phrase such as `the answer is`, or nothing else."""
    wanted = as_words(reference)
    said = as_words(normal_form(extracted.text))
    if wanted is None or said is None:
        return AnswerVerdict(outcome=Outcome.UNPARSABLE, answer="")
    is_right = said == wanted or (extracted.after_phrase and said[: len(wanted)] == wanted)
    return AnswerVerdict(outcome=Outcome.CORRECT if is_right else Outcome.WRONG, answer=extracted.text[:100])


def _is_readable(answer: str) -> bool:
    """Whether there is something to compare: a digit, a letter, a command of LaTeX."""
    return re.search(r"[^\W_]|\\", answer) is not None


def _is_atom_readable(atom: str) -> bool:
    if structure.is_dots(atom) or as_words(atom) is not None or read_quantity(atom) is not None:
        return True
    if (
        len(atom) > MAX_EXPRESSION_CHARS
        or equal_with_base(atom, atom) is not None
        or equal_clocks(atom, atom) is not None
    ):
        return True
    parsed = [part for part in _parse(split_unit(atom)[0]) if isinstance(part, sympy.Basic | sympy.MatrixBase)]
    return bool(parsed) and not any(part in (sympy.nan, sympy.zoo) for part in parsed)


def _leaves(node: structure.Node) -> list[structure.Node]:
    return [leaf for item in node.items for leaf in _leaves(item)] if node.items else [node]


@lru_cache(maxsize=1024)
def _read_reference(reference_answer: str) -> str:
    """The normal form of a reference answer, which may also be given as a solution that ends in its answer.

    Cached, since the G completions of a task share it.
    """
    extracted = extract(reference_answer, is_reference=True)
    reference = normal_form(extracted.text) if extracted else ""
    if not reference or not _is_readable(reference):
        raise BadReference(
            f"reference answer {reference_answer!r:.100}: expected a mathematical answer, found none in it"
        )
    return reference
