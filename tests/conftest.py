"""What all tests share: a quiet, offline environment, the embedded model, one Ray cluster."""

import os
from pathlib import Path

import pytest

os.environ.update(
    {
        "HF_HUB_OFFLINE": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "RAY_USAGE_STATS_ENABLED": "0",
        # Ray's workers run at niceness 15 by default: anything else on the machine would starve them.
        "RAY_worker_niceness": "0",
        "TOKENIZERS_PARALLELISM": "false",
    }
)


@pytest.fixture(scope="session")
def tiny_model_dir() -> Path:
    """The embedded model."""
    from configs.models import resolve_model_path
    from configs.schema.run import EMBEDDED_MODEL

    return Path(resolve_model_path(EMBEDDED_MODEL))


@pytest.fixture(scope="module")
def ray_cluster():
    """A local Ray cluster on loopback."""
    import ray

    ray.init("local", num_cpus=4, include_dashboard=False, _node_ip_address="127.0.0.1", log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def random_model_dir(tmp_path_factory):
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        initializer_range=0.3,
    )
    directory = tmp_path_factory.mktemp("model")
    Qwen2ForCausalLM(config).save_pretrained(directory)
    return directory
