"""Accuracy and length on held-out tasks: the base, the SFT adapter and the RL adapter, on the same prompts.

Hard caps are evaluated on the same completions: each is cut at the cap and made to answer, so policies and caps are
compared pair by pair, and a cap costs no more than the answers it forces.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from actors.types import (
    BASE,
    BASE_VERSION,
    REASONING,
    HardCap,
    Prompt,
    Reads,
    Request,
    Sampling,
    Task,
)
from configs.schema.run import EvaluationSection
from orchestrator.cluster.dispatcher import Dispatcher, Finished
from orchestrator.record.evaluations import EvaluationRecord
from orchestrator.record.run_files import PromptText, sample_row
from rewards.base import Outcome


def evaluate(
    dispatcher: Dispatcher, prompts: Sequence[tuple[Task, Prompt]], config: EvaluationSection, version: int
) -> list[Finished]:
    """Complete and score every prompt, in the order of `prompts`.

    `version` is an adapter that every engine has loaded, or -1 for the base.
    """
    return dispatcher.run(make_requests(prompts, config, version))


def make_requests(prompts: Sequence[tuple[Task, Prompt]], config: EvaluationSection, version: int) -> list[Request]:
    sampling = Sampling(temperature=config.temperature, top_p=config.top_p, max_tokens=config.max_completion_tokens)
    return [
        Request(
            request_id=index,
            task=task,
            prompt=prompt,
            n=config.samples_per_task,
            sampling=sampling,
            version=version,
            mode=BASE if version == BASE_VERSION else REASONING,
            returns="samples",
        )
        for index, (task, prompt) in enumerate(prompts)
    ]


def prompt_requests(prompts: Sequence[tuple[Task, Prompt]], reads: Reads) -> list[Request]:
    """Requests that read what the base makes of the prompts and generate nothing."""
    nothing = Sampling(temperature=0.0, max_tokens=1)
    return [
        Request(
            request_id=index,
            task=task,
            prompt=prompt,
            n=0,
            sampling=nothing,
            version=BASE_VERSION,
            mode=BASE,
            reads=reads,
            returns="samples",
        )
        for index, (task, prompt) in enumerate(prompts)
    ]


def evaluate_caps(
    dispatcher: Dispatcher, drafts: Sequence[Finished], caps: Sequence[HardCap]
) -> list[EvaluationRecord]:
    """The completions of `drafts` under each cap in turn. They go from engine to engine, not through the driver."""
    capped = [replace(draft.request, cap=cap) for cap in caps for draft in drafts]
    return [make_record(finished) for finished in dispatcher.run(capped, [*drafts] * len(caps))]


def make_record(finished: Finished) -> EvaluationRecord:
    """What is kept of it."""
    request, samples = finished.request, finished.samples
    return EvaluationRecord(
        task_id=request.task.task_id,
        difficulty=request.task.difficulty,
        mode=finished.inference.mode,
        cap=0 if request.cap is None else request.cap.num_tokens,
        n=len(samples),
        answers=tuple(sample.reward.answer for sample in samples),
        outcomes=tuple(str(sample.reward.outcome) for sample in samples),
        tokens=tuple(sample.num_tokens - sample.num_forced_tokens for sample in samples),
        forced_tokens=tuple(sample.num_forced_tokens for sample in samples),
        correct=tuple(sample.reward.outcome == Outcome.CORRECT for sample in samples),
        truncated=tuple(sample.finish_reason == "length" or sample.num_forced_tokens > 0 for sample in samples),
        seconds=finished.seconds,
        source=request.task.source,
        budget_tokens=request.prompt.budget_tokens,
    )


def sample_rows(finished: Sequence[Finished], prompt_text: PromptText) -> list[dict[str, Any]]:
    """Every sample for people to read, in order."""
    return [
        sample_row(one.request.prompt, sample, sample.text, prompt_text) for one in finished for sample in one.samples
    ]
