"""Completions scored per second while a share of them hangs math-verify.

    python -m tests.benchmarks.reward_actor [--quick]

Two reward actors, one thread each (an actor waits for its scoring process without holding the interpreter's
lock), score groups of short arithmetic completions, each actor the next group as soon as it is free. A share
of the completions is `\\boxed{9^{9^{9^9}}}`, at random places. What the deadlines leave possible is the time
of the same completions without the hanging ones, as measured in the 0 % row, plus one deadline for each
hanging one, spread evenly over both actors.
"""

import argparse
import random
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

import numpy as np

from actors.reward import RewardActor
from actors.types import Completion, Prompt, Request, Sampling, Task
from configs.schema.run import RewardSection

NUM_ACTORS = 2
GROUP_SIZE = 8
HANGING = "<think>9^9^9^9</think>\\boxed{9^{9^{9^9}}}"
HEALTHY = "<think>37+58=95. 95-12=83.</think>83"
TASK = Task(task_id="t", messages=(), reference_answer="83", source="benchmark")
PROMPT = Prompt(task_id="t", token_ids=np.arange(8, dtype=np.int32), budget_tokens=100, start=7)
REQUEST = Request(
    request_id=0, task=TASK, prompt=PROMPT, n=GROUP_SIZE, sampling=Sampling(temperature=1.0, max_tokens=40), version=0
)


def make_groups(num_groups: int, num_hanging: int) -> list[list[Completion]]:
    texts = [HANGING] * num_hanging + [HEALTHY] * (num_groups * GROUP_SIZE - num_hanging)
    random.Random(0).shuffle(texts)
    completions = [make_completion(text) for text in texts]
    return [completions[i : i + GROUP_SIZE] for i in range(0, len(completions), GROUP_SIZE)]


def make_completion(text: str) -> Completion:
    return Completion(
        token_ids=np.zeros(40, dtype=np.int32),
        behaviour_logprobs=np.zeros(40, dtype=np.float32),
        forced=np.zeros(40, dtype=bool),
        text=text,
        finish_reason="stop",
        policy_version=0,
        adapter_sha256="",
        num_thinking_tokens=40,
    )


def measure(actors: list[RewardActor], groups: list[list[Completion]]) -> tuple[float, Counter[str]]:
    """Seconds for all groups, and how many completions had which outcome."""
    queue: SimpleQueue[list[Completion] | None] = SimpleQueue()
    for group in [*groups, *[None] * len(actors)]:
        queue.put(group)

    def work(actor: RewardActor) -> Counter[str]:
        outcomes: Counter[str] = Counter()
        while (group := queue.get()) is not None:
            outcomes.update(rollout.reward.outcome.value for rollout in actor.score_group(REQUEST, group))
        return outcomes

    started = time.perf_counter()
    with ThreadPoolExecutor(len(actors)) as threads:
        outcomes = sum(threads.map(work, actors), Counter())
    return time.perf_counter() - started, outcomes


def main() -> None:
    parser = argparse.ArgumentParser(description="Throughput of reward actors while completions hang.")
    parser.add_argument("--quick", action="store_true", help="a deadline of 1 s and fewer completions, about 20 s")
    parser.add_argument("--deadline-s", type=float, default=0.0, help="default: reward.deadline_s (1 s with --quick)")
    arguments = parser.parse_args()
    deadline_s = arguments.deadline_s or (1.0 if arguments.quick else RewardSection().deadline_s)
    num_hanging = 12 if arguments.quick else 20
    actors = [RewardActor(RewardSection(deadline_s=deadline_s)) for _ in range(NUM_ACTORS)]
    try:
        measure(actors, make_groups(500, 0))
        baseline_groups = make_groups(4000, 0)
        baseline_s, _ = measure(actors, baseline_groups)
        healthy_s = baseline_s / (len(baseline_groups) * GROUP_SIZE)
        print(f"{NUM_ACTORS} actors, groups of {GROUP_SIZE}, deadline {deadline_s:g} s")
        print(f"{'hanging':>8} {'completions':>12} {'seconds':>8} {'per s':>9} {'possible per s':>15} {'ratio':>6}")
        print_row(0, len(baseline_groups) * GROUP_SIZE, baseline_s, baseline_s)
        for percent in (1, 10):
            num_completions = num_hanging * 100 // percent // GROUP_SIZE * GROUP_SIZE
            elapsed_s, outcomes = measure(actors, make_groups(num_completions // GROUP_SIZE, num_hanging))
            expected = {"timeout": num_hanging, "correct": num_completions - num_hanging}
            if outcomes != expected:
                raise RuntimeError(f"expected outcomes {expected}, got {dict(outcomes)}")
            possible_s = (num_completions - num_hanging) * healthy_s + num_hanging * deadline_s / NUM_ACTORS
            print_row(percent, num_completions, elapsed_s, possible_s)
    finally:
        for actor in actors:
            actor.close()


def print_row(percent: int, num_completions: int, elapsed_s: float, possible_s: float) -> None:
    rate, possible = num_completions / elapsed_s, num_completions / possible_s
    print(
        f"{percent:>7}% {num_completions:>12} {elapsed_s:>8.2f} {rate:>9.1f} {possible:>15.1f} {rate / possible:>6.2f}"
    )


if __name__ == "__main__":
    main()
