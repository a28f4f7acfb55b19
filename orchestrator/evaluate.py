"""Accuracy and length on held-out tasks: the base, the SFT adapter and the RL adapter, on the same prompts.

Hard caps are evaluated on the same completions: each is cut at the cap and made to answer, so policies and caps are
compared pair by pair, and a cap costs no more than the answers it forces.
"""

import time
from collections.abc import Sequence

from actors.engine import Sampling
from actors.rollout import BASE_VERSION
from actors.types import EvaluationRecord, HardCap, Prompt, RolloutGroup, Task
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
    requests = [
        GroupRequest(
            group_id=index,
            task=task,
            prompt=prompt,
            group_size=config.samples_per_task,
            sampling=make_sampling(config),
            policy_version=version,
        )
        for index, (task, prompt) in enumerate(prompts)
    ]
    finished = run_requests(cluster, requests)
    return [record for record, _ in finished], [group for _, group in finished]


def evaluate_caps(
    cluster: Cluster,
    tasks: Sequence[Task],
    groups: Sequence[RolloutGroup],
    config: EvaluationSection,
    caps: Sequence[HardCap],
) -> list[EvaluationRecord]:
    """The completions of `groups`, one group a task as `evaluate` returns them, under each cap in turn."""
    requests = [
        GroupRequest(
            group_id=index,
            task=task,
            prompt=group.rollouts[0].prompt,
            group_size=len(group.rollouts),
            sampling=make_sampling(config),
            policy_version=group.policy_version,
            cap=cap,
            drafts=tuple(rollout.completion for rollout in group.rollouts),
        )
        for index, (cap, task, group) in enumerate(
            (cap, task, group) for cap in caps for task, group in zip(tasks, groups, strict=True)
        )
    ]
    return [record for record, _ in run_requests(cluster, requests)]


def make_sampling(config: EvaluationSection) -> Sampling:
    return Sampling(temperature=config.temperature, top_p=config.top_p, max_tokens=config.max_completion_tokens)


def run_requests(cluster: Cluster, requests: Sequence[GroupRequest]) -> list[tuple[EvaluationRecord, RolloutGroup]]:
    """Complete and score all of them at once; records and groups in the order of the requests, whose ids count from 0."""
    dispatcher = cluster.make_dispatcher()
    started_s = time.monotonic()
    for request in requests:
        dispatcher.submit(request)
    finished: dict[int, tuple[EvaluationRecord, RolloutGroup]] = {}
    while dispatcher.num_in_flight:
        for request, group in dispatcher.wait():
            finished[request.group_id] = make_record(request, group, time.monotonic() - started_s), group
    return [finished[index] for index in range(len(requests))]


def make_record(request: GroupRequest, group: RolloutGroup, seconds: float) -> EvaluationRecord:
    task, rollouts = request.task, group.rollouts
    num_forced = tuple(int(rollout.completion.forced.sum()) for rollout in rollouts)
    return EvaluationRecord(
        task_id=task.task_id,
        difficulty=task.difficulty,
        mode="base" if request.policy_version == BASE_VERSION else "reasoning",
        cap=0 if request.cap is None else request.cap.num_tokens,
        n=len(rollouts),
        answers=tuple(rollout.reward.answer for rollout in rollouts),
        outcomes=tuple(str(rollout.reward.outcome) for rollout in rollouts),
        tokens=tuple(r.completion.num_tokens - forced for r, forced in zip(rollouts, num_forced, strict=True)),
        forced_tokens=num_forced,
        correct=tuple(rollout.reward.outcome == Outcome.CORRECT for rollout in rollouts),
        truncated=tuple(
            r.completion.finish_reason == "length" or forced > 0 for r, forced in zip(rollouts, num_forced, strict=True)
        ),
        seconds=seconds,
    )
