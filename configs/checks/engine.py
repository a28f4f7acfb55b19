"""Sizes of an engine that vLLM would refuse once it has started; part of `configs.checks`."""

from collections.abc import Iterator
from typing import Any

from configs.checks.rules import expected
from configs.engine_sizes import block_tokens, kv_cache_gib
from configs.model_shape import DTYPE_BYTES, ModelShape, missing_sizes
from configs.schema.run import RunConfig


def engine_problems(config: RunConfig) -> Iterator[str]:
    engine, length_tokens = config.engine, config.model.max_length_tokens
    if engine.max_batched_tokens:
        least, why = engine.max_num_seqs, "engine.max_num_seqs"
        if config.run.deterministic:  # prompts are not cut into chunks then
            least, why = length_tokens, "model.max_length_tokens, with run.deterministic"
        if engine.max_batched_tokens < least:
            yield expected("engine.max_batched_tokens", f"0, or at least {least} ({why})", engine.max_batched_tokens)
    if engine.num_gpus and config.model.dtype != "bfloat16":
        yield expected("model.dtype", "bfloat16 with engine.num_gpus above 0", config.model.dtype)
    if config.cluster.colocated:
        yield from _colocation_problems(config)
    if engine.num_kv_blocks:
        of_block = block_tokens(engine)
        # vLLM keeps one block for itself.
        least = -(-length_tokens // of_block) + 1
        if engine.num_kv_blocks < least:
            words = f"0, or at least {least} blocks of {of_block} tokens (one sequence of model.max_length_tokens {length_tokens})"
            yield expected("engine.num_kv_blocks", words, engine.num_kv_blocks)


def kv_cache_problems(config: RunConfig, hf_config: dict[str, Any]) -> Iterator[str]:
    """Where it is known how large the cache is: it holds one sequence at least."""
    cache_gib = kv_cache_gib(config.engine)
    if cache_gib == 0 or config.engine.num_kv_blocks or missing_sizes(hf_config):
        return
    token_bytes = ModelShape.from_config(hf_config).kv_token_bytes(DTYPE_BYTES[config.model.dtype])
    least_gib = (
        token_bytes
        * (config.model.max_length_tokens + block_tokens(config.engine))
        / max(1, config.engine.num_gpus)
        / 2**30
    )
    if cache_gib < least_gib:
        words = f"at least {least_gib:.4f} (one sequence of model.max_length_tokens {config.model.max_length_tokens} tokens)"
        yield expected("engine.kv_cache_gib", words, cache_gib)


def _colocation_problems(config: RunConfig) -> Iterator[str]:
    engine, learner = config.engine, config.learner
    if config.rollout.num_actors != learner.num_ranks:
        words = f"learner.num_ranks {learner.num_ranks} with cluster.colocated (an engine and a rank on each GPU)"
        yield expected("rollout.num_actors", words, config.rollout.num_actors)
    if config.evaluation.num_actors:
        yield expected("evaluation.num_actors", "0 with cluster.colocated", config.evaluation.num_actors)
    if engine.num_gpus > 1:
        yield expected("engine.num_gpus", "0 or 1 with cluster.colocated", engine.num_gpus)
    if learner.num_gpus_per_rank != min(1, engine.num_gpus):
        words = f"engine.num_gpus {engine.num_gpus} with cluster.colocated"
        yield expected("learner.num_gpus_per_rank", words, learner.num_gpus_per_rank)
    if engine.num_gpus and engine.kv_cache_gib == 0 and engine.num_kv_blocks == 0:
        words = "above 0 with cluster.colocated (what is left of a shared GPU depends on who starts first)"
        yield expected("engine.kv_cache_gib", words, engine.kv_cache_gib)
    if config.rl.max_staleness:
        words = "0 with cluster.colocated (nothing is generated while the learner works)"
        yield expected("rl.max_staleness", words, config.rl.max_staleness)
