"""One training prompt and one SFT row through the model's own tokenizer and chat template, before anything starts."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from actors.tokenizer import load_tokenizer, stop_token_ids
from configs.functions import is_task_function
from configs.keys import sections_of
from configs.models import is_local_data
from configs.schema.data import ARITHMETIC, SftSource, TaskSource
from configs.schema.run import RunConfig
from orchestrator.data.sft_rows import SftRows
from orchestrator.data.sources import preset_hint
from orchestrator.data.tasks import first_task, make_prompt
from orchestrator.record.failures import first_line

log = logging.getLogger(__name__)


def rendering_problems(config: RunConfig, directory: Path) -> Iterator[str]:
    """What the template refuses, or drops from what would be trained on. Data of the hub is not fetched for it."""
    try:
        tokenizer = load_tokenizer(str(directory), config.model)
        end_token_ids = stop_token_ids(str(directory), tokenizer)
    except Exception as error:  # transformers raises what it likes at a file that it cannot read
        yield f"model.path {config.model.path!r}: expected a tokenizer that can be loaded, found {first_line(error)}"
        return
    if "strftime_now" in str(tokenizer.chat_template):
        log.warning(
            "model.path %r: its chat template writes today's date into every prompt: a run that is resumed tomorrow%s, and "
            "the device, see other prompts",
            *(config.model.path, " (run.deterministic cannot help)" if config.run.deterministic else ""),
        )
    for key, source in sections_of(config, "data.train"):
        if _is_at_hand(source.source):
            yield from _problem(key, source, partial(_render_prompt, config, source, tokenizer))
    if _is_at_hand(config.data.sft.source) and config.sft.num_steps and not config.sft.adapter:
        yield from _problem("data.sft", config.data.sft, lambda: _render_row(config, tokenizer, end_token_ids))


def _is_at_hand(source: str) -> bool:
    return source == ARITHMETIC or is_task_function(source) or is_local_data(source)


def _problem(key: str, source: TaskSource | SftSource, render: Callable[[], Any]) -> Iterator[str]:
    try:
        render()
    except Exception as error:  # a chat template raises what it likes
        yield f"{key}: {first_line(error)}{preset_hint(key, source)}"


def _render_prompt(config: RunConfig, source: TaskSource, tokenizer: Any) -> None:
    task = first_task(config.resolved(source), config.run.seed)
    budget_tokens = max(source.buckets_tokens or config.budget.buckets_tokens)
    make_prompt(task, budget_tokens, config.budget, tokenizer, config.max_prompt_tokens, config.model.masked_lora)


def _render_row(config: RunConfig, tokenizer: Any, end_token_ids: tuple[int, ...]) -> None:
    sft = replace(config.data.sft, num_rows=1) if config.data.sft.source != ARITHMETIC else config.data.sft
    # However long it is: longer rows than the model's are dropped and counted as they come.
    model = replace(config.model, max_length_tokens=2**31)
    SftRows(replace(config, data=replace(config.data, sft=sft), model=model), tokenizer, end_token_ids).at(0)
