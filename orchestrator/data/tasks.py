"""Tasks of a run: a seeded stream for training, a fixed set for evaluation, and the prompts they become.

Every item follows from the seed and its index alone, so the stream's position is an index: saving the index saves
the stream, and a resumed run gets what an uninterrupted one would have got, without replaying anything.
"""

import logging
import random
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from string import ascii_uppercase
from typing import Any

import numpy as np

from actors.types import Prompt, Task
from configs.presets import apply_preset
from configs.schema.data import ARITHMETIC, TaskSource
from configs.schema.run import BudgetSection
from orchestrator.data import arithmetic
from orchestrator.data.choices import lettered, read_choices, read_label
from orchestrator.data.mixture import Schedule, apportion
from orchestrator.data.reference_checks import check_references
from orchestrator.data.sources import (
    load_rows,
    read_answer,
    read_budget,
    read_fields,
    read_messages,
    render,
    with_system_prompt,
)

log = logging.getLogger(__name__)

Seed = int | str
ARITHMETIC_SOURCE = TaskSource()
MAX_DUPLICATES = 1000
"""Held-out draws in a row that were there already before the split counts as used up."""


class TaskStream:
    """Tasks of all sources with their budgets at index 0, 1, 2, …"""

    def __init__(self, sources: Sequence[TaskSource], budget: BudgetSection, seed: int, prompts_per_step: int = 1):
        """Reads all rows of datasets, so that a bad one raises ValueError now and not in the middle of a run.

        `prompts_per_step` counts the curriculum's steps.
        """
        seeds = source_seeds(sources, seed)
        self._streams = [_SourceStream(source, budget, own) for source, own in zip(sources, seeds, strict=True)]
        self._schedule = Schedule([source.weight for source in sources], seed)
        self._budget, self._prompts_per_step = budget, prompts_per_step

    def at(self, index: int, attempt: int = 0) -> tuple[Task, int]:
        """Task and budget in tokens. Attempts after 0 are other tasks of the same source, for when the prompt of this one is too
        long."""
        number, place = self._schedule.at(index)
        task, budget_tokens = self._streams[number].at(place, attempt)
        factor = curriculum_factor(self._budget, index // self._prompts_per_step)
        return task, max(1, round(factor * budget_tokens))


class _SourceStream:
    """Tasks of one source, epoch after epoch, each in another seeded order.

    Arithmetic without `num_tasks` is endless and makes the task of each index; the same chain may come again.
    """

    def __init__(self, source: TaskSource, budget: BudgetSection, seed: Seed):
        self._source, self._budget, self._seed = source, budget_of(source, budget), seed
        self._tasks: list[Task] | None = None
        if source.source != ARITHMETIC:
            self._tasks = load_tasks(source)
        elif source.num_tasks:
            self._tasks = [self._make_arithmetic(f"row/{row}", row) for row in range(source.num_tasks)]

    def at(self, index: int, attempt: int) -> tuple[Task, int]:
        where = f"{index}/{attempt}"
        if self._tasks is None:
            task = self._make_arithmetic(where, index)
        elif attempt:
            task = self._tasks[seeded_rng(self._seed, "attempt", where).randrange(len(self._tasks))]
        else:
            task = self._tasks[shuffled_position(self._seed, index, len(self._tasks))]
        return task, draw_budget(seeded_rng(self._seed, "budget", where), self._budget, task)

    def _make_arithmetic(self, where: str, number: int) -> Task:
        rng = seeded_rng(self._seed, "arithmetic", where)
        chain = arithmetic.draw_split_chain(rng, rng.choice(self._source.difficulties) + 1, self._source.held_out)
        return arithmetic_task(chain, number, self._source)


def source_seeds(sources: Sequence[TaskSource], seed: int) -> list[Seed]:
    """A seed for each source of a mixture; one alone has the run's."""
    return [seed] if len(sources) == 1 else [f"{seed}/{source.label}" for source in sources]


def budget_of(source: TaskSource, budget: BudgetSection) -> BudgetSection:
    """The budgets of a source: its own buckets, all equally likely, or the run's."""
    return replace(budget, buckets_tokens=source.buckets_tokens, weights=()) if source.buckets_tokens else budget


def held_out_tasks(
    sources: Sequence[TaskSource], budget: BudgetSection, num_tasks: int, seed: int
) -> list[tuple[Task, int]]:
    """Distinct tasks with their budgets, the same for every call with the same seed; of a mixture, source after source, as many of
    each as its weight says (0: all)."""
    counts = apportion([source.weight for source in sources], num_tasks) if num_tasks else [0] * len(sources)
    seeds = source_seeds(sources, seed)
    return [
        pair
        for source, count, own in zip(sources, counts, seeds, strict=True)
        if count or not num_tasks
        for pair in _held_out_of(source, budget_of(source, budget), count, own)
    ]


def _held_out_of(source: TaskSource, budget: BudgetSection, num_tasks: int, seed: Seed) -> list[tuple[Task, int]]:
    """Of a dataset `num_tasks` rows in a seeded order, or all rows when there are fewer or `num_tasks` is 0; of arithmetic
    equally many of each difficulty. Raises ValueError when arithmetic has not that many different chains.
    """
    if source.source == ARITHMETIC:
        tasks = _distinct_arithmetic(source, num_tasks, seed)
    else:
        rows = load_tasks(source)
        if len(rows) < num_tasks:
            log.info("%s has %d tasks for evaluation, %d were asked for", source.source, len(rows), num_tasks)
        wanted = min(num_tasks or len(rows), len(rows))
        tasks = [rows[shuffled_position(seed, index, len(rows))] for index in range(wanted)]
    return [
        (task, draw_budget(seeded_rng(seed, "held_out_budget", index), budget, task))
        for index, task in enumerate(tasks)
    ]


def load_tasks(source: TaskSource) -> list[Task]:
    """Every row of a dataset as a task, reference answers checked. Raises ValueError naming file, row and field of a row
    that is none."""
    tasks = read_tasks(source)
    check_references(tasks)
    return tasks


def read_tasks(source: TaskSource) -> list[Task]:
    """`load_tasks` without a look at the reference answers."""
    source = apply_preset(source)
    rows = load_rows(source)
    tasks = []
    for index, row in enumerate(rows):
        where = rows.where(index)
        labels = source.labels
        if source.choice_fields:
            choices, answer = read_choices(row, source, where, index)
            row = {**row, "choices": lettered(choices)}
            labels = tuple(ascii_uppercase[: len(choices)])
        else:
            answer = read_label(row, source, where) if labels else read_answer(row, source, where)
        fields = read_fields(row, source.verifier_fields, where)
        turns = read_messages(row, source.question_template, where)
        turns = turns or [{"role": "user", "content": render(source.question_template, row, where)}]
        tasks.append(
            Task(
                task_id=f"{source.name or rows.name}/{index + 1}",
                messages=tuple(with_system_prompt(turns, source.system_prompt)),
                reference_answer=answer,
                source=source.label,
                prompt_template=source.prompt_template,
                labels=labels,
                budget_tokens=read_budget(row, source, where),
                verifier=source.verifier,
                verifier_args=source.verifier_args,
                fields=fields,
            )
        )
    return tasks


def first_task(source: TaskSource, seed: int) -> Task:
    """One task, to see how it is rendered."""
    if source.source == ARITHMETIC:
        return _distinct_arithmetic(source, 1, seed)[0]
    return read_tasks(replace(source, num_tasks=1))[0]


def arithmetic_task(chain: arithmetic.Chain, number: int, source: TaskSource = ARITHMETIC_SOURCE) -> Task:
    return Task(
        task_id=f"{source.label}/{number}",
        messages=tuple(with_system_prompt([{"role": "user", "content": chain.question}], source.system_prompt)),
        reference_answer=str(chain.answer),
        source=source.label,
        prompt_template=source.prompt_template,
        difficulty=chain.difficulty,
        verifier=source.verifier,
        verifier_args=source.verifier_args,
    )


def draw_budget(rng: random.Random, budget: BudgetSection, task: Task) -> int:
    """The task's own budget; else one of the buckets by their weights, and the allowance for the task's difficulty."""
    if task.budget_tokens is not None:
        return task.budget_tokens
    if budget.weights:
        (bucket,) = rng.choices(budget.buckets_tokens, budget.weights)
    else:
        bucket = rng.choice(budget.buckets_tokens)
    return bucket + budget.per_difficulty_tokens * task.difficulty


def curriculum_factor(budget: BudgetSection, step: int) -> float:
    """What training budgets are multiplied by at an RL step: linearly from `curriculum_factor` to 1.

    Example: factor 3 over 10 steps: 3 at step 0, 2 at step 5, 1 from step 10 on.
    """
    if budget.curriculum_steps == 0:
        return 1.0
    progress = min(1.0, step / budget.curriculum_steps)
    return budget.curriculum_factor + (1.0 - budget.curriculum_factor) * progress


def adapter_start(num_prompt_tokens: int, masked_lora: bool) -> int:
    """First position at which the adapter acts: the last prompt token, so it has a say in the first token sampled.

    Engines compute that token anew in any case, so nothing that could be shared is lost. 0 without masking.
    """
    return max(0, num_prompt_tokens - 1) if masked_lora else 0


def make_prompt(
    task: Task, budget_tokens: int, budget: BudgetSection, tokenizer: Any, max_prompt_tokens: int, masked_lora: bool
) -> Prompt | None:
    """The task's chat with the budget named in its last user turn, as tokens; None when they are too many.

    The caller counts what it drops.
    """
    messages = name_budget(task, budget_tokens, budget)
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    token_ids = np.asarray(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=np.int32)
    if len(token_ids) > max_prompt_tokens:
        return None
    return Prompt(
        task_id=task.task_id,
        token_ids=token_ids,
        budget_tokens=budget_tokens,
        start=adapter_start(len(token_ids), masked_lora),
    )


def name_budget(task: Task, budget_tokens: int, budget: BudgetSection) -> list[dict[str, str]]:
    """The task's messages with its budget, by its source's template or the run's."""
    named = replace(budget, prompt_template=task.prompt_template) if task.prompt_template else budget
    return with_budget(task.messages, budget_tokens, named)


def with_budget(
    messages: tuple[dict[str, str], ...] | list[dict[str, str]], budget_tokens: int, budget: BudgetSection
) -> list[dict[str, str]]:
    """The messages with `prompt_template` around the last user turn.

    Raises ValueError when there is no user turn.
    """
    for index in reversed(range(len(messages))):
        if messages[index]["role"] == "user":
            named = budget.prompt_template.format(question=messages[index]["content"], budget_tokens=budget_tokens)
            return [*messages[:index], {"role": "user", "content": named}, *messages[index + 1 :]]
    raise ValueError(f"expected a user turn to name the budget in, found roles {[m['role'] for m in messages]}")


def shuffled_position(seed: Seed, index: int, num_rows: int) -> int:
    """Row at an index of the stream: each epoch is a permutation of all rows, another one every time."""
    epoch, place = divmod(index, num_rows)
    return _epoch_order(seed, epoch, num_rows)[place]


@lru_cache(maxsize=32)
def _epoch_order(seed: Seed, epoch: int, num_rows: int) -> tuple[int, ...]:
    order = list(range(num_rows))
    seeded_rng(seed, "epoch", epoch).shuffle(order)
    return tuple(order)


def _distinct_arithmetic(source: TaskSource, num_tasks: int, seed: Seed) -> list[Task]:
    rng = seeded_rng(seed, "held_out", 0)
    chains: dict[str, arithmetic.Chain] = {}
    num_duplicates = 0
    while len(chains) < num_tasks:
        difficulty = source.difficulties[len(chains) % len(source.difficulties)]
        chain = arithmetic.draw_split_chain(rng, difficulty + 1, source.held_out)
        num_duplicates = num_duplicates + 1 if chain.expression in chains else 0
        if num_duplicates > MAX_DUPLICATES:
            raise ValueError(
                f"expected {num_tasks} different tasks of difficulties {list(source.difficulties)}, found {len(chains)} "
                f"when those of difficulty {difficulty} ran out"
            )
        chains[chain.expression] = chain
    return [arithmetic_task(chain, number, source) for number, chain in enumerate(chains.values())]


def seeded_rng(seed: Seed, purpose: str, where: object) -> random.Random:
    """An independent generator; text seeds are hashed with SHA-512, the same on every machine."""
    return random.Random(f"{seed}/{purpose}/{where}")
