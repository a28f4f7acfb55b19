"""What vLLM is started with; that it starts is tested with the engine itself."""

import pytest

from actors.engine_arguments import engine_arguments
from configs.schema.run import EngineSection, ModelSection


def arguments(engine: dict | None = None, **how):
    model = ModelSection(max_length_tokens=1024)
    return engine_arguments(
        model_path="m", model=model, config=EngineSection(**(engine or {})), num_adapters=2, seed=0, **how
    )


def test_a_cpu_engine_has_the_cache_it_was_told_or_two_gib():
    found = arguments({"num_gpus": 0})
    assert (found["kv_cache_memory_bytes"], found["block_size"], found["enforce_eager"]) == (2 * 2**30, 32, True)
    assert found["max_num_batched_tokens"] is None
    assert not arguments({"num_gpus": 0}, shares_gpu=True)["enable_sleep_mode"]
    assert arguments({"num_gpus": 0, "kv_cache_gib": 0.5})["kv_cache_memory_bytes"] == 2**29


def test_a_gpu_engine_takes_its_share_unless_its_cache_is_explicit():
    found = arguments({"gpu_memory_frac": 0.7})
    assert (found["kv_cache_memory_bytes"], found["gpu_memory_utilization"]) == (None, 0.7)
    assert not found["enable_sleep_mode"]
    shared = arguments({"gpu_memory_frac": 0.7, "kv_cache_gib": 4}, shares_gpu=True)
    assert (shared["kv_cache_memory_bytes"], shared["enable_sleep_mode"]) == (4 * 2**30, True)
    # Whatever the learner holds by then, the engine starts.
    assert shared["gpu_memory_utilization"] == pytest.approx(0.01)


def test_a_gpu_engine_computes_many_tokens_in_a_step():
    assert arguments()["max_num_batched_tokens"] == 16384
    assert arguments({"max_batched_tokens": 4096})["max_num_batched_tokens"] == 4096
    assert arguments({"max_num_seqs": 20000})["max_num_batched_tokens"] == 20000


def test_tensor_parallel_workers_are_processes_of_the_actor():
    assert arguments({"num_gpus": 4})["distributed_executor_backend"] == "mp"
    assert arguments({"num_gpus": 4})["tensor_parallel_size"] == 4
    assert arguments({"num_gpus": 1})["distributed_executor_backend"] is None
