"""What is wrong with the settings of heads and parallel scaling; part of `configs.checks`."""

from collections.abc import Iterator

from configs.checks.rules import BELOW_ONE, COUNT, NOT_NEGATIVE, POSITIVE, POSITIVE_SHARE, SHARE, Rule, expected
from configs.schema.run import RunConfig

HEADS_RULES: dict[str, Rule] = {
    "data.easy.num_tasks": NOT_NEGATIVE,
    "data.easy.weight": POSITIVE,
    "data.hard.weight": POSITIVE,
    "data.hard.num_tasks": NOT_NEGATIVE,
    "heads.num_tasks": (
        "0, or at least 2 (one to train on and one to validate)",
        lambda value: value == 0 or value > 1,
    ),
    "heads.samples_per_task": COUNT,
    "heads.temperature": NOT_NEGATIVE,
    "heads.validation_frac": ("above 0 and below 1", lambda value: 0 < value < 1),
    "heads.num_source_tasks": COUNT,
    "heads.max_accuracy_loss": SHARE,
    "heads.reasoning_share": SHARE,
    "heads.chunk_tokens": COUNT,
    "heads.ema_alpha": POSITIVE_SHARE,
    "heads.switcher_dropout": BELOW_ONE,
    "heads.switcher_noise": NOT_NEGATIVE,
    "heads.learning_rate": POSITIVE,
    "heads.weight_decay": NOT_NEGATIVE,
    "heads.num_epochs": COUNT,
    "scaling.num_tasks": NOT_NEGATIVE,
    "scaling.samples_per_task": COUNT,
    "scaling.num_draws": COUNT,
    "scaling.temperature": POSITIVE,
    "scaling.top_p": POSITIVE_SHARE,
    "scaling.num_timed_tasks": NOT_NEGATIVE,
}
HEADS_LIST_RULES: dict[str, Rule] = {
    "data.easy.difficulties": ("numbers of operations of at least 1", lambda value: value >= 1),
    "data.hard.difficulties": ("numbers of operations of at least 1", lambda value: value >= 1),
    "scaling.sizes": ("numbers of completions of at least 1", lambda value: value >= 1),
    "scaling.caps_tokens": ("caps of at least 1 token", lambda value: value >= 1),
}


def heads_problems(config: RunConfig) -> Iterator[str]:
    heads, scaling = config.heads, config.scaling
    if heads.num_tasks and not heads.verification_prompt:
        yield expected("heads.verification_prompt", "text", heads.verification_prompt)
    if scaling.num_tasks and max(scaling.sizes, default=0) > scaling.samples_per_task:
        limit = f"at most scaling.samples_per_task {scaling.samples_per_task}"
        yield expected("scaling.sizes", limit, list(scaling.sizes))
    limit_tokens = config.evaluation.max_completion_tokens
    for cap in scaling.caps_tokens:
        if cap >= limit_tokens:
            yield expected(
                "scaling.caps_tokens", f"less than the {limit_tokens} tokens that a completion may have", cap
            )
    same = [getattr(config.data.easy, name) for name in ("source", "subset", "split", "difficulties")] == [
        getattr(config.data.hard, name) for name in ("source", "subset", "split", "difficulties")
    ]
    if heads.num_tasks and heads.switcher_labels == "sources" and same:
        yield "data.hard: expected other prompts than data.easy's with heads.switcher_labels sources, found the same"
