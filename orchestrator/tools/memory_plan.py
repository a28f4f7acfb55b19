"""What each role of a run takes of a GPU's memory, from the model's shapes and the settings.

Against measured peaks (tests/orchestrator/tools/test_memory_plan.py) the learner's sum is within 15 %. An engine's is what vLLM
is told to take, or for a shared GPU the sum of its parts.
"""

from dataclasses import dataclass

from configs.engine_sizes import GPU_BATCHED_TOKENS, block_tokens, kv_cache_gib
from configs.model_shape import CHUNK_LOGITS, DTYPE_BYTES, ModelShape
from configs.schema.run import RunConfig

GIB = 2**30
CONTEXT_BYTES = 0.6 * GIB
"""CUDA context and kernels of one process."""
GRAPH_BYTES = 1.0 * GIB
"""CUDA graphs of an engine."""
ASLEEP_BYTES = 1.4 * GIB
"""What a sleeping engine keeps: context and graphs (measured on an H200: 89.6 of 91 GB freed)."""

Parts = dict[str, float]
"""Part → bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """What a run holds whose learner and engines are on GPUs."""

    learner: Parts
    """Parts of one rank at its peak; empty on CPUs."""
    engine: Parts
    """Parts of one engine's GPU; empty on CPUs."""
    is_shared: bool
    kv_tokens: int
    """That the cache of one engine holds; 0 when nobody knows how large it is."""
    shm: Parts
    """Parts in /dev/shm of a node that holds every engine."""

    @property
    def learner_bytes(self) -> float:
        return sum(self.learner.values())

    @property
    def engine_bytes(self) -> float:
        return sum(self.engine.values())

    @property
    def peak_bytes(self) -> float:
        """Bytes of the fullest GPU: a shared one holds the learner at work with the engine asleep, or the engine with the learner
        at rest."""
        if not self.is_shared:
            return max(self.learner_bytes, self.engine_bytes)
        at_rest = self.learner_bytes - self.learner.get("activations", 0.0) - self.learner.get("logprobs", 0.0)
        return max(self.learner_bytes + ASLEEP_BYTES, self.engine_bytes + at_rest)


def plan_memory(config: RunConfig, shape: ModelShape, gpu_bytes: float = 0.0) -> MemoryPlan:
    """`gpu_bytes`: memory of one GPU, 0 where it is not known."""
    engine = engine_parts(config, shape, gpu_bytes) if config.engine.num_gpus else {}
    cache_bytes = engine.get("KV cache", kv_cache_gib(config.engine) * GIB)
    token_bytes = shape.kv_token_bytes(DTYPE_BYTES[config.model.dtype]) / max(1, config.engine.num_gpus)
    kv_tokens = int(cache_bytes / token_bytes) if cache_bytes else 0
    if config.engine.num_kv_blocks:
        kv_tokens = config.engine.num_kv_blocks * block_tokens(config.engine)
    return MemoryPlan(
        learner=learner_parts(config, shape) if config.learner.num_gpus_per_rank else {},
        engine=engine,
        is_shared=config.cluster.colocated,
        kv_tokens=kv_tokens,
        shm=shm_parts(config, shape),
    )


def longest_batch_tokens(config: RunConfig) -> int:
    """Tokens of the largest micro-batch: a row that is longer than the budget goes alone."""
    return max(config.learner.micro_batch_tokens, config.model.max_length_tokens)


def learner_parts(config: RunConfig, shape: ModelShape) -> Parts:
    """Parts of one rank. ZeRO-3 splits the base only after each rank has loaded all of it, so it counts whole."""
    learner, dtype_bytes = config.learner, DTYPE_BYTES[config.model.dtype]
    num_adapter = shape.num_adapter_parameters(config.lora.rank, config.lora.target_modules)
    ranks = learner.num_ranks
    moments = 0 if learner.offload_optimizer else 8 / (ranks if learner.zero_stage >= 1 else 1)
    gradients = 4 / (ranks if learner.zero_stage >= 2 else 1)
    num_tokens = longest_batch_tokens(config)
    saved = shape.saved_layer_bytes(config.lora.rank, dtype_bytes)
    if learner.gradient_checkpointing:
        per_token = shape.num_layers * dtype_bytes * shape.hidden + saved
    else:
        per_token = shape.num_layers * saved
    has_reference = config.rl.kl_beta > 0 and config.rl.kl_reference == "start"
    return {
        "base weights": shape.num_parameters * dtype_bytes,
        "adapter, gradients, moments": num_adapter * (4 + gradients + moments),
        "reference adapter": num_adapter * 4 if has_reference else 0,
        "activations": num_tokens * (per_token + shape.working_layer_bytes(dtype_bytes)),
        # fp32 logits of a chunk, its softmax, and a copy in the base's dtype; hidden states and their gradients.
        "logprobs": CHUNK_LOGITS["cuda"] * (8 + 2 * dtype_bytes) + 2 * num_tokens * shape.hidden * dtype_bytes,
        "CUDA context": CONTEXT_BYTES,
    }


def engine_parts(config: RunConfig, shape: ModelShape, gpu_bytes: float) -> Parts:
    """Parts of each of an engine's GPUs; with tensor parallelism each holds a part of weights, adapters and cache."""
    engine, dtype_bytes = config.engine, DTYPE_BYTES[config.model.dtype]
    num_versions = config.rl.max_staleness + 2
    num_adapter = shape.num_adapter_parameters(engine.max_lora_rank, tuple(shape.widths))
    step_tokens = engine.max_batched_tokens or GPU_BATCHED_TOKENS
    parts = {
        "base weights": shape.num_parameters * dtype_bytes / engine.num_gpus,
        "adapters": num_versions * num_adapter * dtype_bytes / engine.num_gpus,
        "activations": step_tokens * (2 * shape.inner / engine.num_gpus + 4 * shape.hidden) * dtype_bytes,
        "sampling": 3 * engine.max_num_seqs * shape.vocabulary * 4,
        "CUDA graphs": GRAPH_BYTES,
        "CUDA context": CONTEXT_BYTES,
    }
    if engine.num_kv_blocks:
        tokens = engine.num_kv_blocks * block_tokens(engine)
        parts["KV cache"] = tokens * shape.kv_token_bytes(dtype_bytes) / engine.num_gpus
    elif engine.kv_cache_gib:
        parts["KV cache"] = engine.kv_cache_gib * GIB
    elif gpu_bytes:
        parts["KV cache"] = max(0.0, gpu_bytes * engine.gpu_memory_frac - sum(parts.values()))
    return parts


def shm_parts(config: RunConfig, shape: ModelShape) -> Parts:
    """Adapters as files, which engines of a role share: one more version than can run at once until the oldest is let go."""
    num_adapter = shape.num_adapter_parameters(config.lora.rank, config.lora.target_modules)
    adapter_bytes = num_adapter * DTYPE_BYTES[config.model.dtype]
    num_roles = 1 + (config.evaluation.num_actors > 0)
    return {
        "adapters of engines": num_roles * (config.rl.max_staleness + 3) * adapter_bytes,
        "adapters in Ray's object store": num_roles * (config.rl.max_staleness + 2) * adapter_bytes,
    }


def memory_problems(config: RunConfig, shape: ModelShape, gpu_bytes: float) -> list[str]:
    """Where a role does not fit a GPU of that size, with the settings that would help, the most useful first."""
    plan = plan_memory(config, shape, gpu_bytes)
    found = []
    has = f"cluster.gpu_memory_gib {gpu_bytes / GIB:g}"
    if plan.engine and not plan.is_shared:
        cache_bytes = plan.engine.get("KV cache", 0.0)
        least_bytes = config.model.max_length_tokens * shape.kv_token_bytes(DTYPE_BYTES[config.model.dtype])
        if plan.engine_bytes > gpu_bytes or cache_bytes < least_bytes / config.engine.num_gpus:
            needed = plan.engine_bytes - cache_bytes + max(cache_bytes, least_bytes / config.engine.num_gpus)
            found.append(
                f"{has}: an engine needs {needed / GIB:.1f} GiB of each GPU ({_largest(plan.engine)}); "
                f"{engine_advice(config)}"
            )
    if plan.learner and not plan.is_shared and plan.learner_bytes > gpu_bytes:
        found.append(
            f"{has}: a learner rank needs {plan.learner_bytes / GIB:.1f} GiB ({_largest(plan.learner)}); "
            f"{learner_advice(config, plan)}"
        )
    if plan.is_shared and plan.peak_bytes > gpu_bytes:
        found.append(
            f"{has}: engine and learner rank need {plan.peak_bytes / GIB:.1f} GiB by turns (engine {_largest(plan.engine)}; "
            f"learner {_largest(plan.learner)}); {learner_advice(config, plan)}, or a smaller engine.kv_cache_gib"
        )
    return found


def learner_advice(config: RunConfig, plan: MemoryPlan) -> str:
    """The settings that would make the largest parts smaller."""
    learner = config.learner
    helps = []
    if plan.learner["activations"] > plan.learner["base weights"] / 4:
        if not learner.gradient_checkpointing:
            helps.append("learner.gradient_checkpointing=true")
        if learner.micro_batch_tokens > config.model.max_length_tokens:
            helps.append(f"learner.micro_batch_tokens={config.model.max_length_tokens} or more, below today's")
        else:
            helps.append("a smaller model.max_length_tokens")
    if learner.num_ranks > 1 and learner.zero_stage < 2:
        helps.append("learner.zero_stage=2")
    if not learner.offload_optimizer and plan.learner["adapter, gradients, moments"] > 2 * GIB:
        helps.append("learner.offload_optimizer=true (with learner.zero_stage 1 or more)")
    return f"what would help: {', '.join(helps or ['a smaller model, or larger GPUs'])}"


def engine_advice(config: RunConfig) -> str:
    helps = ["engine.num_gpus=2 (tensor parallel)" if config.engine.num_gpus == 1 else "more engine.num_gpus"]
    if config.model.max_length_tokens > config.rollout.max_completion_tokens * 2:
        helps.append("a smaller model.max_length_tokens")
    helps.append("a smaller engine.max_num_seqs or engine.max_batched_tokens")
    return f"what would help: {', '.join(helps)}"


def _largest(parts: Parts) -> str:
    """The three largest parts, `base weights 15.2`, in GiB."""
    most = sorted(parts.items(), key=lambda item: -item[1])[:3]
    return ", ".join(f"{name} {size / GIB:.1f}" for name, size in most)
