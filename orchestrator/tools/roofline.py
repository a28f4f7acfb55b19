"""How long an RL step takes, roughly, and which side waits: a roofline of few constants.

Seconds are estimates for choosing settings, not promises: completions are taken to be as long as their budgets on average,
and every kind of GPU to reach the shares that were measured on an H200 (tests/benchmarks/RESULTS.md, On a GPU).
"""

from dataclasses import dataclass

from configs.model_shape import DTYPE_BYTES, ModelShape
from configs.schema.run import RunConfig
from orchestrator.tools.memory_plan import GIB


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuKind:
    name: str
    memory_gib: float
    """Up to which a GPU counts as this kind."""
    flops: float
    """Dense bf16, per second."""
    bandwidth: float
    """Bytes per second."""


KINDS = (
    GpuKind(name="RTX 4090", memory_gib=32, flops=165e12, bandwidth=1.01e12),
    GpuKind(name="A100 40 GB", memory_gib=47, flops=312e12, bandwidth=1.56e12),
    GpuKind(name="H100", memory_gib=100, flops=989e12, bandwidth=3.35e12),
    GpuKind(name="H200", memory_gib=float("inf"), flops=989e12, bandwidth=4.8e12),
)
"""By memory, smallest first."""
LEARNER_SHARE = 0.45
"""Share of the GPU's arithmetic that the learner reaches with a large model."""
LAUNCH_S = 1.6e-3
"""Launching one layer's kernels for one micro-batch, for each N FLOPs of its passes: what a small model waits for."""
BANDWIDTH_SHARE = 0.7
ENGINE_STEP_S = 1.7e-3
ENGINE_SEQUENCE_S = 3.5e-5
"""One decoding step of an engine, and each sequence in it: scheduling and sampling."""
PROMPT_TOKENS = 200
"""Where nothing is known about the data."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepEstimate:
    """Estimated parts of one RL step, in seconds."""

    gpu: str
    completion_tokens: float
    """Assumed mean length."""
    rollout_s: float
    update_s: float
    step_s: float
    """Both after each other when on-policy, else the slower one."""

    @property
    def waiting(self) -> str:
        """Which side waits for the other."""
        if abs(self.rollout_s - self.update_s) < 0.1 * self.step_s:
            return "neither side waits long"
        return "the learner waits for the engines" if self.rollout_s > self.update_s else "engines wait for the learner"


def kind_of(gpu_bytes: float) -> GpuKind:
    return next(kind for kind in KINDS if gpu_bytes <= kind.memory_gib * GIB)


def estimate_step(config: RunConfig, shape: ModelShape, gpu_bytes: float, kv_tokens: int) -> StepEstimate:
    """Estimate for a run whose engines and learner are on GPUs; `kv_tokens` is what one engine's cache holds (0: enough)."""
    kind = kind_of(gpu_bytes)
    buckets, weights = config.budget.buckets_tokens, config.budget.weights or (1.0,) * len(config.budget.buckets_tokens)
    mean = sum(bucket * weight for bucket, weight in zip(buckets, weights, strict=True)) / sum(weights)
    length = min(mean, config.rollout.max_completion_tokens)
    rollout_s = rollout_seconds(config, shape, kind, length, kv_tokens)
    update_s = update_seconds(config, shape, kind, length)
    overlaps = config.rl.max_staleness > 0
    return StepEstimate(
        gpu=kind.name,
        completion_tokens=length,
        rollout_s=rollout_s,
        update_s=update_s,
        step_s=max(rollout_s, update_s) if overlaps else rollout_s + update_s,
    )


def rollout_seconds(config: RunConfig, shape: ModelShape, kind: GpuKind, length: float, kv_tokens: int) -> float:
    """Decoding: each step of an engine reads the weights and the cache of its sequences."""
    dtype_bytes, engine = DTYPE_BYTES[config.model.dtype], config.engine
    completions = config.rl.groups_per_step * config.rl.group_size / config.rollout.num_actors
    at_once = min(completions, engine.max_num_seqs, (kv_tokens or float("inf")) / (PROMPT_TOKENS + length))
    num_waves = max(1.0, completions / max(1.0, at_once))
    num_gpus = max(1, engine.num_gpus)
    weights = shape.num_computing_parameters * dtype_bytes
    cache = at_once * (PROMPT_TOKENS + length / 2) * shape.kv_token_bytes(dtype_bytes)
    step_s = (weights + cache) / num_gpus / (kind.bandwidth * BANDWIDTH_SHARE)
    step_s += ENGINE_STEP_S + ENGINE_SEQUENCE_S * at_once
    # The longest completions end the step, on-policy; with staleness others fill in for those that ended.
    longest = length if config.rl.max_staleness else min(config.rollout.max_completion_tokens, 1.5 * length)
    return num_waves * longest * step_s


def update_seconds(config: RunConfig, shape: ModelShape, kind: GpuKind, length: float) -> float:
    """The learner: 4 N FLOPs per token with a frozen base, 2 N more to recompute and 2 N for the reference, and attention."""
    learner, rl = config.learner, config.rl
    num_tokens = rl.groups_per_step * rl.group_size * (PROMPT_TOKENS + length) / learner.num_ranks
    passes = 4 + 2 * learner.gradient_checkpointing + 2 * (rl.kl_beta > 0)
    attention = passes * shape.num_layers * shape.query * (PROMPT_TOKENS + length)
    flops = num_tokens * (passes * shape.num_computing_parameters + attention)
    num_batches = max(1.0, num_tokens / max(learner.micro_batch_tokens, PROMPT_TOKENS + length))
    return flops / (kind.flops * LEARNER_SHARE) + num_batches * shape.num_layers * passes * LAUNCH_S
