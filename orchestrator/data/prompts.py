"""The seeded prompts of a run: training prompts by index, held-out prompts as a list."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from actors.types import HardCap, Prompt, Task
from configs.schema.run import BudgetSection, RunConfig
from orchestrator.data.tasks import TaskStream, held_out_tasks, make_prompt

log = logging.getLogger(__name__)

MAX_ATTEMPTS = 100


class Prompter:
    """Task and prompt of any index of the training stream; the same for every call."""

    def __init__(self, config: RunConfig, tokenizer: Any):
        self._config, self._tokenizer = config, tokenizer
        sources = [config.resolved(source) for source in config.data.train]
        self._stream = TaskStream(sources, config.budget, config.run.seed, config.rl.groups_per_step)
        self.num_too_long = 0
        """Tasks passed over because their prompt has more than `max_prompt_tokens` tokens."""

    def at(self, index: int) -> tuple[Task, Prompt]:
        """Raises ValueError when a hundred tasks in a row are too long for the model."""
        for attempt in range(MAX_ATTEMPTS):
            task, budget_tokens = self._stream.at(index, attempt)
            prompt = make_prompt(
                task,
                budget_tokens,
                self._config.budget,
                self._tokenizer,
                self._config.max_prompt_tokens,
                self._config.model.masked_lora,
            )
            if prompt is not None:
                return task, prompt
            self.num_too_long += 1
        raise ValueError(
            f"expected a prompt of at most {self._config.max_prompt_tokens} tokens (model.max_length_tokens less the "
            f"longest completion), found {MAX_ATTEMPTS} longer ones in a row; the last is task {task.task_id}"
        )


def held_out_prompts(config: RunConfig, tokenizer: Any) -> list[tuple[Task, Prompt]]:
    """The evaluation tasks whose prompts fit."""
    sources = [config.resolved(source) for source in config.data.evaluation]
    tasks = held_out_tasks(sources, config.budget, config.evaluation.num_tasks, config.run.seed)
    return fitting_prompts(tasks, config, tokenizer)


def fitting_prompts(tasks: Sequence[tuple[Task, int]], config: RunConfig, tokenizer: Any) -> list[tuple[Task, Prompt]]:
    """Prompts of tasks with their budgets in tokens, those that fit; says how many do not.

    Raises ValueError when none does.
    """
    fits = (config.max_prompt_tokens, config.model.masked_lora)
    pairs = [(task, make_prompt(task, budget_tokens, config.budget, tokenizer, *fits)) for task, budget_tokens in tasks]
    fitting = [(task, prompt) for task, prompt in pairs if prompt is not None]
    source = ", ".join(dict.fromkeys(task.source for task, _ in tasks)) or "no tasks"
    if len(fitting) < len(pairs):
        log.warning(
            "%s: %d of %d tasks left out: prompts over %d tokens",
            source,
            len(pairs) - len(fitting),
            len(pairs),
            config.max_prompt_tokens,
        )
    if not fitting:
        raise ValueError(f"{source}: expected prompts of at most {config.max_prompt_tokens} tokens, found none")
    return fitting


def make_cap(num_tokens: int, budget: BudgetSection, tokenizer: Any) -> HardCap:
    """The cap with its forced text as tokens.

    Raises ValueError when the tokenizer cannot write the text.
    """
    text = budget.forced_answer_text
    token_ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if not token_ids or tokenizer.unk_token_id in token_ids:
        raise ValueError(f"budget.forced_answer_text: expected text that the model has tokens for, found {text!r}")
    return HardCap(
        num_tokens=num_tokens,
        forced_token_ids=np.asarray(token_ids, dtype=np.int32),
        answer_tokens=budget.answer_tokens,
    )
