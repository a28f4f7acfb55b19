"""Hand-written stand-ins, for failures and for driver logic that needs no engine."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np

from actors import adapters
from actors.reward import summarise
from actors.types import AdapterRef, Completion, Inference, Prompt, Request, Rollout, RolloutGroup, Sampling, Task
from orchestrator.cluster.actor_pool import ActorPool
from orchestrator.cluster.dispatcher import Finished
from orchestrator.record.run_files import sample_row
from rewards.base import Outcome, RewardResult


def make_task(index: int = 0) -> Task:
    return Task(
        task_id=f"fake/{index}",
        messages=({"role": "user", "content": "1+1=?"},),
        reference_answer="2",
        source="fake",
        difficulty=1,
    )


def make_prompt(index: int = 0, num_tokens: int = 3) -> Prompt:
    token_ids = np.arange(1, num_tokens + 1, dtype=np.int32)
    return Prompt(task_id=f"fake/{index}", token_ids=token_ids, budget_tokens=None, start=0)


def make_completion(num_tokens: int = 4, version: int = 0, sha256: str = "a" * 64, text: str = "2") -> Completion:
    return Completion(
        token_ids=np.arange(10, 10 + num_tokens, dtype=np.int32),
        behaviour_logprobs=np.full(num_tokens, -0.5, dtype=np.float32),
        forced=np.zeros(num_tokens, dtype=bool),
        text=text,
        finish_reason="stop",
        policy_version=version,
        adapter_sha256=sha256,
        num_thinking_tokens=num_tokens,
    )


def make_group(
    rewards: Sequence[float], group_id: int = 0, version: int = 0, sha256: str = "a" * 64, num_tokens: int = 4
) -> RolloutGroup:
    """Its completions are there themselves, in place of their reference."""
    results = [
        RewardResult(
            value=value,
            outcome=Outcome.CORRECT if value > 0 else Outcome.WRONG,
            answer="2",
            breakdown={"accuracy": float(value > 0), "length": value},
        )
        for value in rewards
    ]
    completions = tuple(make_completion(num_tokens=num_tokens, version=version, sha256=sha256) for _ in rewards)
    return regroup(results, completions, group_id)


def regroup(results: Sequence[RewardResult], completions: Sequence[Completion], group_id: int = 0) -> RolloutGroup:
    """The group of these completions and their rewards."""
    return RolloutGroup(
        group_id=group_id,
        prompt=make_prompt(group_id),
        rollouts=cast(tuple[Rollout, ...], summarise(completions, results, "rollouts")),
        completions=completions,
    )


class FakeDispatcher:
    """Answers each request with a group whose rewards `rewards_of(group_id)` gives; in the order `finish` says.

    By default the oldest request finishes first, one per `wait`.
    """

    def __init__(self, rewards_of=lambda group_id: (0.0, 1.0), finish=min, sha256="a" * 64):
        self.requests: list[Request] = []
        self.submitted: list[tuple[int, int]] = []
        self._rewards_of, self._finish, self._sha256 = rewards_of, finish, sha256

    def submit(self, request: Request) -> None:
        self.requests.append(request)
        self.submitted.append((request.request_id, request.version))

    def num_in(self, stage: str) -> int:
        return len(self.requests) if stage == "generate" else 0

    def describe_waiting(self) -> str:
        return f"{len(self.requests)} groups in generate"

    def wait(self) -> list[Finished]:
        group_id = self._finish(request.request_id for request in self.requests)
        request = next(r for r in self.requests if r.request_id == group_id)
        self.requests.remove(request)
        group = make_group(self._rewards_of(group_id), group_id, request.version, self._sha256)
        return [replace(make_finished(request, group.rollouts), completions=group.completions)]


def make_sample_rows(groups: Sequence[RolloutGroup], prompt: str) -> list[dict[str, Any]]:
    """What an evaluation leaves of these groups, each prompt being this text."""
    return [
        sample_row(group.prompt, rollout, completion.text, lambda _: prompt)
        for group in groups
        for rollout, completion in zip(group.rollouts, group.completions, strict=True)
    ]


def make_request(prompt: Prompt | None = None, **settings: Any) -> Request:
    """By adapter 7, three completions, unless `settings` say otherwise."""
    index = settings.pop("request_id", 0)
    settings = {"n": 3, "sampling": Sampling(temperature=1.0, max_tokens=4), "version": 7, **settings}
    return Request(request_id=index, task=make_task(index), prompt=prompt or make_prompt(index), **settings)


def make_inference(mode: str = "reasoning") -> Inference:
    return Inference(
        mode=mode,
        switcher_score=None,
        verifier_scores=None,
        prompt_state=None,
        completion_states=None,
        prefill_s=0.0,
        switch_s=0.0,
        generate_s=0.0,
        verify_s=0.0,
    )


def make_finished(request: Request, scored: Sequence[Any]) -> Finished:
    return Finished(
        request=request, inference=make_inference(request.mode), completions=None, scored=tuple(scored), seconds=0.0
    )


def make_actor_pool(role: str, make: Callable[[int], Any], size: int, **settings: Any) -> ActorPool:
    """Of actors with a `ping` that answers when they serve."""
    settings = {"start_timeout_s": 60, "max_losses": 10, **settings}
    pool = ActorPool(role, size, make, lambda actor: actor.ping.remote(), **settings)
    pool.wait_for(size)
    return pool


def published(packed: adapters.Packed, version: int) -> tuple[AdapterRef, adapters.Packed]:
    """What a learner says of an adapter, and the adapter."""
    return adapters.make_ref(packed, version), packed


def make_ref(version: int) -> AdapterRef:
    return AdapterRef(version=version, sha256="a" * 64, size_bytes=1)
