"""GGUF files for llama.cpp: the base in f32, f16 or int4, and the adapter.

Integers and scales of an int4 base are packed as they are (Q4_0), never quantised again. A Q4_0 block is 18 bytes for
32 weights: the fp16 scale, then 16 bytes whose low nibbles are weights 0 to 15 and whose high nibbles are weights 16 to
31, each as q + 8.
"""

import json
import math
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
from safetensors import safe_open

from configs.models import weight_files
from deploy.export.quantize import GROUP, is_quantised
from deploy.export.vocabulary import read_vocabulary

Precision = Literal["f32", "f16", "int4"]
Grid = dict[str, tuple[np.ndarray, np.ndarray]]
"""Weight name → integers int8 `[out, in]`, scales float16 `[out, in / 32]`."""

_LINEAR_LAYERS = (
    *(f"self_attn.{name}_proj" for name in "qkvo"),
    *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
)
ARCHITECTURES = {"Qwen2ForCausalLM": "qwen2", "LlamaForCausalLM": "llama"}
EXPECTED_SETTINGS = {"hidden_act": "silu", "mlp_bias": False, "use_sliding_window": False, "partial_rotary_factor": 1.0}
"""What the files cannot say otherwise."""
BLOCK_BYTES = 2 + GROUP // 2
_FILE_TYPES = {
    "f32": gguf.LlamaFileType.ALL_F32,
    "f16": gguf.LlamaFileType.MOSTLY_F16,
    "int4": gguf.LlamaFileType.MOSTLY_Q4_0,
}


def architecture(hf_config: dict[str, Any]) -> str:
    """llama.cpp's name of the model's architecture.

    Raises ValueError for an architecture, or a setting of one, that is not exported.
    """
    names = hf_config.get("architectures") or ["none"]
    if names[0] not in ARCHITECTURES:
        raise ValueError(f"architecture: expected one of {', '.join(ARCHITECTURES)}, found {names[0]}")
    for key, value in EXPECTED_SETTINGS.items():
        if hf_config.get(key, value) != value:
            raise ValueError(f"config.json, {key}: expected {value!r} for an export, found {hf_config[key]!r}")
    return ARCHITECTURES[names[0]]


def write_base(model_dir: Path, path: Path, precision: Precision, embeddings: str, grid: Grid) -> None:
    """Write `path` from a Hugging Face directory.

    `grid` has every quantised weight of an int4 base, and is empty otherwise; `embeddings` (`f16` or `q8_0`) is what an
    int4 base keeps embeddings and lm_head in. Raises ValueError naming the tensor or the setting that does not fit.
    """
    hf_config = json.loads((model_dir / "config.json").read_text())
    arch = architecture(hf_config)
    writer = gguf.GGUFWriter(path, arch)
    try:
        _write_metadata(writer, hf_config, precision)
        _write_vocabulary(writer, model_dir, hf_config)
        for name, value in _tensors(model_dir):
            if name == "lm_head.weight" and hf_config.get("tie_word_embeddings"):
                continue
            target = tensor_name(name, hf_config["num_hidden_layers"])
            if is_quantised(name, value.shape) and precision == "int4":
                q, scales = grid[name]
                blocks = pack(permute(q, name, hf_config), permute(scales, name, hf_config))
                writer.add_tensor(target, blocks, raw_dtype=gguf.GGMLQuantizationType.Q4_0)
            else:
                _add_plain(writer, target, permute(value, name, hf_config), precision, embeddings)
        if (factors := rope_factors(hf_config)) is not None:
            writer.add_tensor("rope_freqs.weight", factors)
        _finish(writer)
    finally:
        writer.close()


def write_adapter(adapter_dir: Path, hf_config: dict[str, Any], path: Path) -> None:
    """Write a PEFT directory as LoRA for the base with that config.

    Raises ValueError for an adapter that is more than LoRA matrices of linear layers.
    """
    peft_config = json.loads((adapter_dir / "adapter_config.json").read_text())
    for key in ("use_rslora", "use_dora", "modules_to_save", "rank_pattern", "alpha_pattern", "fan_in_fan_out"):
        if peft_config.get(key):
            raise ValueError(f"adapter_config.json, {key}: expected none, found {peft_config[key]!r}")
    if peft_config.get("peft_type") != "LORA" or peft_config.get("bias", "none") != "none":
        raise ValueError(
            f"adapter_config.json: expected peft_type LORA with bias none, found {peft_config.get('peft_type')} "
            f"with bias {peft_config.get('bias')}"
        )
    writer = gguf.GGUFWriter(path, architecture(hf_config))
    try:
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(peft_config["lora_alpha"]))
        # By torch: numpy has no bfloat16.
        with safe_open(adapter_dir / "adapter_model.safetensors", framework="pt") as file:
            for key in sorted(file.keys()):
                layer, dot, matrix = key.removeprefix("base_model.model.").rpartition(".lora_")
                if not dot or matrix not in ("A.weight", "B.weight"):
                    raise ValueError(f"adapter: expected LoRA matrices only, found {key}")
                value = file.get_tensor(key).float().numpy()
                name = f"{layer}.weight"
                # Rows of B are the layer's outputs, so they move as its weight's rows do.
                value = permute(value, name, hf_config) if matrix.startswith("B") else value
                writer.add_tensor(
                    f"{tensor_name(name, hf_config['num_hidden_layers'])}.lora_{matrix[0].lower()}",
                    np.ascontiguousarray(value),
                )
        _finish(writer)
    finally:
        writer.close()


def read_grid(path: Path, hf_config: dict[str, Any]) -> Grid:
    """Integers and scales of every Q4_0 tensor of a base file, under the names and in the order of the weights."""
    back = {tensor_name(name, hf_config["num_hidden_layers"]): name for name in _weight_names(hf_config)}
    grid = {}
    for tensor in gguf.GGUFReader(path).tensors:
        if tensor.tensor_type == gguf.GGMLQuantizationType.Q4_0:
            name = back[tensor.name]
            q, scales = unpack(np.asarray(tensor.data).reshape(int(tensor.shape[1]), -1))
            grid[name] = unpermute(q, name, hf_config), unpermute(scales, name, hf_config)
    return grid


def pack(q: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Q4_0 blocks uint8 `[out, in / 32 * 18]` of integers `[out, in]` and scales `[out, in / 32]`.

    Example: scale 1, q = 0 for all but q[0] = -8 and q[16] = 7 → `00 3c, f0, 88, 88, …`.
    """
    nibbles = (q.reshape(len(q), -1, 2, GROUP // 2).astype(np.int16) + 8).astype(np.uint8)
    scale_bytes = np.ascontiguousarray(scales.astype("<f2")).view(np.uint8).reshape(*scales.shape, 2)
    blocks = np.concatenate([scale_bytes, nibbles[:, :, 0] | (nibbles[:, :, 1] << 4)], axis=-1)
    return np.ascontiguousarray(blocks.reshape(len(q), -1))


def unpack(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The inverse of `pack`."""
    parts = np.ascontiguousarray(blocks).reshape(len(blocks), -1, BLOCK_BYTES)
    scales = np.ascontiguousarray(parts[:, :, :2]).view("<f2")[:, :, 0]
    nibbles = np.stack([parts[:, :, 2:] & 15, parts[:, :, 2:] >> 4], axis=2)
    return (nibbles.astype(np.int8) - 8).reshape(len(blocks), -1), scales


def permute(rows: np.ndarray, name: str, hf_config: dict[str, Any]) -> np.ndarray:
    """Rows of a q or k projection in the order that llama.cpp's llama wants them; others as they are.

    Hugging Face rotates row i of a head with row i + head_dim / 2, llama.cpp's `llama` neighbours with each other: row
    `(half, i)` goes to `(i, half)`. `qwen2` keeps Hugging Face's order.
    """
    heads = _rotated_heads(name, hf_config)
    if not heads:
        return rows
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def unpermute(rows: np.ndarray, name: str, hf_config: dict[str, Any]) -> np.ndarray:
    heads = _rotated_heads(name, hf_config)
    if not heads:
        return rows
    return rows.reshape(heads, -1, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def tensor_name(name: str, num_layers: int) -> str:
    """Example: `model.layers.3.mlp.up_proj.weight` → `blk.3.ffn_up.weight`. Raises ValueError for an unknown tensor."""
    found = _name_map(num_layers).get_name(name, try_suffixes=(".weight", ".bias"))
    if found is None:
        raise ValueError(f"tensor {name}: expected a tensor of a plain Qwen2 or Llama model of {num_layers} layers")
    return found


@lru_cache(maxsize=4)
def _name_map(num_layers: int) -> gguf.TensorNameMap:
    """Llama's names without a mixture of experts are Qwen2's."""
    return gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, num_layers)


def rope_factors(hf_config: dict[str, Any]) -> np.ndarray | None:
    """What each rotation frequency is divided by, float32 `[head_dim / 2]`, for rope type `llama3` (Llama 3.1's report);
    None for the others, which are metadata."""
    rope = _rope(hf_config)
    if rope["rope_type"] != "llama3":
        return None
    dim, old_length = _head_dim(hf_config), rope["original_max_position_embeddings"]
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    frequencies = rope["rope_theta"] ** (-np.arange(0, dim, 2, dtype=np.float64) / dim)
    turns = old_length * frequencies / (2 * math.pi)
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return (1.0 / ((1.0 - smooth) / factor + smooth)).astype(np.float32)


def _rotated_heads(name: str, hf_config: dict[str, Any]) -> int:
    if architecture(hf_config) != "llama":
        return 0
    if ".q_proj." in name:
        return hf_config["num_attention_heads"]
    return hf_config.get("num_key_value_heads", hf_config["num_attention_heads"]) if ".k_proj." in name else 0


def _head_dim(hf_config: dict[str, Any]) -> int:
    return hf_config.get("head_dim") or hf_config["hidden_size"] // hf_config["num_attention_heads"]


def _rope(hf_config: dict[str, Any]) -> dict[str, Any]:
    """Rope settings with `rope_type` and `rope_theta`, wherever this version of transformers put them."""
    rope = {**(hf_config.get("rope_scaling") or {}), **(hf_config.get("rope_parameters") or {})}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "linear", "yarn", "llama3"):
        raise ValueError(f"config.json, rope type: expected default, linear, yarn or llama3, found {kind}")
    return {"rope_theta": hf_config.get("rope_theta", 10000.0), **rope, "rope_type": kind}


def _write_metadata(writer: gguf.GGUFWriter, hf_config: dict[str, Any], precision: Precision) -> None:
    heads, head_dim, rope = hf_config["num_attention_heads"], _head_dim(hf_config), _rope(hf_config)
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_file_type(_FILE_TYPES[precision])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(hf_config["vocab_size"])
    writer.add_context_length(hf_config["max_position_embeddings"])
    writer.add_embedding_length(hf_config["hidden_size"])
    writer.add_block_count(hf_config["num_hidden_layers"])
    writer.add_feed_forward_length(hf_config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(hf_config.get("num_key_value_heads", heads))
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(hf_config["rms_norm_eps"])
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        length = rope.get("original_max_position_embeddings", hf_config["max_position_embeddings"])
        writer.add_rope_scaling_orig_ctx_len(length)


def _write_vocabulary(writer: gguf.GGUFWriter, model_dir: Path, hf_config: dict[str, Any]) -> None:
    vocabulary = read_vocabulary(model_dir, hf_config["vocab_size"])
    if vocabulary is None:
        writer.add_tokenizer_model("no_vocab")
        return
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    writer.add_token_merges(vocabulary.merges)
    add_id = {"bos": writer.add_bos_token_id, "eos": writer.add_eos_token_id, "pad": writer.add_pad_token_id}
    for kind, token_id in vocabulary.special_ids.items():
        add_id.get(kind, writer.add_unk_token_id)(token_id)
    writer.add_add_bos_token(False)
    if vocabulary.chat_template:
        writer.add_chat_template(vocabulary.chat_template)


def _add_plain(writer: gguf.GGUFWriter, target: str, value: np.ndarray, precision: Precision, embeddings: str) -> None:
    """Norms and biases in f32, as llama.cpp wants them; matrices as the precision says."""
    if value.ndim == 1 or precision == "f32":
        writer.add_tensor(target, np.ascontiguousarray(value, dtype=np.float32))
    elif precision == "int4" and embeddings == "q8_0":
        kind = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(target, gguf.quants.quantize(np.ascontiguousarray(value), kind), raw_dtype=kind)
    else:
        if np.abs(value).max() > np.finfo(np.float16).max:
            raise ValueError(f"tensor {target}: expected weights within the range of f16, found {np.abs(value).max()}")
        writer.add_tensor(target, np.ascontiguousarray(value, dtype=np.float16))


def _tensors(model_dir: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Weights as float32, one at a time."""
    for shard in weight_files(model_dir):
        # By torch: numpy has no bfloat16.
        with safe_open(shard, framework="pt") as file:
            for name in sorted(file.keys()):
                if not name.endswith("rotary_emb.inv_freq"):
                    yield name, file.get_tensor(name).float().numpy()


def _weight_names(hf_config: dict[str, Any]) -> Iterator[str]:
    for number in range(hf_config["num_hidden_layers"]):
        yield from (f"model.layers.{number}.{part}.weight" for part in _LINEAR_LAYERS)


def _finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
