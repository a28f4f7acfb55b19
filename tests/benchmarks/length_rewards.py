"""Milliseconds to score 512 groups of 8 completions, for each length reward, and to remember them.

    python -m tests.benchmarks.length_rewards

The best of five rounds. `remember` is `next_state` over the 512 groups, once per optimiser step.
"""

import dataclasses
import random
import time
from collections.abc import Callable

from configs.schema.run import RewardSection
from rewards.length.registry import LENGTH_REWARDS, LengthInputs, LengthState, next_state, score_group
from rewards.length.state import TaskHistory

NUM_GROUPS, GROUP_SIZE, WINDOW_GROUPS, ROUNDS = 512, 8, 256, 5


def make_groups() -> list[LengthInputs]:
    rng = random.Random(0)
    state = LengthState(
        tasks={f"t/{i}": TaskHistory(shortest_tokens=900, num_correct=1, total_tokens=900) for i in range(NUM_GROUPS)},
        solve_rates=tuple(rng.randint(0, GROUP_SIZE) / GROUP_SIZE for _ in range(WINDOW_GROUPS)),
    )
    return [
        LengthInputs(
            num_tokens=tuple(rng.randint(100, 6000) for _ in range(GROUP_SIZE)),
            correct=tuple(rng.random() < 0.6 for _ in range(GROUP_SIZE)),
            truncated=tuple(rng.random() < 0.05 for _ in range(GROUP_SIZE)),
            task_id=f"t/{index}",
            budget_tokens=rng.choice([1000, 3000, 4000, 6000]),
            step=150,
            state=state,
        )
        for index in range(NUM_GROUPS)
    ]


def best_ms(work: Callable[[], object]) -> float:
    times = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times) * 1e3


def main() -> None:
    groups = make_groups()
    print(f"{NUM_GROUPS} groups of {GROUP_SIZE}, ms (best of {ROUNDS})")
    print(f"{'reward.length':<16} {'score':>7} {'remember':>9}")
    for name in LENGTH_REWARDS:
        config = dataclasses.replace(RewardSection(), length=name)  # type: ignore[arg-type]
        score_ms = best_ms(lambda config=config: [score_group(group, config) for group in groups])
        remember_ms = best_ms(lambda config=config: next_state(groups[0].state, groups, config, step=20))
        print(f"{name:<16} {score_ms:>7.1f} {remember_ms:>9.1f}")


if __name__ == "__main__":
    main()
