"""Settings of scoring: which length reward, and one section of parameters for each of them.

The formulas, with their sources and worked examples, are in `rewards/`. A `limit_tokens` (or `target_tokens`)
of 0 is the task's own budget, so that fractions of it scale with every budget; a task without one is then refused.
"""

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class SoftBarrierSection:
    """A ramp around the budget (arXiv 2603.16867). Without a budget it pays for accuracy alone."""

    half_width_frac: float = 0.5
    """m: the ramp runs from (1 - m) B to (1 + m) B."""
    floor: float = 0.0
    """p: what is left beyond the ramp."""


@dataclass(frozen=True, kw_only=True)
class LcpoSection:
    """L1's `lcpo_exact` and `lcpo_max` (arXiv 2503.04697)."""

    alpha: float = 3e-4
    """Reward lost per token; L1's value is for targets of 100 to 4,000 tokens, shorter ones need more."""
    delta: float = 0.5
    """`lcpo_max`: the factor exactly at the target."""
    target_tokens: int = 0
    """Length to meet; 0: the task's budget."""


@dataclass(frozen=True, kw_only=True)
class DapoOverlongSection:
    """DAPO's soft overlong punishment (arXiv 2503.14476)."""

    limit_tokens: int = 0
    """Lmax: from here on the whole penalty."""
    ramp_frac: float = 0.2
    """Share of the limit over which the penalty grows (DAPO: 4,096 of 20,480 tokens); 0 is a step."""
    weight: float = 1.0
    """Weight of the penalty. DAPO pays -1 for a wrong and +1 for a right answer; 0.5 keeps its proportions with 0 and 1."""


@dataclass(frozen=True, kw_only=True)
class AroraZanetteSection:
    """Length against the group's right answers (arXiv 2502.04463)."""

    alpha: float = 0.4
    """Share of the reward that length can take."""


@dataclass(frozen=True, kw_only=True)
class KimiSection:
    """Place between the group's shortest and longest (Kimi k1.5, arXiv 2501.12599)."""

    weight: float = 1.0
    """Weight of the length term beside accuracy."""
    warmup_steps: int = 0
    """Optimiser steps without the length term."""


@dataclass(frozen=True, kw_only=True)
class HapoSection:
    """Length against the task's right answers of earlier steps (arXiv 2505.11225)."""

    weight: float = 1.0
    """Weight of the length term beside accuracy."""
    history: Literal["shortest", "mean"] = "shortest"
    """Which length of the earlier right answers is the yardstick."""
    form: Literal["cosine", "linear"] = "cosine"
    """How the term falls with the length over the yardstick."""
    tolerance_frac: float = 0.1
    """`linear`: so far beyond the yardstick nothing is lost."""


@dataclass(frozen=True, kw_only=True)
class ThinkPruneSection:
    """A limit that gets tighter as training goes on (arXiv 2504.01296)."""

    limit_tokens: int = 0
    """Completions beyond it earn nothing; 0: the task's budget."""
    limit_fracs: tuple[float, ...] = (1.0, 0.75, 0.5)
    """Shares of the limit, one per round; the last one stays."""
    steps_per_round: int = 100
    """Optimiser steps."""


@dataclass(frozen=True, kw_only=True)
class DlerSection:
    """Nothing beyond the limit (arXiv 2510.15110)."""

    limit_tokens: int = 0
    """Completions beyond it earn nothing; 0: the task's budget."""


@dataclass(frozen=True, kw_only=True)
class DaDlerSection:
    """DLER with a tighter limit for groups that are mostly right (arXiv 2510.15110)."""

    limit_tokens: int = 0
    """The limit of hard groups."""
    easy_frac: float = 0.5
    """Limit of easy groups, as a share of `limit_tokens`."""
    easy_solve_rate: float = 0.5
    """Groups solved at this rate and above are easy."""


@dataclass(frozen=True, kw_only=True)
class LaserSection:
    """A bonus for right answers within a limit (arXiv 2505.15612)."""

    limit_tokens: int = 0
    """Up to it a right completion earns the bonus; 0: the task's budget."""
    bonus: float = 0.5
    """Bonus of a right completion within the limit."""


@dataclass(frozen=True, kw_only=True)
class LaserDSection:
    """LASER with a limit per tier of difficulty, measured anew from time to time (arXiv 2505.15612)."""

    limit_tokens: int = 0
    """The longest limit, of every tier until it has been measured."""
    bonus: float = 0.5
    """Bonus of a right completion within its tier's limit."""
    pay_long_wrong: bool = False
    """LASER-DE: wrong answers earn the bonus for being longer than the limit, to keep them exploring."""
    refresh_every_steps: int = 20
    """Optimiser steps between measurements."""
    num_candidates: int = 16
    """Limits to choose from: equal steps up to `limit_tokens`."""
    min_expected_correct: float = 1.0
    """The shortest limit that leaves a group so many right answers is chosen."""


@dataclass(frozen=True, kw_only=True)
class GrpoLambdaSection:
    """Arora and Zanette's reward for the best solved groups alone (arXiv 2505.18086)."""

    alpha: float = 0.6
    """The same as in `arora_zanette`."""
    top_frac: float = 0.2
    """lambda: the share of groups, by solve rate, whose length counts."""
    window_groups: int = 256
    """How many of the latest groups a group is ranked among."""


@dataclass(frozen=True, kw_only=True)
class ShorterBetterSection:
    """Distance from the group's shortest right answer (arXiv 2504.21370)."""

    accuracy_weight: float = 2.0
    """alpha: what a right answer earns."""
    beta: float = 1e-3
    """Reward lost per token of distance."""


@dataclass(frozen=True, kw_only=True)
class CosineSection:
    """From one reward at length 0 to another at the limit, along half a cosine (arXiv 2502.03373)."""

    limit_tokens: int = 0
    """Where the curve ends; 0: the task's budget."""
    correct_short: float = 2.0
    """Reward of a right completion of no length …"""
    correct_long: float = 1.0
    """… and at the limit."""
    wrong_short_penalty: float = 10.0
    """Taken off for a wrong completion of no length …"""
    wrong_long_penalty: float = 0.0
    """… and at the limit."""
    overflow_penalty: float = 10.0
    """Beyond the limit or cut, right or wrong."""


@dataclass(frozen=True, kw_only=True)
class GroupRelativeSection:
    """Reward divided by length over the group's mean (GR3, arXiv 2603.10535)."""

    alpha: float = 0.33
    """How strongly length counts against the group's."""
    scale_by_pass_rate: bool = False
    """alpha times the group's share of right answers: hard tasks lose less for length (as in ALP, arXiv 2506.05256)."""


@dataclass(frozen=True, kw_only=True)
class RewardSection:
    """Scoring: answer verification and length reward."""

    verifier: str = "math"
    """Judges completions: `math` (numbers, expressions, text), `label` (one of the task's labels, which tasks with labels take
    anyway), or a function of your own, `package.module:function`."""
    verifier_args: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the verifier."""
    length: str = "soft_barrier"
    """none, soft_barrier, lcpo_exact, lcpo_max, dapo_overlong, arora_zanette, kimi, hapo, thinkprune, dler, da_dler, laser,
    laser_d, grpo_lambda, shorter_better, cosine or group_relative, each with the section below that has its name (both of lcpo:
    `lcpo`), or a function of your own, `package.module:function`."""
    length_args: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of a length reward of your own."""
    soft_barrier: SoftBarrierSection = field(default_factory=SoftBarrierSection)
    lcpo: LcpoSection = field(default_factory=LcpoSection)
    dapo_overlong: DapoOverlongSection = field(default_factory=DapoOverlongSection)
    arora_zanette: AroraZanetteSection = field(default_factory=AroraZanetteSection)
    kimi: KimiSection = field(default_factory=KimiSection)
    hapo: HapoSection = field(default_factory=HapoSection)
    thinkprune: ThinkPruneSection = field(default_factory=ThinkPruneSection)
    dler: DlerSection = field(default_factory=DlerSection)
    da_dler: DaDlerSection = field(default_factory=DaDlerSection)
    laser: LaserSection = field(default_factory=LaserSection)
    laser_d: LaserDSection = field(default_factory=LaserDSection)
    grpo_lambda: GrpoLambdaSection = field(default_factory=GrpoLambdaSection)
    shorter_better: ShorterBetterSection = field(default_factory=ShorterBetterSection)
    cosine: CosineSection = field(default_factory=CosineSection)
    group_relative: GroupRelativeSection = field(default_factory=GroupRelativeSection)
    span: Literal["completion", "thinking"] = "completion"
    """Tokens that count as the length. `thinking` leaves out what follows the thought: models then close it early and
    go on reasoning in the answer."""
    deadline_s: float = 5.0
    """Per completion; past it the scoring process is killed."""
    num_actors: int = 1
    """Reward actors, each with a scoring process of its own."""
