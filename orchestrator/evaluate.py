"""Accuracy and length on held-out tasks: the base, the SFT adapter and the RL adapter, on the same prompts."""

import time
from collections.abc import Sequence

from actors.engine import Sampling
from actors.rollout import BASE_VERSION
from actors.types import EvaluationRecord, Prompt, RolloutGroup, Task
from configs.schema import EvaluationSection
from orchestrator.cluster import Cluster
from orchestrator.dispatcher import GroupRequest
from rewards.base import Outcome


def evaluate(
    cluster: Cluster,
    prompts: Sequence[tuple[Task, Prompt]],
    config: EvaluationSection,
    version: int,
) -> tuple[list[EvaluationRecord], list[RolloutGroup]]:
    """Complete and score every prompt; records and groups in the order of `prompts`.

    `version` is an adapter that every engine has loaded, or -1 for the base.
    """
    sampling = Sampling(temperature=config.temperature, top_p=config.top_p, max_tokens=config.max_completion_tokens)
    dispatcher = cluster.make_dispatcher()
    started_s = time.monotonic()
    for index, (task, prompt) in enumerate(prompts):
        dispatcher.submit(
            GroupRequest(
                group_id=index,
                task=task,
                prompt=prompt,
                group_size=config.samples_per_task,
                sampling=sampling,
                policy_version=version,
            )
        )
    finished: dict[int, tuple[EvaluationRecord, RolloutGroup]] = {}
    while dispatcher.num_in_flight:
        for request, group in dispatcher.wait():
            seconds = time.monotonic() - started_s
            finished[request.group_id] = make_record(request.task, group, config, version, seconds), group
    in_order = [finished[index] for index in range(len(prompts))]
    return [record for record, _ in in_order], [group for _, group in in_order]


def make_record(
    task: Task, group: RolloutGroup, config: EvaluationSection, version: int, seconds: float
) -> EvaluationRecord:
    rollouts = group.rollouts
    return EvaluationRecord(
        task_id=task.task_id,
        difficulty=task.difficulty,
        mode="base" if version == BASE_VERSION else "reasoning",
        cap=config.max_completion_tokens,
        n=len(rollouts),
        answers=tuple(rollout.reward.answer for rollout in rollouts),
        tokens=tuple(rollout.completion.num_tokens for rollout in rollouts),
        correct=tuple(rollout.reward.outcome == Outcome.CORRECT for rollout in rollouts),
        truncated=tuple(rollout.completion.finish_reason == "length" for rollout in rollouts),
        seconds=seconds,
    )
