"""Votes of completions on the device."""

import pytest

from deploy.device.voting import answer_key, vote


@pytest.mark.parametrize(
    ("text", "key"),
    [
        (r"<think>3+4=7</think>It is \boxed{1,024.0}.", "1024"),
        (r"\boxed{\text{ Seven }}", "7"),
        (r"\boxed{\$7.50}", "15/2"),
        (r"\boxed{0.5}", "1/2"),
        ("so it is 7.", "7"),
        ("</think>83-4=79.", "79"),
        ("#### -0", "0"),
        (r"\boxed{1/2}", "1/2"),
        ("<think>3", ""),
        ("", ""),
        ("No  Idea", "no idea"),
    ],
)
def test_answers_are_compared_by_their_text(text, key):
    assert answer_key(text) == key


def test_scores_decide_and_equal_scores_make_it_the_majority():
    assert vote(["7", "8", "7.0"], [0.4, 0.7, 0.4]) == 0
    assert vote(["7", "8", "7.0"], [0.3, 0.7, 0.3]) == 1
    assert vote(["6", "8", "8"], [1.0, 1.0, 1.0]) == 1
    assert vote(["<think>7", "8"], [0.9, 0.1]) == 1
    assert vote(["<think>7"], [0.9]) is None
