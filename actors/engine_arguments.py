"""What vLLM's engine is started with, from the settings and the device. Needs no vLLM."""

import os
from typing import Any

from configs.engine_sizes import GPU_BATCHED_TOKENS, block_tokens, kv_cache_gib
from configs.schema.run import EngineSection, ModelSection

EXPLICIT_MEMORY_FRAC = 0.01
"""With an explicit cache vLLM only checks that so much is free at the start: the learner may be there already."""


def engine_arguments(
    *,
    model_path: str,
    model: ModelSection,
    config: EngineSection,
    num_adapters: int,
    seed: int,
    deterministic: bool = False,
    shares_gpu: bool = False,
) -> dict[str, Any]:
    """Keywords of vLLM's `AsyncEngineArgs`. `shares_gpu`: with a learner, so that the engine has to be able to sleep."""
    on_cpu = config.num_gpus == 0
    cache_gib = kv_cache_gib(config)
    arguments: dict[str, Any] = {
        "model": model_path,
        # Prompts are tokenised and completions decoded outside, once each.
        "skip_tokenizer_init": True,
        "trust_remote_code": model.trust_remote_code,
        "load_format": "safetensors",
        "dtype": model.dtype,
        "max_model_len": model.max_length_tokens,
        "tensor_parallel_size": max(1, config.num_gpus),
        # vLLM would choose Ray inside an actor, and then refuse the actor's bundle, which has all the GPUs.
        "distributed_executor_backend": "mp" if config.num_gpus > 1 else None,
        "max_num_seqs": 1 if deterministic else config.max_num_seqs,
        # A seeded request whose prompt comes in chunks would end a CPU engine: its generator cannot go back.
        "enable_chunked_prefill": False if deterministic else None,
        "max_num_batched_tokens": config.max_batched_tokens or (None if on_cpu else GPU_BATCHED_TOKENS),
        "block_size": block_tokens(config) if on_cpu else config.block_tokens or None,
        "num_gpu_blocks_override": config.num_kv_blocks or None,
        "kv_cache_memory_bytes": round(cache_gib * 2**30) or None,
        "gpu_memory_utilization": EXPLICIT_MEMORY_FRAC if cache_gib and not on_cpu else config.gpu_memory_frac,
        "enable_prefix_caching": True,
        "enable_lora": True,
        "max_lora_rank": config.max_lora_rank,
        "max_loras": num_adapters,
        "max_cpu_loras": num_adapters + 2,
        # The learner recomputes logprobs at the sampling temperature; raw ones would not compare.
        "logprobs_mode": "processed_logprobs",
        "enforce_eager": on_cpu,
        "enable_sleep_mode": shares_gpu and not on_cpu,
        "seed": seed,
        "disable_log_stats": True,
        "worker_extension_cls": "actors.hidden_states.WorkerExtension",
    }
    if not on_cpu:
        # Long prompts of a deterministic engine come in one piece.
        least = model.max_length_tokens if deterministic else 0
        arguments["max_num_batched_tokens"] = max(arguments["max_num_batched_tokens"], config.max_num_seqs, least)
    return arguments


def set_environment(config: EngineSection) -> None:
    """vLLM reads these once, at import."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ["VLLM_NO_USAGE_STATS"] = "1"
    if config.num_gpus == 0:
        # Binding threads to cores would pin them where the learner's threads run.
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        # vLLM's own variable takes whole GiB, and would win over the configuration.
        os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)
        os.environ["VLLM_CPU_NUM_OF_RESERVED_CPU"] = "0"
        # The worker lives in the engine's process: a process of its own takes the time of one more start, and the two would
        # wait for each other by spinning on the learner's cores. The threads are set below, before either starts.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        if config.num_threads:
            os.environ["OMP_NUM_THREADS"] = str(config.num_threads)
