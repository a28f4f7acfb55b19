"""Small random models, adapters, heads and exports for the tests of `deploy`."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from actors import adapters
from actors.masked_lora import AdapterSwitch, fresh_tensors, insert_layers, peft_config
from configs.models import weights_sha256
from configs.schema.run import LoraSection
from deploy.device.heads import head_shapes
from deploy.device.runtime import DeviceModel, Question
from deploy.export import gguf
from deploy.export.decoder import Decoder, read_decoder
from deploy.export.parity import ParityReport, ParityTask, Reference, measure
from deploy.export.quantize import read_grid
from deploy.manifest import MANIFEST_FILE, PEFT_DIR, TOKENIZER_DIR, Manifest, describe_files

LORA = LoraSection(rank=4, alpha=8.0)
VOCABULARY = 104
MAX_TOKENS = 128
"""`model.max_length_tokens` of the exports."""
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
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


KINDS: dict[str, dict[str, Any]] = {
    "qwen2": {"model_type": "qwen2"},
    "qwen3": {"model_type": "qwen3", "head_dim": 64},
    "llama": {"model_type": "llama", "rope_parameters": ROPES["llama3"], "tie_word_embeddings": False},
    "mistral": {"model_type": "mistral", "head_dim": 64, "sliding_window": None, "tie_word_embeddings": False},
    # Seven layers: six of a period, and one more. The window is shorter than the tests' texts.
    "gemma3": {
        **{"model_type": "gemma3_text", "num_hidden_layers": 7, "head_dim": 64, "query_pre_attn_scalar": 64},
        **{"sliding_window": 16, "rope_parameters": None},
    },
    "smollm3": {"model_type": "smollm3", "num_hidden_layers": 5},
    "phi3": {"model_type": "phi3", "tie_word_embeddings": False},
    # As Phi-4-mini: a part of each head is rotated, with other wavelengths.
    "phi3_longrope": {
        "model_type": "phi3",
        "original_max_position_embeddings": 384,
        "rope_parameters": {
            **{"rope_type": "longrope", "rope_theta": 500.0, "partial_rotary_factor": 0.75},
            **{"original_max_position_embeddings": 384},
            **{"short_factor": [1.0 + 0.1 * i for i in range(12)], "long_factor": [2.0 + 0.5 * i for i in range(12)]},
        },
    },
}
"""Kind of a random model → what its configuration has of its own."""


def random_model(kind: str, **changes: Any) -> PreTrainedModel:
    """With large weights, so that mistakes show."""
    torch.manual_seed(1)
    settings = {**SIZES, "tie_word_embeddings": True, "rope_parameters": ROPES["default"], **KINDS[kind], **changes}
    if settings["rope_parameters"] is None:
        del settings["rope_parameters"]
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**settings), dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.12 if parameter.ndim == 2 else 0.3))
            if "norm" in name:
                parameter.add_(1.0)
    return model


def make_model(directory: Path, kind: str, tokenizer_from: Path, **changes: Any) -> Path:
    """A random model and a tokenizer of 104 tokens."""
    random_model(kind, **changes).save_pretrained(directory)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(tokenizer_from / name, directory / name)
    return directory


def decoder_of(model_dir: Path) -> Decoder:
    return read_decoder(json.loads((model_dir / "config.json").read_text()), MAX_TOKENS)


def make_adapter(model_dir: Path) -> bytes:
    """A random adapter that changes what the model says."""
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    tensors = fresh_tensors(insert_layers(model, LORA, AdapterSwitch()), LORA.rank, seed=3)
    generator = torch.Generator().manual_seed(4)
    noisy = {name: t + 0.2 * torch.randn(t.shape, generator=generator) for name, t in tensors.items()}
    return adapters.pack(noisy, peft_config(LORA, noisy))


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
    decoder = decoder_of(model_dir)
    gguf.write_base(model_dir, decoder, directory / "base.gguf", precision, "f16", read_grid(model_dir))  # type: ignore[arg-type]
    adapters.write_directory(packed, directory / PEFT_DIR)
    gguf.write_adapter(directory / PEFT_DIR, decoder, directory / "adapter.gguf")
    (directory / TOKENIZER_DIR).mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(model_dir / name, directory / TOKENIZER_DIR / name)
    base_sha256 = weights_sha256(model_dir)
    if threshold is not None:
        write_heads(directory / "heads.safetensors", base_sha256, decoder.hidden, threshold)
    values: dict[str, Any] = {
        "architecture": decoder.architecture,
        "precision": precision,
        "base_sha256": base_sha256,
        "files": describe_files(directory),
        "stop_token_ids": (5,),
        "forced_answer_token_ids": (7, 20),
        "answer_tokens": 3,
        "max_length_tokens": MAX_TOKENS,
        "budget_prompt_template": "{question}\nBudget: {budget_tokens}",
        "budgets_tokens": (12, 30),
        "sampling": {"temperature": 0.7, "top_p": 1.0},
    }
    (directory / MANIFEST_FILE).write_text(Manifest(**values | changes).to_json())
    return directory


QUESTIONS = ("1+2=?", "37+58-12=?", "9-8+7=?", "5+5=?")


def compare(directory: Path, reference: Reference) -> ParityReport:
    """Of an export with the training stack, on a few questions."""
    with DeviceModel(directory, num_threads=1) as device:
        tasks = [
            ParityTask(task_id=q, token_ids=tuple(device.prompt_token_ids(Question(question=q))), reference_answer="3")
            for q in QUESTIONS
        ]
        return measure(device, reference, tasks, 24, lambda text, task: task.reference_answer in text)
