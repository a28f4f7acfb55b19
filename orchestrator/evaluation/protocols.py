"""Published benchmarks (`configs.protocols`), each measured by its own protocol for every policy of the run.

What was measured with the same settings on the same adapter stays; so a call with more names, or after more training,
adds what is missing.
"""

import json
import logging
from dataclasses import asdict, replace
from typing import Any

from actors.types import Prompt, Task
from configs.protocols import Protocol, load_protocols
from configs.schema.run import EvaluationSection, RunConfig
from orchestrator.data.prompts import fitting_prompts
from orchestrator.data.tasks import held_out_tasks
from orchestrator.evaluation.evaluate import evaluate, make_record, sample_rows
from orchestrator.record import run_files
from orchestrator.record.metrics import as_metrics, summarise
from orchestrator.stage import Stage

log = logging.getLogger(__name__)

Row = dict[str, Any]
KEY = (
    *("protocol", "policy", "adapter_sha256", "num_asked", "num_runs", "temperature", "top_p"),
    *("max_completion_tokens", "budgets_tokens"),
)
"""What makes two measurements the same one."""


def evaluate_protocols(stage: Stage, policies: dict[str, tuple[int, str]]) -> list[Row]:
    """What is missing of every protocol for every policy: name → adapter version that the engines hold, its SHA-256.

    Returns all rows that the configuration asks for; they are written after each measurement.
    """
    config = stage.config
    path = config.run_dir / run_files.PROTOCOLS_FILE
    there = read_rows(config)
    rows: list[Row] = []
    dispatcher = stage.cluster.make_evaluation_dispatcher()
    for protocol in load_protocols(config.protocols):
        evaluation = make_evaluation(protocol, config)
        prompts: list[tuple[Task, Prompt]] = []
        for policy, (version, adapter_sha256) in policies.items():
            row: Row = describe(protocol, evaluation, config) | {"policy": policy, "adapter_sha256": adapter_sha256}
            if found := find_same(row, there):
                rows.append(found)
                continue
            prompts = prompts or make_prompts(protocol, stage)
            finished = evaluate(dispatcher, prompts, evaluation, version)
            records = [make_record(one) for one in finished]
            summary = summarise(records)
            row |= asdict(summary)
            name = f"{policy}.{protocol.name}"
            samples = sample_rows(finished, stage.prompt_text)
            run_files.write_evaluation(config.run_dir, name, records, samples)
            stage.tracker.log_table(samples, f"samples/{name}")
            stage.tracker.log_metrics(as_metrics(f"eval/{policy}/{protocol.name}", summary), step=0)
            log.info(
                "%s, %s: accuracy %.1f %% (%.1f to %.1f), %.0f tokens",
                *(protocol.name, policy, 100 * summary.accuracy, 100 * summary.accuracy_low),
                *(100 * summary.accuracy_high, summary.mean_tokens),
            )
            rows.append(row)
            there = [other for other in there if not is_same_place(other, row)] + [row]
            run_files.write_text(path, json.dumps(there, indent=1))
    return rows


def make_evaluation(protocol: Protocol, config: RunConfig) -> EvaluationSection:
    """The run's settings of evaluation with the protocol's sampling; the shorter limit of tokens holds."""
    return replace(
        config.evaluation,
        samples_per_task=config.protocols.num_runs or protocol.num_runs,
        temperature=protocol.temperature,
        top_p=protocol.top_p,
        max_completion_tokens=min(protocol.max_completion_tokens, config.evaluation.max_completion_tokens),
    )


def describe(protocol: Protocol, evaluation: EvaluationSection, config: RunConfig) -> Row:
    """The settings of a measurement, and how far they are those of the protocol."""
    return {
        "protocol": protocol.name,
        "num_asked": config.protocols.num_tasks,
        "num_runs": evaluation.samples_per_task,
        "protocol_runs": protocol.num_runs,
        "temperature": evaluation.temperature,
        "top_p": evaluation.top_p,
        "max_completion_tokens": evaluation.max_completion_tokens,
        "protocol_max_completion_tokens": protocol.max_completion_tokens,
        "budgets_tokens": list(config.protocols.budgets_tokens),
    }


def make_prompts(protocol: Protocol, stage: Stage) -> list[tuple[Task, Prompt]]:
    """The benchmark's prompts that fit the model; with `protocols.num_tasks` a seeded choice of them."""
    config = stage.config
    budget = config.budget
    if config.protocols.budgets_tokens:
        budget = replace(budget, buckets_tokens=config.protocols.budgets_tokens, weights=())
    else:
        budget = replace(budget, prompt_template="{question}")
    tasks = held_out_tasks([config.resolved(protocol.source)], budget, config.protocols.num_tasks, config.run.seed)
    return fitting_prompts(tasks, replace(config, budget=budget), stage.tokenizer)


def read_rows(config: RunConfig) -> list[Row]:
    path = config.run_dir / run_files.PROTOCOLS_FILE
    return json.loads(path.read_text()) if path.is_file() else []


def is_complete(config: RunConfig, policies: tuple[str, ...]) -> bool:
    """Whether every protocol was measured for every policy with the settings of the configuration."""
    there = read_rows(config)
    for protocol in load_protocols(config.protocols):
        row = describe(protocol, make_evaluation(protocol, config), config)
        keys = [key for key in KEY if key not in ("policy", "adapter_sha256")]
        done = {other["policy"] for other in there if all(other.get(key) == row[key] for key in keys)}
        if not set(policies) <= done:
            return False
    return True


def find_same(row: Row, there: list[Row]) -> Row | None:
    return next((other for other in there if all(other.get(key) == row[key] for key in KEY)), None)


def is_same_place(one: Row, other: Row) -> bool:
    """Rows of one protocol and policy: the newer replaces the older."""
    return (one["protocol"], one["policy"]) == (other["protocol"], other["policy"])
