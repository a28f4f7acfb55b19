"""Accuracy and length on held-out tasks: the base, the SFT adapter and the RL adapter, on the same prompts.

Hard caps are evaluated on the same completions: each is cut at the cap and made to answer, so policies and caps are
compared pair by pair, and a cap costs no more than the answers it forces.
"""

from collections.abc import Sequence

from actors.engine import Sampling
from actors.inference import BASE, REASONING
from actors.rollout import BASE_VERSION
from actors.types import EvaluationRecord, HardCap, Prompt, RolloutGroup, Task
from configs.schema.run import EvaluationSection
from orchestrator.cluster.cluster import Cluster
from orchestrator.cluster.inference_pool import InferenceRequest, Inferred
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
    finished = cluster.make_inference_pool().run(make_requests(prompts, config, version))
    groups = [
        RolloutGroup(group_id=index, task_id=inferred.request.task.task_id, rollouts=inferred.rollouts)
        for index, inferred in enumerate(finished)
    ]
    return [make_record(inferred) for inferred in finished], groups


def make_requests(
    prompts: Sequence[tuple[Task, Prompt]], config: EvaluationSection, version: int
) -> list[InferenceRequest]:
    return [
        InferenceRequest(
            task=task,
            prompt=prompt,
            n=config.samples_per_task,
            sampling=make_sampling(config),
            version=version,
            mode=mode_of(version),
        )
        for task, prompt in prompts
    ]


def evaluate_caps(
    cluster: Cluster,
    tasks: Sequence[Task],
    groups: Sequence[RolloutGroup],
    config: EvaluationSection,
    caps: Sequence[HardCap],
) -> list[EvaluationRecord]:
    """The completions of `groups`, one group a task as `evaluate` returns them, under each cap in turn."""
    requests = [
        InferenceRequest(
            task=task,
            prompt=group.rollouts[0].prompt,
            n=len(group.rollouts),
            sampling=make_sampling(config),
            version=group.policy_version,
            mode=mode_of(group.policy_version),
            cap=cap,
            drafts=tuple(rollout.completion for rollout in group.rollouts),
        )
        for cap in caps
        for task, group in zip(tasks, groups, strict=True)
    ]
    return [make_record(inferred) for inferred in cluster.make_inference_pool().run(requests)]


def make_sampling(config: EvaluationSection) -> Sampling:
    return Sampling(temperature=config.temperature, top_p=config.top_p, max_tokens=config.max_completion_tokens)


def mode_of(version: int) -> str:
    return BASE if version == BASE_VERSION else REASONING


def make_record(inferred: Inferred) -> EvaluationRecord:
    """What is kept of it."""
    request, rollouts = inferred.request, inferred.rollouts
    num_forced = tuple(int(rollout.completion.forced.sum()) for rollout in rollouts)
    return EvaluationRecord(
        task_id=request.task.task_id,
        difficulty=request.task.difficulty,
        mode=inferred.inference.mode,
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
        seconds=inferred.seconds,
    )
