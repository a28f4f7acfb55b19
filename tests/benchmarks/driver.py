"""What a group costs the driver, with real Ray objects and calls: time and memory.

    python -m tests.benchmarks.driver [--engines 1000] [--groups 4096 1024] [--size 8]

Each number of groups is in flight at once, as in a step without staleness. Engines and reward actors are handles of a few asyncio
actors that answer after a while with completions and rollouts of a real size, so that nothing but the driver is compared.

Processor is that of the thread that the loop runs in, clock the time that this thread does not wait for an answer, in which other
processes may have its core. Memory is what the process grows by until all groups are taken; it says something of the largest
number of groups in a process, where that comes first.
"""

import argparse
import asyncio
import gc
import random
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray

from actors.reward import summarise
from actors.types import Completion, Sampling
from configs.schema.run import RlSection
from orchestrator.cluster.actor_pool import ActorPool
from orchestrator.cluster.cluster import KEEPS_COMPLETIONS
from orchestrator.cluster.dispatcher import Dispatcher
from orchestrator.record.checkpoint import TaskCursor
from orchestrator.rl.rollout_pool import RolloutPool
from rewards.base import Outcome, RewardResult
from tests.fakes import make_completion, make_inference, make_prompt, make_ref, make_task

NUM_PROCESSES, COMPLETION_TOKENS = 2, 256


class Answering:
    """An engine and a reward actor, without their work; completions come within `spread_s`."""

    def __init__(self, spread_s: float):
        self.spread_s = spread_s

    async def infer(self, request: Any, drafts: Any) -> tuple[list[Completion], Any]:
        await asyncio.sleep(random.uniform(0.0, self.spread_s))
        return [make_completion(num_tokens=COMPLETION_TOKENS) for _ in range(request.n)], make_inference()

    async def score_group(self, request: Any, completions: list[Completion]) -> tuple[Any, ...]:
        rewards = [
            RewardResult(value=float(place % 2), outcome=Outcome.CORRECT, answer="2", breakdown={"accuracy": 1.0})
            for place in range(len(completions))
        ]
        return summarise(completions, rewards, request.returns)

    async def ready(self) -> bool:
        return True


class Waiting:
    """Seconds that calls of Ray's `wait` and of `sleep` took, but for looks at what is there."""

    def __init__(self) -> None:
        self.seconds = 0.0
        ray.wait, time.sleep = self._counted(ray.wait), self._counted(time.sleep)

    def _counted(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **settings: Any) -> Any:
            began_s = time.monotonic()
            try:
                return call(*arguments, **settings)
            finally:
                if settings.get("timeout") != 0:
                    self.seconds += time.monotonic() - began_s

        return counted


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def measure(num_groups: int, num_engines: int, size: int, actors: list[Any], waiting: Waiting) -> tuple[float, ...]:
    """Of one step: seconds of the driver's processor and of its clock, and bytes."""
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
    gc.collect()
    num_bytes, began_s, began_cpu_s = resident_bytes(), time.monotonic() - waiting.seconds, time.thread_time()
    rollouts.use_adapter(make_ref(0), None)
    taken = rollouts.take(num_groups)
    cpu_s, clock_s = time.thread_time() - began_cpu_s, time.monotonic() - waiting.seconds - began_s
    assert len(taken) == num_groups
    gc.collect()
    return cpu_s, clock_s, resident_bytes() - num_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engines", type=int, nargs="+", default=[1000])
    parser.add_argument("--groups", type=int, nargs="+", default=[4096, 1024])
    parser.add_argument("--size", type=int, default=8, help="completions of a group")
    parser.add_argument("--seconds", type=float, default=10.0, help="within which a step's groups are generated")
    arguments = parser.parse_args()
    ray.init("local", num_cpus=2, include_dashboard=False, _node_ip_address="127.0.0.1", log_to_driver=False)
    actor = ray.remote(Answering).options(
        num_cpus=0, max_concurrency=20_000, runtime_env={"env_vars": KEEPS_COMPLETIONS}
    )
    actors = [actor.remote(arguments.seconds) for _ in range(NUM_PROCESSES)]
    waiting = Waiting()
    print(
        "| engines | groups | processor, ms a group | clock, ms a group | KB a group |\n|---|---|---|---|---|",
        flush=True,
    )
    for num_engines in arguments.engines:
        for num_groups in arguments.groups:
            measured = measure(num_groups, num_engines, arguments.size, actors, waiting)
            cpu_ms, clock_ms, kilobytes = (1e3 * measured[0], 1e3 * measured[1], 1e-3 * measured[2])
            numbers = " | ".join(f"{value / num_groups:.2f}" for value in (cpu_ms, clock_ms, kilobytes))
            print(f"| {num_engines} | {num_groups} | {numbers} |", flush=True)
    ray.shutdown()


if __name__ == "__main__":
    main()
