"""Sizes that an engine has where the configuration leaves them at 0: one place for the engine, its checks and the plan."""

from configs.schema.run import EngineSection

CPU_KV_CACHE_GIB = 2.0
GPU_BATCHED_TOKENS = 16384
"""Tokens of one engine step on a GPU, where vLLM's own choice for its library is 2,048."""


def block_tokens(engine: EngineSection) -> int:
    """Tokens of one KV block; on a GPU vLLM's choice."""
    return engine.block_tokens or (16 if engine.num_gpus else 32)


def kv_cache_gib(engine: EngineSection) -> float:
    """Size of a cache that is known before the engine starts; 0 on a GPU that is to be filled."""
    return engine.kv_cache_gib or (0.0 if engine.num_gpus else CPU_KV_CACHE_GIB)
