"""What is wrong with the settings of scoring; part of `configs.checks`."""

from collections.abc import Iterator

from configs.checks.rules import BELOW_ONE, COUNT, NOT_NEGATIVE, POSITIVE, POSITIVE_SHARE, SHARE, Rule, expected
from configs.schema.run import RunConfig

CODE_TOTAL_TIMEOUT_S = 4.0
"""Default of the verifier `code` (`actors.code_verifier`)."""
REWARD_RULES: dict[str, Rule] = {
    "reward.soft_barrier.half_width_frac": SHARE,
    "reward.soft_barrier.floor": ("from -1 to 1", lambda value: -1 <= value <= 1),
    "reward.lcpo.alpha": POSITIVE,
    "reward.lcpo.delta": SHARE,
    "reward.lcpo.target_tokens": NOT_NEGATIVE,
    "reward.dapo_overlong.limit_tokens": NOT_NEGATIVE,
    "reward.dapo_overlong.ramp_frac": SHARE,
    "reward.dapo_overlong.weight": NOT_NEGATIVE,
    "reward.arora_zanette.alpha": BELOW_ONE,
    "reward.kimi.weight": NOT_NEGATIVE,
    "reward.kimi.warmup_steps": NOT_NEGATIVE,
    "reward.hapo.weight": SHARE,
    "reward.hapo.tolerance_frac": NOT_NEGATIVE,
    "reward.thinkprune.limit_tokens": NOT_NEGATIVE,
    "reward.thinkprune.steps_per_round": COUNT,
    "reward.dler.limit_tokens": NOT_NEGATIVE,
    "reward.da_dler.limit_tokens": NOT_NEGATIVE,
    "reward.da_dler.easy_frac": POSITIVE_SHARE,
    "reward.da_dler.easy_solve_rate": SHARE,
    "reward.laser.limit_tokens": NOT_NEGATIVE,
    "reward.laser.bonus": NOT_NEGATIVE,
    "reward.laser_d.limit_tokens": NOT_NEGATIVE,
    "reward.laser_d.bonus": NOT_NEGATIVE,
    "reward.laser_d.refresh_every_steps": COUNT,
    "reward.laser_d.num_candidates": COUNT,
    "reward.laser_d.min_expected_correct": POSITIVE,
    "reward.grpo_lambda.alpha": BELOW_ONE,
    "reward.grpo_lambda.top_frac": SHARE,
    "reward.grpo_lambda.window_groups": COUNT,
    "reward.shorter_better.accuracy_weight": POSITIVE,
    "reward.shorter_better.beta": NOT_NEGATIVE,
    "reward.cosine.limit_tokens": NOT_NEGATIVE,
    "reward.cosine.correct_short": NOT_NEGATIVE,
    "reward.cosine.correct_long": NOT_NEGATIVE,
    "reward.cosine.wrong_short_penalty": NOT_NEGATIVE,
    "reward.cosine.wrong_long_penalty": NOT_NEGATIVE,
    "reward.cosine.overflow_penalty": NOT_NEGATIVE,
    "reward.group_relative.alpha": NOT_NEGATIVE,
    "reward.deadline_s": POSITIVE,
    "reward.num_actors": COUNT,
}
"""The rule of every number in the reward section."""

REWARD_LIST_RULES: dict[str, Rule] = {
    "reward.thinkprune.limit_fracs": ("shares above 0 and at most 1", POSITIVE_SHARE[1]),
}
"""The rule of every item of every list in the reward section."""


def reward_problems(config: RunConfig) -> Iterator[str]:
    """What is wrong between settings of the length reward that is in use."""
    reward, buckets_tokens = config.reward, config.buckets_tokens
    yield from _code_problems(config)
    if reward.length == "soft_barrier" and buckets_tokens:
        ramp_start = (1 - reward.soft_barrier.half_width_frac) * min(buckets_tokens)
        if ramp_start >= config.rollout.max_completion_tokens:
            yield (
                f"budget.buckets_tokens: expected a budget whose ramp starts below rollout.max_completion_tokens "
                f"{config.rollout.max_completion_tokens}, found the first at {ramp_start:g} tokens: "
                f"every completion would get the same length reward"
            )
    fracs = reward.thinkprune.limit_fracs
    if reward.length == "thinkprune" and list(fracs) != sorted(fracs, reverse=True):
        yield expected("reward.thinkprune.limit_fracs", "each at most the one before (limits get tighter)", list(fracs))
    cosine = reward.cosine
    if reward.length == "cosine" and cosine.correct_long > cosine.correct_short:
        words = f"at most reward.cosine.correct_short {cosine.correct_short} (else long right answers earn more)"
        yield expected("reward.cosine.correct_long", words, cosine.correct_long)


def _code_problems(config: RunConfig) -> Iterator[str]:
    """The verifier `code` must end by itself: where the deadline comes first, the whole scoring process is killed."""
    for source in map(config.resolved, (*config.data.train, *config.data.evaluation)):
        total_s = source.verifier_args.get("total_timeout_s", CODE_TOTAL_TIMEOUT_S)
        if source.verifier == "code" and isinstance(total_s, int | float) and total_s >= config.reward.deadline_s:
            yield expected(
                "reward.deadline_s",
                f"more than total_timeout_s {total_s:g} of the verifier code",
                config.reward.deadline_s,
            )
