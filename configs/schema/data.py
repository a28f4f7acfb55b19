"""Settings of the data: where tasks and conversations come from, and how rows are read."""

import re
from dataclasses import dataclass, field
from typing import Any, Literal

ARITHMETIC = "arithmetic"


@dataclass(frozen=True, kw_only=True)
class TaskSource:
    """Where tasks come from: the built-in generator, a hub dataset or a local file."""

    source: str = ARITHMETIC
    """`arithmetic`, `code` (forty small programming tasks), a local file (.json, .jsonl, .ndjson, also with .gz, .parquet, .csv, .tsv), a directory or a pattern of
    such files, a Hugging Face dataset name, or a function of your own that returns rows, `package.module:function`. Fields of rows
    may be nested: `reward_model.ground_truth`."""
    source_args: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of a function that returns rows."""
    preset: Literal[
        "none",
        "gsm8k",
        "math500",
        "svamp",
        "addsub",
        "aime",
        "amc",
        "mmlu",
        "gpqa",
        "strategyqa",
        "code",
        "humaneval",
        "mbpp",
        "livecodebench",
    ] = "none"
    """Fills the fields below that are left at their defaults."""
    subset: str = ""
    """Configuration of a hub dataset; empty: the only one."""
    split: str = "train"
    """Split of a hub dataset."""
    rows_field: str = ""
    """The field with the rows, of a .json file that holds one object."""
    question_template: str = "{question}"
    """The question, made of row fields, e.g. `{Body} {Question}`; `{choices}` is the lettered list of a multiple choice. A single field that
    holds a list of turns gives the task's messages as they are."""
    choice_fields: tuple[str, ...] = ()
    """Multiple choice: one field with a list of the choices, or a field for each, the right one first (they are put in
    a seeded order). The answer is a letter."""
    labels: tuple[str, ...] = ()
    """Answers are one of these words rather than mathematics; for yes-or-no questions yes, no."""
    answer_field: str = "answer"
    """Where a row has its reference answer; dots name nested fields. Empty: rows have none, and a verifier of your own does
    without."""
    verifier: str = ""
    """Judges this source's tasks in place of `reward.verifier`."""
    verifier_args: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of that verifier."""
    verifier_fields: tuple[str, ...] = ()
    """Row fields that the verifier is told besides the reference answer."""
    answer_pattern: str = ""
    """Regular expression with one group, searched in the answer field; the last match counts. Empty: all of it."""
    budget_field: str = ""
    """Row field with the task's own budget in tokens, instead of a bucket; rows without a value get a bucket."""
    system_prompt: str = ""
    """Put before the question as a system turn; empty: none."""
    num_tasks: int = 0
    """Use the first so many rows; 0 is all of them (arithmetic: endless)."""
    difficulties: tuple[int, ...] = (1, 2, 3, 4)
    """Arithmetic only: numbers of operations, equally likely."""
    name: str = ""
    """What metrics and reports call it; empty: the file, dataset or function without its directory. Sources of a mixture have names
    of their own."""
    weight: float = 1.0
    """In a mixture: how often its tasks are drawn, relative to the others."""
    prompt_template: str = ""
    """How prompts of this source name the budget, in place of `budget.prompt_template`."""
    buckets_tokens: tuple[int, ...] = ()
    """Budgets of this source, all equally likely, in place of `budget.buckets_tokens`."""
    held_out: bool = False
    """Arithmetic only: draw from the held-out split. Other sources have splits or files of their own."""

    @property
    def label(self) -> str:
        """Its name, or one made of `source`: `data/mine.jsonl` → `mine`, `openai/gsm8k` → `gsm8k`."""
        if self.name:
            return self.name
        last = self.source.rstrip("/").rpartition("/")[2].rpartition(":")[2]
        return re.sub(r"[^A-Za-z0-9_-]+", "_", re.sub(r"(\.gz|\.[A-Za-z]+)+$", "", last)).strip("_") or "tasks"


@dataclass(frozen=True, kw_only=True)
class SftSource:
    """Where SFT conversations come from."""

    source: str = ARITHMETIC
    """The same as for tasks; `arithmetic` writes traces for its own tasks."""
    source_args: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of a function that returns rows."""
    preset: Literal["none", "openthoughts3", "mixture_of_thoughts", "gsm8k"] = "none"
    """Field names of a public dataset; settings that are given beside it win."""
    subset: str = ""
    """Configuration of a hub dataset; empty: the only one."""
    split: str = "train"
    """Split of a hub dataset."""
    layout: Literal["prompt_completion", "messages"] = "prompt_completion"
    """Whether a row has a prompt and a completion, or one list of turns."""
    prompt_template: str = "{prompt}"
    """The prompt, made of row fields; layout `prompt_completion`."""
    completion_template: str = "{completion}"
    """The completion, made of row fields; layout `prompt_completion`."""
    messages_field: str = "messages"
    """Layout `messages`: a list of turns, as role/content or from/value; only assistant tokens are trained on."""
    system_prompt: str = ""
    """Put before the question as a system turn; empty: none."""
    num_rows: int = 0
    """Use the first so many rows; 0 is all of them (arithmetic: one per row that training asks for)."""
    verbosity: tuple[float, ...] = (0.6, 0.8, 1.0)
    """Arithmetic only: probability of each restatement or check, one drawn per trace."""


@dataclass(frozen=True, kw_only=True)
class DataSection:
    """Tasks and conversations of each stage."""

    train: tuple[TaskSource, ...] = (TaskSource(),)
    """Tasks of RL: one source, or a list of them with weights."""
    evaluation: tuple[TaskSource, ...] = (TaskSource(held_out=True),)
    """Held-out tasks: one source, or a list of them with weights."""
    sft: SftSource = field(default_factory=SftSource)
    easy: TaskSource = field(default_factory=lambda: TaskSource(difficulties=(1,)))
    """For `heads.switcher_labels=sources`: prompts that base mode answers."""
    hard: TaskSource = field(default_factory=lambda: TaskSource(difficulties=(2, 3, 4)))
    """For the same: prompts that want reasoning."""
