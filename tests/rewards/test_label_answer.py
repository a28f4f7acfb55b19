"""Which label a completion settles on."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.base import Outcome
from rewards.label_answer import find_label, verify_label

LETTERS = ("A", "B", "C", "D")


@pytest.mark.parametrize(
    ("text", "label"),
    [
        (r"so \boxed{C}", "C"),
        (r"so \boxed{\text{(C) blue}}", "C"),
        (r"\boxed{C. blue}", "C"),
        (r"\boxed{Cat}", None),
        (r"\boxed{3}", None),
        ("#### D", "D"),
        ("A is tempting, but the answer is (C).", "C"),
        ("Answer: **B**", "B"),
        ("The correct choice is D", "D"),
        ("C. blue", "C"),
        ("**C**", "C"),
        ("C", "C"),
        ("A cat is blue", None),
        ("It must be B, not anything else", "B"),
        ("First I thought B but it is D", "D"),
        ("The answer is a cat. So B", "B"),
        ("<think>the answer is A</think>The answer is B.", "B"),
        ("<think>the answer is A", None),
        ("", None),
        ("c", "C"),
    ],
)
def test_a_letter_is_found_where_people_write_it(text, label):
    assert find_label(text, LETTERS) == label


@pytest.mark.parametrize(
    ("text", "label"),
    [
        (r"\boxed{Yes}", "yes"),
        (r"\boxed{\text{no}}", "no"),
        ("Yes. Colleges hold them in December.", "yes"),
        ("The answer is NO.", "no"),
        ("There is no snow, so: yes", "yes"),
        ("nothing, nobody", None),
        ("**No**, because yes-men lie", "no"),
    ],
)
def test_yes_and_no_are_found_in_either_case(text, label):
    assert find_label(text, ("yes", "no")) == label


def test_the_verdict_is_that_of_the_label():
    assert verify_label(r"\boxed{C}", "C", LETTERS).outcome == Outcome.CORRECT
    wrong = verify_label(r"\boxed{B}", "C", LETTERS)
    assert (wrong.outcome, wrong.answer) == (Outcome.WRONG, "B")
    assert verify_label("blue", "C", LETTERS).outcome == Outcome.UNPARSABLE


def test_a_reference_that_is_no_label_is_refused():
    with pytest.raises(ValueError, match="expected one of A, B, C, D, found 'E'"):
        verify_label("A", "E", LETTERS)


@given(st.text(alphabet="ABCDabc ().:*\\{}boxedanswer is\n", max_size=300))
def test_whatever_the_text_the_result_is_a_label_or_none(text):
    assert find_label(text, LETTERS) in (*LETTERS, None)


def test_a_megabyte_of_text_takes_no_time_to_speak_of():
    """Quadratic, this would take hours."""
    assert find_label("((( answer is " * 70_000 + "B", LETTERS) == "B"
