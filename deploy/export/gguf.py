"""GGUF files for llama.cpp: the base in f32, f16 or int4, and the adapter.

Integers and scales of an int4 base are packed as they are (Q4_0), never quantised again. A Q4_0 block is 18 bytes for
32 weights: the fp16 scale, then 16 bytes whose low nibbles are weights 0 to 15 and whose high nibbles are weights 16 to
31, each as q + 8.
"""

import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Literal

import gguf
import numpy as np
from safetensors import safe_open

from configs.models import weight_files
from deploy.export.decoder import Decoder, Rope
from deploy.export.quantize import GROUP, is_quantised
from deploy.export.vocabulary import read_vocabulary

Precision = Literal["f32", "f16", "int4"]
Grid = dict[str, tuple[np.ndarray, np.ndarray]]
"""Weight name → integers int8 `[out, in]`, scales float16 `[out, in / 32]`."""

BLOCK_BYTES = 2 + GROUP // 2
_FILE_TYPES = {
    "f32": gguf.LlamaFileType.ALL_F32,
    "f16": gguf.LlamaFileType.MOSTLY_F16,
    "int4": gguf.LlamaFileType.MOSTLY_Q4_0,
}


def write_base(
    model_dir: Path, decoder: Decoder, path: Path, precision: Precision, embeddings: str, grid: Grid
) -> None:
    """Write `path` from a Hugging Face directory.

    `grid` has every quantised weight of an int4 base, and is empty otherwise; `embeddings` (`f16` or `q8_0`) is what an
    int4 base keeps embeddings and lm_head in. Raises ValueError naming the tensor that does not fit.
    """
    writer = gguf.GGUFWriter(path, decoder.architecture)
    try:
        _write_metadata(writer, decoder, precision)
        _write_vocabulary(writer, model_dir, decoder)
        for name, value in _tensors(model_dir):
            if name == "lm_head.weight" and decoder.is_tied:
                continue
            target = tensor_name(name, decoder)
            if is_quantised(name, value.shape) and precision == "int4":
                q, scales = grid[name]
                blocks = pack(decoder.permute(q, name), decoder.permute(scales, name))
                writer.add_tensor(target, blocks, raw_dtype=gguf.GGMLQuantizationType.Q4_0)
            else:
                if name.endswith("norm.weight"):
                    value = value + decoder.norm_offset
                _add_plain(writer, target, decoder.permute(value, name), precision, embeddings)
        _write_divisors(writer, decoder.rope)
        _finish(writer)
    finally:
        writer.close()


def write_adapter(adapter_dir: Path, decoder: Decoder, path: Path) -> None:
    """Write a PEFT directory as LoRA for that base.

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
    writer = gguf.GGUFWriter(path, decoder.architecture)
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
                value = decoder.permute(value, name) if matrix.startswith("B") else value
                writer.add_tensor(
                    f"{tensor_name(name, decoder)}.lora_{matrix[0].lower()}",
                    np.ascontiguousarray(value),
                )
        _finish(writer)
    finally:
        writer.close()


def read_grid(path: Path, decoder: Decoder) -> Grid:
    """Integers and scales of every Q4_0 tensor of a base file, under the names and in the order of the weights."""
    back = {tensor_name(name, decoder): name for name in _weight_names(decoder)}
    grid = {}
    for tensor in gguf.GGUFReader(path).tensors:
        if tensor.tensor_type == gguf.GGMLQuantizationType.Q4_0:
            name = back[tensor.name]
            q, scales = unpack(np.asarray(tensor.data).reshape(int(tensor.shape[1]), -1))
            grid[name] = decoder.unpermute(q, name), decoder.unpermute(scales, name)
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


def tensor_name(name: str, decoder: Decoder) -> str:
    """Example: `model.layers.3.mlp.up_proj.weight` → `blk.3.ffn_up.weight`. Raises ValueError for an unknown tensor."""
    found = _name_map(decoder.architecture, decoder.num_layers).get_name(name, try_suffixes=(".weight", ".bias"))
    if found is None:
        raise ValueError(
            f"tensor {name}: expected a tensor of a plain {decoder.architecture} model of {decoder.num_layers} layers"
        )
    return found


@lru_cache(maxsize=4)
def _name_map(architecture: str, num_layers: int) -> gguf.TensorNameMap:
    """Llama's names without a mixture of experts are Qwen2's."""
    numbers = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    return gguf.get_tensor_name_map(numbers["qwen2" if architecture == "llama" else architecture], num_layers)


def _write_metadata(writer: gguf.GGUFWriter, decoder: Decoder, precision: Precision) -> None:
    rope = decoder.rope
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_file_type(_FILE_TYPES[precision])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(decoder.vocabulary)
    writer.add_context_length(decoder.context_tokens)
    writer.add_embedding_length(decoder.hidden)
    writer.add_block_count(decoder.num_layers)
    writer.add_feed_forward_length(decoder.inner)
    writer.add_head_count(decoder.heads)
    writer.add_head_count_kv(decoder.kv_heads)
    writer.add_key_length(decoder.head_dim)
    writer.add_value_length(decoder.head_dim)
    writer.add_layer_norm_rms_eps(decoder.norm_eps)
    if decoder.window_tokens:
        writer.add_sliding_window(decoder.window_tokens)
    writer.add_rope_dimension_count(rope.dim)
    writer.add_rope_freq_base(rope.theta)
    if rope.kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope.kind))
        writer.add_rope_scaling_factor(rope.factor)
    if rope.kind in ("yarn", "longrope"):
        writer.add_rope_scaling_orig_ctx_len(rope.original_tokens)
    if rope.kind == "longrope":
        writer.add_rope_scaling_attn_factors(rope.attention_factor)


def _write_divisors(writer: gguf.GGUFWriter, rope: Rope) -> None:
    """What each rotation frequency is divided by, float32 `[dim / 2]`.

    llama.cpp's phi3 takes other divisors for a context beyond the original length, and its context is that of all sequences
    together. No sequence of an export is longer, so both tensors are those of short ones.
    """
    names = {"llama3": ("rope_freqs",), "longrope": ("rope_factors_long", "rope_factors_short")}
    for name in names.get(rope.kind, ()):
        writer.add_tensor(f"{name}.weight", np.array(rope.divisors, dtype=np.float32))


def _write_vocabulary(writer: gguf.GGUFWriter, model_dir: Path, decoder: Decoder) -> None:
    vocabulary = read_vocabulary(model_dir, decoder.vocabulary)
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


def _weight_names(decoder: Decoder) -> Iterator[str]:
    for number in range(decoder.num_layers):
        yield from (f"model.layers.{number}.{part}.weight" for part in decoder.linear_layers)


def _finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
