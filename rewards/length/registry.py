"""Length rewards: what a completion earns for its length, given whether it is right.

Each is a pure function of one group with one signature, `LengthReward`, and answers with the final reward of
each completion and the parts it is made of. They are in `limits` (against a limit), `siblings` (against the group) and
`history` (against earlier groups). Adding one is adding a function there, its name to `configs.built_ins.LENGTH_REWARDS`, and
a section for its settings to `configs.schema.reward`; one of your own needs none of that: `reward.length=package.module:function`.
"""

import math

from configs.built_ins import LENGTH_REWARDS
from configs.functions import load_function
from configs.schema.run import RewardSection
from rewards.length.history import next_state
from rewards.length.limits import soft_barrier
from rewards.length.state import LengthState
from rewards.length.types import LengthInputs, LengthReward, Score, length_settings

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


def score_group(inputs: LengthInputs, config: RewardSection) -> tuple[Score, ...]:
    """Rewards `[G]` by the function that `config.length` names; none for a group without completions.

    Raises ValueError for an unknown name, where a limit is 0 (the task's budget) and the task has no budget, and for scores
    that are not one finite `Score` for each completion.
    """
    if not inputs.num_tokens:
        return ()
    scores = tuple(load_function("reward.length", config.length, LENGTH_REWARDS)(inputs, **length_settings(config)))
    if len(scores) != len(inputs.num_tokens) or not all(
        isinstance(score, Score) and math.isfinite(score.value) for score in scores
    ):
        raise ValueError(
            f"reward.length: expected a finite Score for each of {len(inputs.num_tokens)} completions of task "
            f"{inputs.task_id}, {config.length} returned {scores!s:.200}"
        )
    return scores
