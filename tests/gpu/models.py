"""Random models of real shapes, adapters that matter, rows: what the GPU checks work on, without a download.

With TERSE_GPU_TINY=1 everything is tiny and on the CPU, to see that the checks themselves run.
"""

import os
from pathlib import Path

import numpy as np
import torch

from actors import adapters
from actors.masked_lora import peft_config
from actors.types import TrainRow
from configs.model_shape import ModelShape
from configs.schema.run import LoraSection

IS_TINY = os.environ.get("TERSE_GPU_TINY") == "1"
DEVICE = "cpu" if IS_TINY else "cuda"
NUM_GPUS = 0 if IS_TINY else 1


def sizes(hidden: int, inner: int, layers: int, heads: int, kv_heads: int, head_dim: int, vocabulary: int, tied: bool):
    return {
        **{"hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers, "vocab_size": vocabulary},
        **{"num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": head_dim},
        "tie_word_embeddings": tied,
    }


SHAPES = {
    "tiny": ("qwen2", sizes(128, 256, 2, 4, 2, 32, 1000, True)),
    "qwen2-0.5b": ("qwen2", sizes(896, 4864, 24, 14, 2, 64, 151936, True)),
    "qwen2.5-7b": ("qwen2", sizes(3584, 18944, 28, 28, 4, 128, 152064, False)),
    "qwen3-0.6b": ("qwen3", sizes(1024, 3072, 28, 16, 8, 128, 151936, True)),
    "qwen3-4b": ("qwen3", sizes(2560, 9728, 36, 32, 8, 128, 151936, True)),
}


def small(name: str) -> str:
    return "tiny" if IS_TINY else name


def shape_of(name: str) -> ModelShape:
    kind, config = SHAPES[name]
    return ModelShape.from_config({"model_type": kind, **config})


def vocabulary_of(name: str) -> int:
    return SHAPES[name][1]["vocab_size"]


def make_model(name: str, root: Path) -> str:
    """Directory of a model with random bf16 weights, made once; larger than usual, so that a wrong adapter shows."""
    from transformers import AutoModelForCausalLM, Qwen2Config, Qwen3Config

    path = root / name
    if (path / "config.json").exists():
        return str(path)
    kind, config = SHAPES[name]
    torch.manual_seed(0)
    config_class = Qwen3Config if kind == "qwen3" else Qwen2Config
    with torch.device(DEVICE):
        model = AutoModelForCausalLM.from_config(
            config_class(**config, max_position_embeddings=32768, eos_token_id=config["vocab_size"] - 1),
            dtype=torch.bfloat16,
        )
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, (1.2 if "embed" in key or "lm_head" in key else 0.8) / parameter.shape[1] ** 0.5)
    model.save_pretrained(path)
    del model
    if DEVICE == "cuda":
        torch.cuda.empty_cache()
    return str(path)


def lora_of(rank: int) -> LoraSection:
    return LoraSection(rank=rank, alpha=2.0 * rank)


def random_tensors(name: str, rank: int, seed: int, size: float = 0.02) -> dict[str, torch.Tensor]:
    """PEFT's tensors, rounded to bf16 as they are published, with B not zero."""
    generator, tensors = torch.Generator().manual_seed(seed), {}
    shape = shape_of(name)
    for layer in range(shape.num_layers):
        for module, (width_in, width_out) in shape.widths.items():
            block = "self_attn" if module[0] in "qkvo" else "mlp"
            base = f"base_model.model.model.layers.{layer}.{block}.{module}"
            a = torch.empty(rank, width_in).uniform_(-1, 1, generator=generator) / width_in**0.5
            b = torch.randn(width_out, rank, generator=generator) * size
            tensors |= {f"{base}.lora_A.weight": a.bfloat16().float(), f"{base}.lora_B.weight": b.bfloat16().float()}
    return tensors


def random_adapter(name: str, rank: int, seed: int, size: float = 0.02) -> np.ndarray:
    tensors = random_tensors(name, rank, seed, size)
    return adapters.pack(tensors, peft_config(lora_of(rank), tensors))


def make_rows(num_rows: int, num_prompt: int, num_tokens: int, vocabulary: int, seed: int = 0) -> tuple[TrainRow, ...]:
    """Of one length, trained on from the end of the prompt on; the adapter acts from the prompt's last token on."""
    rng = np.random.default_rng(seed)
    return tuple(
        TrainRow(
            token_ids=rng.integers(0, vocabulary - 10, num_tokens).astype(np.int32),
            start=num_prompt - 1,
            loss_mask=np.arange(num_tokens) >= num_prompt,
            behaviour_logprobs=np.full(num_tokens, -8.0, dtype=np.float32),
            advantage=float(rng.normal()),
        )
        for _ in range(num_rows)
    )
