"""What publishing an adapter costs at the shapes of Qwen2.5-7B, part by part, against the seconds of an RL step.

    python -m tests.benchmarks.publish [--rank 32] [--engines 2] [--versions 9]

A learner's rank and engines are actors of one Ray node; engines do everything but vLLM's own loading. `copies` is how it
was before: bytes instead of an array, packed by safetensors, and a file of its own for each engine. Both ways take turns,
each version has other weights, and the first does not count.
"""

import argparse
import json
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import ray
import torch
from safetensors.torch import save

from actors import adapters
from actors.engine import MEMORY
from actors.learner_group import LearnerGroup
from actors.masked_lora import peft_config
from actors.owned_directory import OwnedDirectory
from actors.types import AdapterRef
from configs.load import load_config
from orchestrator.cluster.engines import EnginePool
from orchestrator.tools.memory_plan import GIB
from orchestrator.tools.roofline import estimate_step
from tests.gpu.models import lora_of, random_tensors, shape_of

MODEL, CONFIG = "qwen2.5-7b", "paper_7b_8gpu"
WAYS = COPIES, SHARED = "copies", "shared"
LEARNER_PARTS = {"pack": "learner: weights to bf16, packed", "hash": "learner: hash"}
PUT, GET = "into the object store, and the call", "out of it, and the call"
ENGINE_PARTS = {
    "write": "engine: write the PEFT directory, or wait and link",
    "read": "engine: read the file back",
    "check": "engine: hash what was read",
}
TOTAL = "by the clock, from the learner's weights to the last engine's answer"


class Laps:
    """Seconds of each part."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last_s = time.perf_counter()

    def end(self, part: str) -> None:
        now = time.perf_counter()
        self.seconds[part], self._last_s = now - self._last_s, now


class Rank:
    """Publishes fp32 weights as `actors.learner.LearnerRank` does."""

    def __init__(self, lora_rank: int, way: str):
        self.lora, self.way, self.version, self.laps = lora_of(lora_rank), way, 0, Laps()
        self.weights = random_tensors(MODEL, lora_rank, seed=0)

    def publish(self) -> tuple[AdapterRef, Any]:
        self.version += 1
        next(iter(self.weights.values())).fill_(self.version)
        self.laps = Laps()
        config = peft_config(self.lora, self.weights)
        if self.way == SHARED:
            packed: Any = adapters.pack(self.weights, config, torch.bfloat16)
        else:
            tensors = {name: weight.to(torch.bfloat16) for name, weight in self.weights.items()}
            packed = save(tensors, {"adapter_config": json.dumps(config, sort_keys=True)})
        self.laps.end("pack")
        ref = adapters.make_ref(packed, self.version)
        self.laps.end("hash")
        return ref, packed

    def read_laps(self) -> dict[str, float]:
        return self.laps.seconds


class Engine:
    """Loads as `actors.engine.Engine` does, but for vLLM, and holds the last two versions."""

    def __init__(self) -> None:
        self.owned, self.held, self.laps = OwnedDirectory("terse-benchmark-", MEMORY), list[Path](), Laps()

    def bring_up(self, expected: Any, heads: Any, *packed: Any) -> tuple[tuple[AdapterRef, ...], str]:
        return (), ""

    def load_adapter(self, expected: AdapterRef, packed: Any) -> AdapterRef:
        self.laps = Laps()
        directory = adapters.write_shared(packed, expected.sha256, f"v{expected.version:06d}-1", self.owned)
        self.laps.end("write")
        ref = adapters.read_ref(directory, expected.version)
        self.laps.end("check")
        self.hold(directory)
        return ref

    def load_copy(self, packed: bytes, version: int) -> AdapterRef:
        self.laps = Laps()
        directory = self.owned.path / f"v{version:06d}-1"
        adapters.unpack(packed)
        adapters.write_directory(packed, directory)
        self.laps.end("write")
        read = (directory / adapters.WEIGHTS_FILE).read_bytes()
        self.laps.end("read")
        ref = adapters.make_ref(read, version)
        self.laps.end("check")
        self.hold(directory)
        return ref

    def hold(self, directory: Path) -> None:
        self.held.append(directory)
        if len(self.held) > 2:
            shutil.rmtree(self.held.pop(0))

    def read_laps(self) -> dict[str, float]:
        return self.laps.seconds

    def shutdown(self) -> None:
        self.owned.remove()


def publish(way: str, rank: Any, pool: EnginePool) -> dict[str, float]:
    """Seconds of the parts of one version, the slowest engine's."""
    began_s = time.perf_counter()
    ref, reference = LearnerGroup([rank], start_timeout_s=60, call_timeout_s=60).publish()
    published_s = time.perf_counter()
    if way == SHARED:
        pool.load_adapter(ref, reference)
    else:
        answers = pool.call_serving(lambda actor: actor.load_copy.remote(reference, ref.version))
        assert set(answers.values()) == {ref}
    loaded_s = time.perf_counter()
    learner = ray.get(rank.read_laps.remote())
    engines = ray.get([actor.read_laps.remote() for actor in pool.handles])
    slowest = max(engines, key=lambda laps: sum(laps.values()))
    return {
        **{text: learner[part] for part, text in LEARNER_PARTS.items()},
        PUT: published_s - began_s - sum(learner.values()),
        GET: loaded_s - published_s - sum(slowest.values()),
        **{text: slowest.get(part, 0.0) for part, text in ENGINE_PARTS.items()},
        TOTAL: loaded_s - began_s,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rank", type=int, default=32, help="of the adapter")
    parser.add_argument("--engines", type=int, default=2)
    parser.add_argument("--versions", type=int, default=9)
    arguments = parser.parse_args()
    step_s = estimate_step(load_config(CONFIG), shape_of(MODEL), 80 * GIB, 0).step_s
    ray.init("local", num_cpus=4, include_dashboard=False, _node_ip_address="127.0.0.1", log_to_driver=False)
    ranks = {way: ray.remote(Rank).remote(arguments.rank, way) for way in WAYS}
    make = ray.remote(Engine).options(num_cpus=0).remote
    pools = {
        way: EnginePool(way, arguments.engines, lambda index: make(), num_adapters=2, start_timeout_s=120, max_losses=0)
        for way in WAYS
    }
    for pool in pools.values():
        pool.wait_for(arguments.engines)
    turns = [{way: publish(way, ranks[way], pools[way]) for way in WAYS} for _ in range(arguments.versions)]
    print("| milliseconds, median | copies | shared |\n|---|---|---|")
    medians = {
        way: {part: statistics.median(turn[way][part] for turn in turns[1:]) for part in turns[0][way]} for way in WAYS
    }
    for part in medians[SHARED]:
        print(f"| {part} | " + " | ".join(f"{1e3 * medians[way][part]:.0f}" for way in WAYS) + " |")
    shares = (f"{medians[way][TOTAL] / step_s:.2%}" for way in WAYS)
    print(f"| of a step of {step_s:.0f} s ({CONFIG}, estimated) | " + " | ".join(shares) + " |")
    ray.get([actor.shutdown.remote() for pool in pools.values() for actor in pool.handles])
    ray.shutdown()


if __name__ == "__main__":
    main()
