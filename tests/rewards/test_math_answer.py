"""What counts as the answer of a completion, and when it equals the reference answer."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from math_verify import parse, verify

from rewards.answer_text import extract_answer_text
from rewards.base import AnswerVerdict, Outcome
from rewards.math_answer import _compare_numbers, _differ_at_a_point, verify_answer


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>3+4=7</think>It is \\boxed{7}.", "7"),
        ("\\boxed{1} or rather \\boxed{2}", "2"),
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("\\boxed{\\boxed{5}}", "5"),
        ("\\boxed{5} and then \\boxed{6", "5"),
        ("\\frac{1 is left open, \\boxed{5}", "5"),
        ("a closing } too many, \\boxed {5}", "5"),
        ("\\boxed{18.}", "18"),
        ("work\n#### 12\n", "12"),
        ("#### 12\n#### 13.", "13"),
        ("#### 12 and \\boxed{13}", "13"),
        ("so it is 7 ", "so it is 7"),
        ("<think>\\boxed{1}</think>2", "2"),
        ("<think>1</think><think>2</think>3", "3"),
        ("3+4=7</think>8", "8"),
    ],
)
def test_the_answer_is_the_last_box_else_the_last_hash_line_else_the_part_after_the_thought(text, expected):
    assert extract_answer_text(text) == expected


@pytest.mark.parametrize(
    "text", ["", "  \n", "<think>3+4=\\boxed{7}", "<think>3</think><think>\\boxed{7}", "<think>7</think> ", "\\boxed{}"]
)
def test_no_answer_without_text_after_a_closed_thought(text):
    assert extract_answer_text(text) is None
    assert verify_answer(text, "7") == AnswerVerdict(outcome=Outcome.UNPARSABLE, answer="")


def test_extraction_of_thousands_of_open_boxes_takes_linear_time():
    assert extract_answer_text("\\boxed{" * 200_000 + "5}") == "5"


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
    ],
)
def test_other_answers_are_wrong(text, reference):
    assert verify_answer(text, reference).outcome == Outcome.WRONG


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


@given(st.text(alphabet="<think></boxed\\{}#$ 0123456789.,-/\n", max_size=60))
@settings(deadline=None, max_examples=200)
def test_no_completion_makes_extraction_raise_or_invent_text(text):
    answer = extract_answer_text(text)
    assert answer is None or (answer and answer in text)


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
    decided = 0
    for _ in range(150):
        denominator = rng.choice((1, 2, 3, 4, 5, 7, 8, 10))
        one, other = rng.randint(0, 60), rng.randint(0, 60)
        left = _in_some_form(rng, one, denominator)
        right = _in_some_form(rng, one if rng.random() < 0.7 else other, denominator)
        found = _compare_numbers(left, right)
        if found is not None:
            decided += 1
            gold, parsed = (parse(f"\\boxed{{{text}}}", parsing_timeout=None) for text in (right, left))
            assert found == verify(gold, parsed, timeout_seconds=None), (left, right)
    assert decided > 100


@pytest.mark.parametrize("text", ["50%", "x", "1/0", "1/2/3", "0.5/2", "1e3", ""])
def test_what_is_no_plain_number_or_ratio_is_left_to_math_verify(text):
    assert _compare_numbers(text, "1/2") is None


FORMS = (
    *("3x+4", "4+3x", "2x+1", "x^2-1", "(x-1)(x+1)", "x=5", "5", "f(x)=2x", "2x", "\\frac{3}{x}", "3x^{-1}", "x>2"),
    *("\\frac{1}{2}", "0.5", "50\\%", "50", "\\frac{\\sqrt2}{2}", "\\frac{1}{\\sqrt{2}}", "0.70710678", "2\\pi"),
    *("(1,2)", "[1,2]", "\\{1,2\\}", "3-2i", "-2i+3", "5\\text{ cm}", "90^\\circ", "90", "\\infty", "-\\infty"),
    *("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "\\begin{pmatrix}1\\\\3\\end{pmatrix}", "\\text{yes}", "A", "a"),
)


def test_expressions_that_differ_at_a_point_are_those_that_math_verify_finds_different():
    parsed = {text: parse(f"\\boxed{{{text}}}", parsing_timeout=None) for text in FORMS}
    rng = random.Random(0)
    decided = 0
    for left, right in (rng.sample(FORMS, 2) for _ in range(150)):
        if "%" not in left + right and _differ_at_a_point(parsed[right], parsed[left]):
            decided += 1
            assert not verify(parsed[right], parsed[left], timeout_seconds=None), (left, right)
    assert decided > 50
