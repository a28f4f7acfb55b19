"""Short ways to write groups, settings and scores in the tests of the length rewards."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from configs.schema.run import RewardSection
from rewards.length.registry import LengthInputs, score_group

SECTIONS = {"lcpo_exact": "lcpo", "lcpo_max": "lcpo"}
"""Of methods whose section has another name than they."""


def group(lengths: Sequence[int], correct: Sequence[int], *, budget: int | None = 100, **fields: Any) -> LengthInputs:
    """`correct` of 0 and 1; completions that ended by themselves, of task `t`, unless `fields` says otherwise."""
    values: dict[str, Any] = {"truncated": (False,) * len(lengths), "task_id": "t", **fields}
    verdicts = tuple(map(bool, correct))
    return LengthInputs(num_tokens=tuple(lengths), correct=verdicts, budget_tokens=budget, **values)


def settings_of(name: str, **parameters: Any) -> RewardSection:
    """The defaults with this length reward and these parameters of its section."""
    base = RewardSection(length=name)
    if not parameters:
        return base
    section = SECTIONS.get(name, name)
    return dataclasses.replace(base, **{section: dataclasses.replace(getattr(base, section), **parameters)})


def rewards(name: str, inputs: LengthInputs, **parameters: Any) -> list[float]:
    return [score.value for score in score_group(inputs, settings_of(name, **parameters))]


def length_parts(name: str, inputs: LengthInputs, **parameters: Any) -> list[float]:
    return [score.breakdown["length"] for score in score_group(inputs, settings_of(name, **parameters))]
