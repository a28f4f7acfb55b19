"""What counts as the answer of a completion."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.answer_text import extract, extract_answer_text
from rewards.base import AnswerVerdict, Outcome
from rewards.math_answer import verify_answer


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>3+4=7</think>It is \\boxed{7}.", "7"),
        ("\\boxed{1} or rather \\boxed{2}", "2"),
        ("\\boxed{1} and \\boxed{2}", "1, 2"),
        ("x=\\boxed{1} or x=\\boxed{2}", "1, 2"),
        ("\\boxed{2}, \\boxed{2}", "2"),
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("\\boxed{\\boxed{5}}", "5"),
        ("\\fbox{5}", "5"),
        ("$\\boxed 5$", "5"),
        ("\\boxed12", "12"),
        ("\\frac{1 is left open, \\boxed{5}", "5"),
        ("a closing } too many, \\boxed {5}", "5"),
        ("\\boxed{18.}", "18"),
        ("work\n#### 12\n", "12"),
        ("#### 12\n#### 13.", "13"),
        ("#### 12 and \\boxed{13}", "13"),
        ("\\boxed{12}\n#### 13", "13"),
        ("<answer>12</answer>", "12"),
        ("<answer>It is \\boxed{12}</answer> or 13", "12"),
        ("so it is 7 ", "7"),
        ("<think>\\boxed{1}</think>2", "2"),
        ("<think>1</think><think>2</think>3", "3"),
        ("<THINK>\\boxed{1}</THINK>2", "2"),
        ("3+4=7</think>8", "8"),
        ("<think>1</think>2</think>\n", "2"),
        ("7</s>", "7"),
        ("7<|im_end|>", "7"),
    ],
)
def test_the_answer_is_the_last_mark_behind_the_thought_else_what_its_sentence_states(text, expected):
    assert extract_answer_text(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("", "  \n", "<think>3+4=\\boxed{7}", "<think>3</think><think>\\boxed{7}", "<think>7</think> ", "\\boxed{}"),
        *("\\boxed{7} and last \\boxed{}", "\\boxed{7} no, \\boxed{8", "The final answer is \\boxed{7"),
    ],
)
def test_no_answer_without_text_after_a_closed_thought_or_in_an_empty_or_cut_box(text):
    assert extract_answer_text(text) is None
    assert verify_answer(text, "7") == AnswerVerdict(outcome=Outcome.UNPARSABLE, answer="")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\\boxed{8}. Hmm, 3+4=7. So the correct answer is 7.", "7"),
        ("\\boxed{8} Wait. The final answer is: $\\frac{1}{2}$", "$\\frac{1}{2}$"),
        ("\\boxed{8}. The answer is correct.", "8"),
        ("\\boxed{8}. This answer is in units of 10 cm.", "8"),
        ("\\boxed{8}. We checked that 3+4=7.", "8"),
    ],
)
def test_a_later_sentence_that_says_the_answer_corrects_a_box(text, expected):
    assert extract_answer_text(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("So the answer is 12\\pi.", "12\\pi"),
        ("The answer is 2 + 7i.", "2 + 7i"),
        ("The answer is (3, 4).", "(3, 4)"),
        ("The answer is 3, 4", "3, 4"),
        ("He has 5 million dollars.", "5 million dollars"),
        ("It takes 2 1/2 hours.", "2 1/2 hours"),
        ("The answer is 7. Wait, no. It is 8.", "8"),
        ("So a=3 and b=4.", "a=3 and b=4"),
        ("It takes 42 minutes (0.7 hours).", "42 minutes (0.7 hours)"),
        ("Seventy-two (72) clips were sold.", "(72)"),
        ("The answer is 72, which is the total of 40 and 32.", "72"),
        ("Answer: 72\nConfidence: 95%", "72"),
        ("1. First we add.\n2. Then we get 72.", "72"),
        ("Answer: **42**", "42"),
        ("答案是72。", "72"),
        ("The answer is (-\\infty, 0].", "(-\\infty, 0]"),
        ("The answer is p - q.", "p - q"),
        ("In 2020, 15 people came.", "15"),
        ("The answer is 5!", "5"),
    ],
)
def test_an_answer_without_mark_is_a_whole_expression(text, expected):
    assert extract_answer_text(text) == expected
    assert not extract(text).is_marked


def test_extraction_of_thousands_of_open_boxes_takes_linear_time():
    assert extract_answer_text("\\boxed{" * 200_000 + "5}") == "5"


@given(st.text(alphabet="<think></boxed\\{}#$ 0123456789.,-/\n", max_size=60))
@settings(deadline=None, max_examples=200)
def test_no_completion_makes_extraction_raise_or_invent_digits(text):
    answer = extract_answer_text(text)
    assert answer is None or (answer and set(answer) <= {*text, ",", " "})
