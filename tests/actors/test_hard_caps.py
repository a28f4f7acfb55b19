"""Cutting completions at a hard cap, by hand."""

from dataclasses import replace

import numpy as np
import pytest

from actors.completions import is_cut, join_forced, num_thinking_tokens
from actors.types import HardCap
from tests.fakes import make_completion

CAP = HardCap(num_tokens=3, forced_token_ids=np.array([8, 9], dtype=np.int32), answer_tokens=2)


@pytest.mark.parametrize(
    ("num_tokens", "finish_reason", "expected"),
    [(2, "stop", False), (3, "stop", False), (3, "length", True), (4, "stop", True), (4, "length", True)],
)
def test_what_a_cap_of_three_cuts(num_tokens, finish_reason, expected):
    assert is_cut(replace(make_completion(num_tokens=num_tokens), finish_reason=finish_reason), CAP) is expected


def test_a_cut_completion_is_its_beginning_the_forced_text_and_the_answer():
    draft = replace(make_completion(num_tokens=5), behaviour_logprobs=np.array([-1, -2, -3, -4, -5], dtype=np.float32))
    answer = replace(make_completion(num_tokens=2), behaviour_logprobs=np.array([-6, -7], dtype=np.float32))
    joined = join_forced(draft, answer, CAP, lambda ids: " ".join(map(str, ids)))
    assert joined.token_ids.tolist() == [10, 11, 12, 8, 9, 10, 11]
    assert joined.forced.tolist() == [False, False, False, True, True, False, False]
    assert joined.behaviour_logprobs.tolist() == [-1, -2, -3, 0, 0, -6, -7]
    assert joined.text == "10 11 12 8 9 10 11"
    assert joined.finish_reason == answer.finish_reason
    assert joined.token_ids.dtype == np.int32


def test_an_answer_by_another_adapter_is_refused():
    with pytest.raises(RuntimeError, match="expected an answer by adapter version 0"):
        join_forced(make_completion(), make_completion(version=1), CAP, str)


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        (["<think>", "4+", "3", "</think>", "7"], 4),
        (["a", "</", "thi", "nk>", "7", "8"], 4),
        (["a", "b", "</think>"], 3),
        (["</think>", "7"], 1),
        (["a", "b", "c"], 3),
    ],
)
def test_the_thought_ends_with_the_token_that_completes_its_close(pieces, expected):
    token_ids = np.arange(len(pieces))
    decode = lambda ids: "".join(pieces[i] for i in ids)  # noqa: E731
    assert num_thinking_tokens(token_ids, "".join(pieces), decode) == expected
