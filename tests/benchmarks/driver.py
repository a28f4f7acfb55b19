"""What a group costs the driver, with real Ray objects and calls: seconds of its processor and of the clock.

    python -m tests.benchmarks.driver [--engines 1000] [--groups 256 1024 4096] [--size 8]

Each number of groups is in flight at once, as in a step without staleness. Engines and reward actors are handles of a few asyncio
actors that answer after a while with completions and rollouts of a real size, so that nothing but the driver is compared.
"""

import argparse
import asyncio
import random
import time
from typing import Any

import numpy as np
import ray

from actors.types import Completion, Rollout, Sampling
from configs.schema.run import RlSection
from orchestrator.cluster.actor_pool import ActorPool
from orchestrator.cluster.dispatcher import Dispatcher
from orchestrator.record.checkpoint import TaskCursor
from orchestrator.rl.rollout_pool import RolloutPool
from rewards.base import Outcome, RewardResult
from tests.fakes import make_completion, make_inference, make_prompt, make_ref, make_task

NUM_PROCESSES, COMPLETION_TOKENS = 2, 256
SPREAD_S = 20.0
"""Within which a step's groups are generated."""


class Answering:
    """An engine and a reward actor, without their work."""

    async def infer(self, request: Any, drafts: Any) -> tuple[list[Completion], Any]:
        await asyncio.sleep(random.uniform(0.0, SPREAD_S))
        return [make_completion(num_tokens=COMPLETION_TOKENS) for _ in range(request.n)], make_inference()

    async def score_group(self, request: Any, completions: list[Completion]) -> tuple[Rollout, ...]:
        values = np.arange(len(completions)) % 2
        return tuple(
            Rollout(
                prompt=request.prompt,
                completion=completion,
                reward=RewardResult(value=float(value), outcome=Outcome.CORRECT, answer="2"),
            )
            for completion, value in zip(completions, values, strict=True)
        )

    async def ready(self) -> bool:
        return True


def measure(num_groups: int, num_engines: int, size: int, actors: list[Any]) -> tuple[float, float]:
    """Seconds of the driver's processor and of the clock, for one step; generating takes `SPREAD_S` of the clock."""
    pools = [
        ActorPool(
            role,
            num_engines,
            make=lambda index: actors[index % len(actors)],
            start=lambda actor: actor.ready.remote(),
            ping=lambda actor: actor.ready.remote(),
            start_timeout_s=120,
            max_losses=0,
        )
        for role in ("engine", "reward actor")
    ]
    for pool in pools:
        pool.wait_for(num_engines)
    rollouts = RolloutPool(
        dispatcher=Dispatcher(*pools, timeout_s=600),
        load_adapter=lambda ref, packed: None,
        prompt_at=lambda index: (make_task(index), make_prompt(index, num_tokens=100)),
        cursor=TaskCursor(next_index=0, unfinished=()),
        sampling=Sampling(temperature=1.0, max_tokens=COMPLETION_TOKENS),
        config=RlSection(groups_per_step=num_groups, group_size=size, max_staleness=0),
    )
    began_s, began_cpu_s = time.monotonic(), time.thread_time()
    rollouts.use_adapter(make_ref(0), None)
    taken = rollouts.take(num_groups)
    assert len(taken) == num_groups
    return time.thread_time() - began_cpu_s, time.monotonic() - began_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engines", type=int, default=1000)
    parser.add_argument("--groups", type=int, nargs="+", default=[256, 1024, 4096])
    parser.add_argument("--size", type=int, default=8, help="completions of a group")
    arguments = parser.parse_args()
    ray.init("local", num_cpus=2, include_dashboard=False, _node_ip_address="127.0.0.1", log_to_driver=False)
    actor = ray.remote(Answering).options(num_cpus=0, max_concurrency=20_000)
    actors = [actor.remote() for _ in range(NUM_PROCESSES)]
    print("| groups in flight | driver's processor, ms a group | clock, ms a group |\n|---|---|---|")
    for num_groups in arguments.groups:
        cpu_s, clock_s = measure(num_groups, arguments.engines, arguments.size, actors)
        print(f"| {num_groups} | {1e3 * cpu_s / num_groups:.2f} | {1e3 * clock_s / num_groups:.2f} |", flush=True)
    ray.shutdown()


if __name__ == "__main__":
    main()
