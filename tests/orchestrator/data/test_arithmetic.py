"""The built-in tasks are right, stay at 0 or above, and keep held-out chains out of training."""

import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.data import arithmetic
from orchestrator.data.arithmetic import Chain

CHAIN = Chain(numbers=(37, 58, 12), operations=("+", "-"))


def evaluate(expression: str) -> int:
    assert re.fullmatch(r"[0-9+-]+", expression)
    return eval(expression)


def test_a_chain_by_hand():
    assert CHAIN.question == "37+58-12=?"
    assert CHAIN.partial_results == (95, 83)
    assert (CHAIN.answer, CHAIN.difficulty) == (83, 2)


@settings(deadline=None)
@given(seed=st.integers(0, 2**32), num_numbers=st.integers(2, 5))
def test_answers_agree_with_python_and_totals_stay_at_zero_or_above(seed, num_numbers):
    chain = arithmetic.draw_chain(random.Random(seed), num_numbers)
    assert chain.difficulty == num_numbers - 1
    assert chain.answer == evaluate(chain.expression)
    assert min(chain.partial_results) >= 0
    assert all(0 <= number <= arithmetic.MAX_NUMBER for number in chain.numbers)


def test_the_splits_are_disjoint_and_about_a_tenth_is_held_out():
    rng = random.Random(5)
    train = {arithmetic.draw_split_chain(rng, 2, held_out=False).expression for _ in range(4000)}
    held_out = {arithmetic.draw_split_chain(rng, 2, held_out=True).expression for _ in range(400)}
    assert not train & held_out
    drawn = [arithmetic.draw_chain(rng, 3).is_held_out for _ in range(4000)]
    assert 0.08 < sum(drawn) / len(drawn) < 0.12


@pytest.mark.parametrize(
    ("verbosity", "trace"),
    [
        (0.0, "37+58=95. 95-12=83."),
        (1.0, "Start with 37. 37+58=95. Check: 95-58=37. 95-12=83. Check: 83+12=95. So the total is 83."),
    ],
)
def test_traces_by_hand(verbosity, trace):
    assert arithmetic.write_trace(random.Random(0), CHAIN, verbosity) == trace
    assert arithmetic.write_sft_completion(random.Random(0), CHAIN, verbosity) == f"<think>{trace}</think>83"


@settings(deadline=None)
@given(seed=st.integers(0, 2**32), num_numbers=st.integers(2, 5), verbosity=st.floats(0, 1))
def test_every_equation_of_a_trace_is_right(seed, num_numbers, verbosity):
    rng = random.Random(seed)
    chain = arithmetic.draw_chain(rng, num_numbers)
    equations = re.findall(r"([0-9]+[+-][0-9]+)=([0-9]+)", arithmetic.write_trace(rng, chain, verbosity))
    assert len(equations) >= chain.difficulty
    assert all(evaluate(left) == int(right) for left, right in equations)


def test_pretraining_never_shows_a_held_out_chain():
    rng = random.Random(1)
    for _ in range(3000):
        text = "".join(segment for segment, _ in arithmetic.write_document(rng, "{question}\nBudget: {budget_tokens}"))
        for expression in re.findall(r"([0-9]+(?:[+-][0-9]+)+)=\?", text):
            numbers = tuple(int(number) for number in re.split(r"[+-]", expression))
            assert not Chain(numbers=numbers, operations=tuple(re.findall(r"[+-]", expression))).is_held_out
