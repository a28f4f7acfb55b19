"""Length rewards: what a completion earns for its length, given whether it is right.

Each is a pure function of one group with one signature, `LengthReward`, and answers with the final reward of
each completion and the parts it is made of. They are in `length_limits` (against a limit), `length_siblings`
(against the group) and `length_history` (against earlier groups). Adding one is adding a function to
`LENGTH_REWARDS`, its name to `configs.schema.reward.LengthRewardName`, and a section for its parameters there.
"""

from configs.schema.run import RewardSection
from rewards.length.history import grpo_lambda, hapo, laser_d, next_state
from rewards.length.limits import (
    cosine,
    da_dler,
    dapo_overlong,
    dler,
    laser,
    lcpo_exact,
    lcpo_max,
    no_length_reward,
    soft_barrier,
    soft_barrier_reward,
    thinkprune,
)
from rewards.length.siblings import arora_zanette, group_relative, kimi, shorter_better
from rewards.length.state import LengthState
from rewards.length.types import LengthInputs, LengthReward, Score

__all__ = [
    "LENGTH_REWARDS",
    "LengthInputs",
    "LengthReward",
    "LengthState",
    "Score",
    "next_state",
    "score_group",
    "soft_barrier",
]

LENGTH_REWARDS: dict[str, LengthReward] = {
    "none": no_length_reward,
    "soft_barrier": soft_barrier_reward,
    "lcpo_exact": lcpo_exact,
    "lcpo_max": lcpo_max,
    "dapo_overlong": dapo_overlong,
    "arora_zanette": arora_zanette,
    "kimi": kimi,
    "hapo": hapo,
    "thinkprune": thinkprune,
    "dler": dler,
    "da_dler": da_dler,
    "laser": laser,
    "laser_d": laser_d,
    "grpo_lambda": grpo_lambda,
    "shorter_better": shorter_better,
    "cosine": cosine,
    "group_relative": group_relative,
}
"""By the name in `reward.length`."""


def score_group(inputs: LengthInputs, config: RewardSection) -> tuple[Score, ...]:
    """Rewards `[G]` by the formula that `config.length` names; none for a group without completions.

    Raises ValueError for an unknown name, and where a limit is 0 (the task's budget) and the task has no budget.
    """
    if config.length not in LENGTH_REWARDS:
        raise ValueError(f"reward.length: expected one of {', '.join(LENGTH_REWARDS)}, got {config.length!r}")
    return LENGTH_REWARDS[config.length](inputs, config) if inputs.num_tokens else ()
