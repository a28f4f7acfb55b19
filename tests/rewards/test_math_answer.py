"""When the answer of a completion equals the reference answer."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from math_verify import parse, verify

from rewards.base import AnswerVerdict, Outcome
from rewards.math_answer import verify_answer
from rewards.references import reference_problem


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("83", "83"),
        ("083", "83"),
        ("+83", "83.0"),
        ("\\boxed{1,234}", "1234"),
        ("#### -5", "-5"),
        ("The answer is 83.", "83"),
        ("The answer is $\\frac{3}{4}$.", "0.75"),
        ("\\boxed{0.75}", "\\frac{3}{4}"),
        ("\\boxed{\\dfrac{6}{8}}", "3/4"),
        ("\\boxed{x + 1}", "1 + x"),
        ("\\boxed{(3, \\frac{\\pi}{2})}", "\\left( 3, \\frac{\\pi}{2} \\right)"),
        ("\\boxed{\\text{Evelyn}}", "\\text{Evelyn}"),
        ("\\boxed{$18}", "18"),
        ("\\boxed{18}", "so 9 * 2 = 18\n#### 18"),
        ("\\boxed{2^{10}}", "1024"),
        ("9" * 30, "9" * 30),
        ("\\boxed{\\frac{1}{\\sqrt n}}", "\\sqrt{1/n}"),
        ("The answer is Evelyn, who came last.", "Evelyn"),
        ("So she has seven apples.", "7"),
    ],
)
def test_equal_answers_are_correct_however_they_are_written(text, reference):
    assert verify_answer(text, reference).outcome == Outcome.CORRECT


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("84", "83"),
        ("83.5", "83"),
        ("-83", "83"),
        ("\\boxed{84} since 83", "83"),
        ("\\boxed{6-5i}", "5"),
        ("\\boxed{\\frac{3}{5}}", "\\frac{3}{4}"),
        ("\\boxed{\\text{Evelyn}}", "\\text{Carla}"),
        ("\\boxed{x + 2}", "x + 1"),
        ("1" + "0" * 29 + "1", "1" + "0" * 30),
        ("7" * 5000, "83"),
        ("\\boxed{\\sqrt{x^2}}", "x"),
        ("\\boxed{|x|}", "x"),
        ("The answer is not Evelyn.", "Evelyn"),
        ("\\boxed{2+2=5}", "5"),
        ("\\boxed{1,2}", "3,4"),
    ],
)
def test_other_answers_are_wrong(text, reference):
    assert verify_answer(text, reference).outcome == Outcome.WRONG


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("10^{-9}", "10^{-10}"),
        ("\\frac{1}{3^{50}}", "\\frac{1}{3^{51}}"),
        ("0.0000001", "0"),
        ("e^{-30}", "e^{-31}"),
        ("1.5 \\times 10^{-10}", "1.5 \\times 10^{-11}"),
    ],
)
def test_tiny_numbers_are_told_apart_though_math_verify_rounds_them_to_zero(text, reference):
    assert verify_answer(f"\\boxed{{{text}}}", reference).outcome == Outcome.WRONG
    assert verify_answer(f"\\boxed{{{text}}}", text).outcome == Outcome.CORRECT


def test_an_expression_with_symbols_is_never_judged_by_its_value_at_a_point_alone():
    """Whatever the point is, some expressions are near each other there."""
    assert verify_answer("\\boxed{x^2-1}", "(x-1)(x+1)").outcome == Outcome.CORRECT
    assert verify_answer("\\boxed{\\sin^2 x}", "1-\\cos^2 x").outcome == Outcome.CORRECT
    assert verify_answer("\\boxed{x + 10^{-7}}", "x").outcome == Outcome.WRONG


def test_the_verdict_names_the_answer_and_not_the_sentence_around_it():
    assert verify_answer("So in all it is 83 apples.", "83") == AnswerVerdict(outcome=Outcome.CORRECT, answer="83")
    assert verify_answer("\\boxed{ \\frac{1}{2} }", "2").answer == "\\frac{1}{2}"


def test_a_completion_without_mathematics_is_unparsable():
    assert verify_answer("I do not know", "83").outcome == Outcome.UNPARSABLE


@pytest.mark.parametrize("reference", ["", " ", "<think>7", "}{"])
def test_an_unusable_reference_answer_is_a_value_error_that_names_it(reference):
    with pytest.raises(ValueError, match="reference answer") as error:
        verify_answer("\\boxed{x}", reference)
    assert repr(reference) in str(error.value)


@given(st.integers(), st.integers())
@settings(deadline=None)
def test_integers_are_compared_exactly(answer, reference):
    expected = Outcome.CORRECT if answer == reference else Outcome.WRONG
    assert verify_answer(f"<think>hm</think>{answer}", str(reference)).outcome == expected


def test_a_reference_of_22_digits_that_is_exactly_a_double_has_lost_its_lower_ones():
    digits = "123456789012345678901234567890"
    assert verify_answer(digits, str(int(float(digits)))).outcome == Outcome.CORRECT
    assert verify_answer("2" + digits[1:], str(int(float(digits)))).outcome == Outcome.WRONG


@given(st.text(max_size=40))
@settings(deadline=None, max_examples=100)
def test_no_completion_makes_verification_raise(text):
    assert verify_answer(text, "83").outcome in (Outcome.CORRECT, Outcome.WRONG, Outcome.UNPARSABLE)


def _in_some_form(rng: random.Random, numerator: int, denominator: int) -> str:
    value = numerator / denominator
    forms = (
        f"{numerator}/{denominator}",
        f"-{numerator}/{denominator}",
        rf"\frac{{{numerator}}}{{{denominator}}}",
        rf"\dfrac{{-{numerator}}}{{{denominator}}}",
        f"{value}",
        f"{value + 0.002:.3f}",
        f"{numerator}.0",
        f"+{numerator}",
        f"{1000 * numerator + denominator:,}",
        f"{numerator * 10**6}.5",
    )
    return rng.choice(forms)


def test_numbers_that_are_compared_exactly_come_out_as_math_verify_has_them():
    rng = random.Random(0)
    for _ in range(150):
        denominator = rng.choice((1, 2, 3, 4, 5, 7, 8, 10))
        one, other = rng.randint(0, 60), rng.randint(0, 60)
        left = _in_some_form(rng, one, denominator)
        right = _in_some_form(rng, one if rng.random() < 0.7 else other, denominator)
        gold, parsed = (parse(f"\\boxed{{{text}}}", parsing_timeout=None) for text in (right, left))
        found = verify_answer(f"\\boxed{{{left}}}", right).outcome == Outcome.CORRECT
        assert found == verify(gold, parsed, timeout_seconds=None), (left, right)


FORMS = (
    *("3x+4", "4+3x", "2x+1", "x^2-1", "(x-1)(x+1)", "x=5", "5", "f(x)=2x", "2x", "\\frac{3}{x}", "3x^{-1}", "x>2"),
    *("\\frac{1}{2}", "0.5", "50\\%", "50", "\\frac{\\sqrt2}{2}", "\\frac{1}{\\sqrt{2}}", "0.70710678", "2\\pi"),
    *("(1,2)", "[1,2]", "\\{1,2\\}", "3-2i", "-2i+3", "5\\text{ cm}", "90^\\circ", "90", "\\infty", "-\\infty"),
    *("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "\\begin{pmatrix}1\\\\3\\end{pmatrix}", "\\text{yes}", "A", "B"),
)
OUR_OWN_RULES = {
    # A column is a tuple here, lists of named values and brackets have rules of their own (`rewards.notation.structure`).
    frozenset(("(1,2)", "\\begin{pmatrix}1\\\\2\\end{pmatrix}")),
}


def test_expressions_come_out_as_math_verify_has_them():
    parsed = {text: parse(f"\\boxed{{{text}}}", parsing_timeout=None) for text in FORMS}
    rng = random.Random(0)
    num_equal = 0
    for left, right in [*((text, text) for text in FORMS), *(rng.sample(FORMS, 2) for _ in range(300))]:
        if frozenset((left, right)) in OUR_OWN_RULES:
            continue
        found = verify_answer(f"\\boxed{{{left}}}", right).outcome == Outcome.CORRECT
        num_equal += found
        assert found == verify(parsed[right], parsed[left], timeout_seconds=None), (left, right)
    assert num_equal > len(FORMS)


@pytest.mark.parametrize(
    "reference", ["nan", "None", "", "?", "I think it is forty of them", "x+", "5=7", "\\frac{1}{0}", "N/A"]
)
def test_a_reference_that_no_completion_can_meet_has_a_problem(reference):
    assert "reference answer" in reference_problem(reference)


@pytest.mark.parametrize(
    "reference",
    [
        "3/4",
        "['1', '2']",
        "5 (five)",
        "forty",
        "no solution",
        "101_2",
        "12:30",
        "5e-05",
        "x>3",
        "\\pm 3",
        "1, 2, \\ldots, n",
    ],
)
def test_a_reference_that_can_be_met_has_none(reference):
    assert reference_problem(reference) == ""
    assert verify_answer(f"\\boxed{{{reference}}}", reference).outcome == Outcome.CORRECT
