"""Sizes of a decoder from its `config.json`: what its weights, an adapter, and a token's keys and values take."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from configs.architectures import adapted_layers

DTYPE_BYTES = {"float32": 4, "bfloat16": 2}
"""Bytes of one weight, by `model.dtype`."""
CHUNK_LOGITS = {"cpu": 1 << 24, "cuda": 1 << 26}
"""Kind of device → logits that the learner computes at a time: 64 MiB in fp32, and 256 on a GPU, which fewer would not fill."""
QK_NORM_TYPES = ("qwen3", "gemma3", "gemma3_text", "olmo2")
"""Architectures that normalise queries and keys."""
FUSED_TYPES = ("phi3",)
OUTPUT_NORM_TYPES = ("gemma2", "gemma3", "gemma3_text")
DEFAULT_HEAD_DIMS = {"qwen3": 128, "gemma3_text": 256}
"""Where config.json leaves it out; elsewhere it is hidden size over heads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """A Llama-like decoder: widths of its layers."""

    hidden: int
    inner: int
    """Width of the MLP."""
    query: int
    """All query heads together; `key_value` likewise, keys alone."""
    key_value: int
    num_layers: int
    vocabulary: int
    is_tied: bool
    has_qk_norm: bool
    is_fused: bool = False
    """One linear layer for queries, keys and values, and one for gate and up (Phi-3)."""
    has_output_norms: bool = False
    """Two more norms in a layer: of what attention and MLP add (Gemma)."""

    @classmethod
    def from_config(cls, hf_config: dict[str, Any]) -> "ModelShape":
        config = {**hf_config, **(hf_config.get("text_config") or {})}
        hidden, heads = config["hidden_size"], config["num_attention_heads"]
        head_dim = config.get("head_dim") or DEFAULT_HEAD_DIMS.get(config.get("model_type", "")) or hidden // heads
        return cls(
            hidden=hidden,
            inner=config["intermediate_size"],
            query=heads * head_dim,
            key_value=(config.get("num_key_value_heads") or heads) * head_dim,
            num_layers=config["num_hidden_layers"],
            vocabulary=config["vocab_size"],
            is_tied=is_tied(hf_config),
            has_qk_norm=config.get("model_type") in QK_NORM_TYPES,
            has_output_norms=config.get("model_type") in OUTPUT_NORM_TYPES,
            is_fused=config.get("model_type") in FUSED_TYPES,
        )

    @property
    def widths(self) -> dict[str, tuple[int, int]]:
        """(in, out) of each linear layer of a block."""
        if self.is_fused:
            return {
                "qkv_proj": (self.hidden, self.query + 2 * self.key_value),
                "o_proj": (self.query, self.hidden),
                "gate_up_proj": (self.hidden, 2 * self.inner),
                "down_proj": (self.inner, self.hidden),
            }
        return {
            "q_proj": (self.hidden, self.query),
            "k_proj": (self.hidden, self.key_value),
            "v_proj": (self.hidden, self.key_value),
            "o_proj": (self.query, self.hidden),
            "gate_proj": (self.hidden, self.inner),
            "up_proj": (self.hidden, self.inner),
            "down_proj": (self.inner, self.hidden),
        }

    @property
    def num_parameters(self) -> int:
        """Linear layers and embeddings; norms and biases are left out."""
        block = sum(rows * columns for rows, columns in self.widths.values())
        return self.num_layers * block + (1 if self.is_tied else 2) * self.vocabulary * self.hidden

    @property
    def num_computing_parameters(self) -> int:
        """Those that a token is multiplied with: the input embedding is only looked up."""
        return self.num_parameters - (0 if self.is_tied else self.vocabulary * self.hidden)

    def num_adapter_parameters(self, rank: int, target_modules: Sequence[str]) -> int:
        """A `[rank, in]` and a `[out, rank]` matrix for each adapted layer."""
        layers, _ = adapted_layers(target_modules, self.widths)
        return self.num_layers * sum(rank * sum(self.widths[name]) for name in layers)

    def kv_token_bytes(self, dtype_bytes: int) -> int:
        """Keys and values of one token in all layers."""
        return 2 * self.num_layers * self.key_value * dtype_bytes

    def saved_layer_bytes(self, rank: int, dtype_bytes: int) -> int:
        """What the backward pass needs of one token in one layer, the base frozen.

        Counted with saved-tensor hooks on `PolicyModel` (bf16: 8 hidden + 8 inner + 4 query + 4 key_value + 14 rank bytes):
        norms save their input, and what they feed saves their output, attention its three inputs and its output, the MLP four
        tensors of its width, and each adapted layer what lies between A and B.
        """
        attention = self.query + self.key_value
        saved = dtype_bytes * (4 * self.hidden + 4 * self.inner + 2 * attention + 7 * rank)
        if self.has_qk_norm:
            saved += dtype_bytes * attention
        if self.has_output_norms:
            saved += 2 * dtype_bytes * self.hidden
        if self.is_fused:
            # Values are a part of the fused layer's output, which stays whole.
            saved += dtype_bytes * (2 * self.query + self.key_value)
        return saved

    def working_layer_bytes(self, dtype_bytes: int) -> int:
        """Gradients of one token that are alive at once while one layer's backward pass runs."""
        return 2 * dtype_bytes * (self.inner + self.hidden)


def is_tied(hf_config: dict[str, Any]) -> bool:
    """Whether input and output embedding are one matrix: what config.json says, else the architecture's default, which
    differs (Gemma's is true, and Google's files leave it out)."""
    for settings in (hf_config, hf_config.get("text_config") or {}):
        if "tie_word_embeddings" in settings:
            return bool(settings["tie_word_embeddings"])
    from transformers import AutoConfig

    try:
        return bool(AutoConfig.for_model(hf_config.get("model_type", "")).tie_word_embeddings)
    except (ValueError, AttributeError):  # a model type that transformers does not know
        return False


def missing_sizes(hf_config: dict[str, Any]) -> list[str]:
    """What `config.json` lacks for a shape."""
    config = {**hf_config, **(hf_config.get("text_config") or {})}
    needed = ("hidden_size", "num_attention_heads", "num_hidden_layers", "intermediate_size", "vocab_size")
    return [name for name in needed if name not in config]
