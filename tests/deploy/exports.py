"""Small random models, adapters, heads and exports for the tests of `deploy`."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

from actors import adapters
from actors.masked_lora import AdapterSwitch, fresh_tensors, insert_layers, peft_config
from configs.models import weights_sha256
from configs.schema.run import LoraSection
from deploy.device.heads import head_shapes
from deploy.export import gguf
from deploy.export.quantize import read_grid
from deploy.manifest import MANIFEST_FILE, PEFT_DIR, TOKENIZER_DIR, Manifest, describe_files

LORA = LoraSection(rank=4, alpha=8.0)
VOCABULARY = 104
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "eos_token_id": 5,
    "bos_token_id": None,
    "pad_token_id": 0,
}
ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 500.0},
    "linear": {"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0},
    "llama3": {
        **{"rope_type": "llama3", "rope_theta": 500.0, "factor": 4.0, "low_freq_factor": 1.0},
        **{"high_freq_factor": 4.0, "original_max_position_embeddings": 64},
    },
    "yarn": {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 64},
}


def make_model(directory: Path, kind: str, tokenizer_from: Path, is_tied: bool = True, rope: str = "default") -> Path:
    """A random Qwen2 or Llama with large weights, so that mistakes show, and a tokenizer of 104 tokens."""
    torch.manual_seed(1)
    config_class = {"qwen2": Qwen2Config, "llama": LlamaConfig}[kind]
    config = config_class(**SIZES, tie_word_embeddings=is_tied, rope_parameters=ROPES[rope])
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.15 if parameter.ndim == 2 else 0.3))
            if "norm" in name:
                parameter.add_(1.0)
    model.save_pretrained(directory)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(tokenizer_from / name, directory / name)
    return directory


def make_adapter(model_dir: Path) -> bytes:
    """A random adapter that changes what the model says."""
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    tensors = fresh_tensors(insert_layers(model, LORA, AdapterSwitch()), LORA.rank, seed=3)
    generator = torch.Generator().manual_seed(4)
    noisy = {name: t + 0.2 * torch.randn(t.shape, generator=generator) for name, t in tensors.items()}
    return adapters.pack(noisy, peft_config(LORA))


def write_heads(path: Path, base_sha256: str, hidden_size: int, threshold: float = 0.5, chunk_tokens: int = 4) -> None:
    """Random heads whose probabilities are far from 0 and 1."""
    rng = np.random.default_rng(5)
    tensors = {
        name: (0.3 * rng.standard_normal(shape)).astype(np.float32) for name, shape in head_shapes(hidden_size).items()
    }
    for name in ("switcher.feature_scale", "verifier.feature_scale"):
        tensors[name] = (1.0 + np.abs(tensors[name])).astype(np.float32)
    metadata = {
        "threshold": str(threshold),
        "chunk_tokens": str(chunk_tokens),
        "ema_alpha": "0.5",
        "verification_prompt": "Is it right?",
        "base_sha256": base_sha256,
        "format_version": "1",
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata)


def make_export(
    directory: Path,
    model_dir: Path,
    packed: bytes,
    *,
    precision: str = "f32",
    threshold: float | None = None,
    **changes: Any,
) -> Path:
    """An export as the stage writes it, without model card; with heads when `threshold` is given."""
    directory.mkdir(parents=True)
    hf_config = json.loads((model_dir / "config.json").read_text())
    gguf.write_base(model_dir, directory / "base.gguf", precision, "f16", read_grid(model_dir))  # type: ignore[arg-type]
    adapters.write_directory(packed, directory / PEFT_DIR)
    gguf.write_adapter(directory / PEFT_DIR, hf_config, directory / "adapter.gguf")
    (directory / TOKENIZER_DIR).mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(model_dir / name, directory / TOKENIZER_DIR / name)
    base_sha256 = weights_sha256(model_dir)
    if threshold is not None:
        write_heads(directory / "heads.safetensors", base_sha256, hf_config["hidden_size"], threshold)
    values: dict[str, Any] = {
        "architecture": gguf.architecture(hf_config),
        "precision": precision,
        "base_sha256": base_sha256,
        "files": describe_files(directory),
        "stop_token_ids": (5,),
        "forced_answer_token_ids": (7, 20),
        "answer_tokens": 3,
        "max_length_tokens": 128,
        "budget_prompt_template": "{question}\nBudget: {budget_tokens}",
        "budgets_tokens": (12, 30),
        "sampling": {"temperature": 0.7, "top_p": 1.0},
    }
    (directory / MANIFEST_FILE).write_text(Manifest(**values | changes).to_json())
    return directory
