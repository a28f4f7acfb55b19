"""What holds for every length reward, whatever its formula."""

import dataclasses
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.functions import call_problem, load_function
from configs.schema.run import RewardSection
from rewards.length.registry import LENGTH_REWARDS, LengthInputs, LengthState, Score, next_state, score_group
from rewards.length.state import TaskHistory
from rewards.length.types import accuracy_times, length_settings
from tests.rewards.length.groups import group, rewards, settings_of

TASK = TaskHistory(shortest_tokens=90, num_correct=3, total_tokens=330)
MEMORY = LengthState(tasks={"t": TASK}, solve_rates=(0.25, 0.5, 0.5, 0.9), tier_fracs=(1.0, 0.75, 0.5))
FACTORS = {
    "none", "soft_barrier", "lcpo_max", "arora_zanette", "thinkprune", "dler", "da_dler", "grpo_lambda", "group_relative"
}  # fmt: skip
"""R = c · length; the others are R = c + length, and ShorterBetter R = 2 c + length."""
NEAR_A_TARGET = {"lcpo_exact", "shorter_better"}
"""May pay a longer completion more, because it is nearer."""


def bounds(name: str, inputs: LengthInputs) -> tuple[float, float]:
    """Least and greatest reward, as the formulas give them with the default parameters."""
    longest = max(inputs.num_tokens)
    other = {
        "lcpo_exact": (-3e-4 * max(longest, inputs.budget_tokens or 0), 1.0),
        "dapo_overlong": (-1.0, 1.0),
        "kimi": (-0.5, 1.5),
        "hapo": (-1.0, 2.0),
        "laser": (0.0, 1.5),
        "laser_d": (0.0, 1.5),
        "shorter_better": (-1e-3 * longest, 2.0),
        "cosine": (-10.0, 2.0),
    }
    return (0.0, 1.0) if name in FACTORS else other[name]


@st.composite
def groups(draw: st.DrawFn) -> LengthInputs:
    rows = draw(st.lists(st.tuples(st.integers(0, 400), st.booleans(), st.booleans()), min_size=1, max_size=8))
    lengths, correct, truncated = zip(*rows, strict=True)
    return LengthInputs(
        num_tokens=lengths,
        correct=correct,
        truncated=truncated,
        task_id="t",
        budget_tokens=draw(st.integers(1, 300)),
        step=draw(st.integers(0, 400)),
        state=draw(st.sampled_from([LengthState(), MEMORY])),
    )


def reordered(inputs: LengthInputs, order: list[int]) -> LengthInputs:
    return dataclasses.replace(
        inputs,
        num_tokens=tuple(inputs.num_tokens[i] for i in order),
        correct=tuple(inputs.correct[i] for i in order),
        truncated=tuple(inputs.truncated[i] for i in order),
    )


def test_every_name_is_tested_here():
    others = {"dapo_overlong", "kimi", "hapo", "laser", "laser_d", "cosine"}
    assert {*FACTORS, *NEAR_A_TARGET, *others} == set(LENGTH_REWARDS)


@pytest.mark.parametrize("name", LENGTH_REWARDS)
def test_every_formula_takes_the_settings_of_its_section(name):
    function = load_function("reward.length", name, LENGTH_REWARDS)
    assert call_problem("reward.length", function, 1, length_settings(RewardSection(length=name))) == ""


@pytest.mark.parametrize("name", LENGTH_REWARDS)
@given(groups(), st.randoms(use_true_random=False))
@settings(max_examples=30, deadline=None)
def test_permuting_the_group_permutes_the_scores(name, inputs, random):
    order = random.sample(range(len(inputs.num_tokens)), len(inputs.num_tokens))
    scores = score_group(inputs, settings_of(name))
    assert score_group(reordered(inputs, order), settings_of(name)) == tuple(scores[i] for i in order)


@pytest.mark.parametrize("name", LENGTH_REWARDS)
@given(groups())
@settings(max_examples=30, deadline=None)
def test_rewards_stay_within_the_bounds_of_their_formula(name, inputs):
    least, greatest = bounds(name, inputs)
    assert all(least - 1e-9 <= value <= greatest + 1e-9 for value in rewards(name, inputs))


@pytest.mark.parametrize("name", LENGTH_REWARDS)
@given(groups())
@settings(max_examples=30, deadline=None)
def test_the_value_is_put_together_from_the_parts_that_are_shown(name, inputs):
    for score, correct in zip(score_group(inputs, settings_of(name)), inputs.correct, strict=True):
        accuracy, length = score.breakdown["accuracy"], score.breakdown["length"]
        weight = 2.0 if name == "shorter_better" else 1.0
        assert list(score.breakdown) == ["accuracy", "length"]
        assert accuracy == float(correct)
        assert score.value == (accuracy * length if name in FACTORS else weight * accuracy + length)


@pytest.mark.parametrize("name", sorted(set(LENGTH_REWARDS) - NEAR_A_TARGET))
@given(groups())
@settings(max_examples=30, deadline=None)
def test_the_longer_of_two_right_answers_never_earns_more(name, inputs):
    values = rewards(name, inputs)
    rows = zip(inputs.num_tokens, inputs.correct, inputs.truncated, values, strict=True)
    right = sorted((length, -value) for length, correct, truncated, value in rows if correct and not truncated)
    assert all(long_loss >= short_loss - 1e-9 for (_, short_loss), (_, long_loss) in itertools.pairwise(right))


@pytest.mark.parametrize("name", sorted(set(LENGTH_REWARDS) - NEAR_A_TARGET - {"cosine"}))
@given(groups())
@settings(max_examples=30, deadline=None)
def test_the_longer_of_two_wrong_answers_never_earns_more(name, inputs):
    rows = zip(inputs.num_tokens, inputs.correct, inputs.truncated, rewards(name, inputs), strict=True)
    wrong = sorted((length, -value) for length, correct, truncated, value in rows if not (correct or truncated))
    assert all(long_loss >= short_loss - 1e-9 for (_, short_loss), (_, long_loss) in itertools.pairwise(wrong))


@pytest.mark.parametrize("name", LENGTH_REWARDS)
@given(groups(), st.integers(0, 400), st.booleans())
@settings(max_examples=30, deadline=None)
def test_a_wrong_answer_never_beats_a_right_one_of_the_same_length(name, inputs, length, truncated):
    pair = dataclasses.replace(
        inputs,
        num_tokens=(*inputs.num_tokens, length, length),
        correct=(*inputs.correct, True, False),
        truncated=(*inputs.truncated, truncated, truncated),
    )
    *_, right, wrong = rewards(name, pair)
    assert wrong <= right


@pytest.mark.parametrize("name", LENGTH_REWARDS)
def test_every_length_reward_scores_each_completion_in_its_place(name):
    scores = rewards(name, group([10, 10, 10, 10], [0, 1, 0, 1]))
    assert [score > 0 for score in scores] == [False, True, False, True]
    assert score_group(group([], []), settings_of(name)) == ()


NEEDS_A_LIMIT = {
    "lcpo_exact": "reward.lcpo.target_tokens",
    "lcpo_max": "reward.lcpo.target_tokens",
    "dapo_overlong": "reward.dapo_overlong.limit_tokens",
    "thinkprune": "reward.thinkprune.limit_tokens",
    "dler": "reward.dler.limit_tokens",
    "da_dler": "reward.da_dler.limit_tokens",
    "laser": "reward.laser.limit_tokens",
    "laser_d": "reward.laser_d.limit_tokens",
    "cosine": "reward.cosine.limit_tokens",
}


@pytest.mark.parametrize(("name", "key"), NEEDS_A_LIMIT.items())
def test_a_limit_of_0_is_the_budget_and_without_a_budget_it_is_refused_by_its_key(name, key):
    parameter = key.rpartition(".")[2]
    lengths, correct = [40, 60, 99, 120, 400], [1, 1, 1, 1, 0]
    of_budget = rewards(name, group(lengths, correct, budget=120))
    assert rewards(name, group(lengths, correct, budget=7), **{parameter: 120}) == of_budget
    assert rewards(name, group(lengths, correct, budget=None), **{parameter: 120}) == of_budget
    with pytest.raises(ValueError, match=rf"{key}: expected above 0 for task t, which has no budget, got 0"):
        rewards(name, group(lengths, correct, budget=None))


@pytest.mark.parametrize("name", sorted(set(LENGTH_REWARDS) - set(NEEDS_A_LIMIT)))
def test_the_others_do_without_a_budget(name):
    assert len(rewards(name, group([40, 400], [1, 0], budget=None))) == 2


def test_the_reward_is_accuracy_times_length_and_says_both():
    inputs = group([80, 80, 200], [1, 0, 1])
    scores = score_group(inputs, RewardSection())
    assert [score.value for score in scores] == pytest.approx([0.7, 0.0, 0.0])
    assert [score.breakdown for score in scores] == [
        {"accuracy": 1.0, "length": pytest.approx(0.7)},
        {"accuracy": 0.0, "length": pytest.approx(0.7)},
        {"accuracy": 1.0, "length": 0.0},
    ]


def test_a_task_without_a_budget_is_paid_for_accuracy_alone():
    assert score_group(group([80, 9000], [1, 0], budget=None), RewardSection()) == (
        Score(value=1.0, breakdown={"accuracy": 1.0, "length": 1.0}),
        Score(value=0.0, breakdown={"accuracy": 0.0, "length": 1.0}),
    )


def test_length_reward_none_ignores_the_budget():
    assert rewards("none", group([80, 9000], [1, 1])) == [1.0, 1.0]


def test_inputs_that_do_not_belong_together_are_refused():
    with pytest.raises(ValueError, match="expected a verdict per length, got 1 for 2"):
        group([1, 2], [1])
    with pytest.raises(ValueError, match="truncated: expected one per length, got 1 for 2"):
        group([1, 2], [1, 1], truncated=(True,))
    with pytest.raises(ValueError, match="num_tokens: expected at least 0, got -1"):
        group([1, -1], [1, 1])
    with pytest.raises(ValueError, match="budget_tokens: expected more than 0, got 0"):
        group([1], [1], budget=0)
    with pytest.raises(ValueError, match="step: expected at least 0, got -1"):
        group([1], [1], step=-1)


def test_an_unknown_length_reward_is_refused_by_name():
    config = RewardSection(length="brief")
    with pytest.raises(ValueError, match=r"reward\.length: expected one of none, soft_barrier, .*, found 'brief'"):
        score_group(group([1], [1]), config)


def halved(inputs, *, share):
    return accuracy_times([share] * len(inputs.num_tokens), inputs)


def too_few(inputs):
    return []


def test_a_function_of_ones_own_gets_its_settings():
    config = RewardSection(length=f"{__name__}:halved", length_args={"share": 0.5})
    assert [score.value for score in score_group(group([1, 2], [1, 0]), config)] == [0.5, 0.0]
    assert next_state(LengthState(), [group([1], [1])], config, step=1) == LengthState()


def test_scores_that_are_not_one_for_each_completion_are_refused():
    config = RewardSection(length=f"{__name__}:too_few")
    with pytest.raises(ValueError, match=r"reward.length: expected a finite Score for each of 2 .* returned \(\)"):
        score_group(group([1, 2], [1, 0]), config)
