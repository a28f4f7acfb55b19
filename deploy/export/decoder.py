"""What llama.cpp must know of a model beside its weights, from `config.json`.

A setting that the file format cannot say, or that llama.cpp computes in another way than the training stack, is refused by
its name: an export is right or it is not made.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from configs.architectures import ARCHITECTURES, FUSED_LAYERS

ACTIVATIONS = {"gemma3": "gelu_pytorch_tanh"}
"""Of the MLP; silu elsewhere."""
ROPE_TYPES = {"gemma3": ("default", "linear"), "phi3": ("default", "longrope")}
PLAIN_ROPE_TYPES = ("default", "linear", "yarn", "llama3")
NEIGHBOURS = ("llama", "smollm3")
"""Architectures whose rotation pairs neighbouring rows in llama.cpp."""
GEMMA3_PERIOD, SMOLLM3_PERIOD = 6, 4
"""Every sixth layer of Gemma 3 sees the whole text, every fourth of SmolLM3 has no rotation: fixed in llama.cpp."""
GEMMA3_LOCAL_THETA = 10000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rope:
    """Rotary position embedding."""

    kind: str
    """transformers' rope type."""
    theta: float
    dim: int
    """Rows of a head that are rotated."""
    factor: float = 1.0
    original_tokens: int = 0
    """Context length before it was scaled."""
    attention_factor: float = 1.0
    """`longrope`: what cosine and sine are multiplied with."""
    divisors: tuple[float, ...] = ()
    """`[dim / 2]`: what each frequency is divided by; empty for 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoder:
    """A decoder under llama.cpp's view. Sizes are widths and counts, `context_tokens` tokens."""

    architecture: str
    """llama.cpp's name."""
    vocabulary: int
    context_tokens: int
    hidden: int
    inner: int
    num_layers: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float
    rope: Rope
    window_tokens: int
    """Gemma 3's sliding window; 0 for none."""
    is_tied: bool

    @property
    def norm_offset(self) -> float:
        """Gemma multiplies with 1 + w, llama.cpp with what the file has."""
        return 1.0 if self.architecture == "gemma3" else 0.0

    @property
    def linear_layers(self) -> tuple[str, ...]:
        """Linear layers of a block."""
        names = ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"]
        if self.architecture == "phi3":
            names = list(FUSED_LAYERS)
        parts = [f"{'self_attn' if name[0] in 'qkv' else 'mlp'}.{name}" for name in names]
        return (*parts, "self_attn.o_proj", "mlp.down_proj")

    def permute(self, rows: np.ndarray, name: str) -> np.ndarray:
        """Rows of a q or k projection in the order of llama.cpp's rotation; others, and other architectures', as they are.

        Hugging Face rotates row i of a head with row i + head_dim / 2, llama.cpp's `llama` and `smollm3` neighbours with
        each other: row `(half, i)` goes to `(i, half)`.
        """
        heads = self._rotated_heads(name)
        return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape) if heads else rows

    def unpermute(self, rows: np.ndarray, name: str) -> np.ndarray:
        """The inverse of `permute`."""
        heads = self._rotated_heads(name)
        return rows.reshape(heads, -1, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape) if heads else rows

    def _rotated_heads(self, name: str) -> int:
        if self.architecture not in NEIGHBOURS:
            return 0
        return self.heads if ".q_proj." in name else self.kv_heads if ".k_proj." in name else 0


def read_decoder(hf_config: dict[str, Any], max_length_tokens: int) -> Decoder:
    """The decoder of a `config.json`, for sequences of at most `max_length_tokens`.

    Raises ValueError for an architecture, or a setting of one, that is not exported.
    """
    name = (hf_config.get("architectures") or ["none"])[0]
    if name not in ARCHITECTURES:
        raise ValueError(f"architecture: expected one of {', '.join(ARCHITECTURES)}, found {name}")
    kind, found = ARCHITECTURES[name].model_type, hf_config.get("model_type")
    if found != kind:
        raise ValueError(f"config.json, model_type: expected {kind} for {name}, found {found}")
    architecture, full = ARCHITECTURES[name].device, with_defaults(hf_config)
    _check(full, architecture, max_length_tokens)
    heads = full["num_attention_heads"]
    head_dim = full.get("head_dim") or full["hidden_size"] // heads
    return Decoder(
        architecture=architecture,
        vocabulary=full["vocab_size"],
        context_tokens=full["max_position_embeddings"],
        hidden=full["hidden_size"],
        inner=full["intermediate_size"],
        num_layers=full["num_hidden_layers"],
        heads=heads,
        kv_heads=full.get("num_key_value_heads") or heads,
        head_dim=head_dim,
        norm_eps=full["rms_norm_eps"],
        rope=_rope(full, architecture, head_dim, max_length_tokens),
        window_tokens=full["sliding_window"] if architecture == "gemma3" else 0,
        is_tied=bool(full["tie_word_embeddings"]),
    )


def with_defaults(hf_config: dict[str, Any]) -> dict[str, Any]:
    """`config.json` with what it leaves to transformers' defaults; rope settings are in `rope_parameters` then."""
    from transformers import AutoConfig

    try:
        return AutoConfig.for_model(**hf_config).to_dict()
    except Exception as error:  # of transformers' own validation: no common kind
        words = " ".join(str(error).split())
        raise ValueError(f"config.json: expected settings that transformers reads, found {words:.200}") from error


def _check(full: dict[str, Any], architecture: str, max_length_tokens: int) -> None:
    num_layers = full["num_hidden_layers"]
    activation = ACTIVATIONS.get(architecture, "silu")
    found = "hidden_activation" if "hidden_activation" in full else "hidden_act"
    expected: dict[str, Any] = {found: activation, "mlp_bias": False, "partial_rotary_factor": 1.0}
    if architecture in ("qwen3", "gemma3", "smollm3"):
        expected["attention_bias"] = False
    if architecture == "gemma3":
        expected |= {
            "layer_types": _every(GEMMA3_PERIOD, num_layers, "full_attention", "sliding_attention"),
            "query_pre_attn_scalar": full.get("head_dim"),
            "use_bidirectional_attention": False,
            "attn_logit_softcapping": None,
        }
    if architecture == "smollm3":
        expected["no_rope_layers"] = _every(SMOLLM3_PERIOD, num_layers, 0, 1)
    for key, value in expected.items():
        if full.get(key, value) != value:
            raise ValueError(f"config.json, {key}: expected {value!r:.300} for an export, found {full[key]!r:.300}")
    window, has_window = full.get("sliding_window"), full.get("use_sliding_window", True)
    # A window that no sequence is longer than changes nothing.
    if architecture != "gemma3" and has_window and window and window < max_length_tokens:
        raise ValueError(
            f"config.json, sliding_window: expected none, or at least model.max_length_tokens ({max_length_tokens}), "
            f"for an export, found {window}"
        )


def _every(period: int, num_layers: int, on: Any, off: Any) -> list[Any]:
    """`on` for the last layer of each period. Example: 2, 5, "b", "a" → a b a b a."""
    return [on if (number + 1) % period == 0 else off for number in range(num_layers)]


def _rope(full: dict[str, Any], architecture: str, head_dim: int, max_length_tokens: int) -> Rope:
    settings = full["rope_parameters"]
    if architecture == "gemma3":
        local, settings = settings["sliding_attention"], settings["full_attention"]
        if (local["rope_type"], local["rope_theta"]) != ("default", GEMMA3_LOCAL_THETA):
            raise ValueError(
                f"config.json, rope of sliding layers: expected type default with theta {GEMMA3_LOCAL_THETA:g}, found "
                f"{local['rope_type']} with {local['rope_theta']:g}"
            )
    kind, kinds = settings["rope_type"], ROPE_TYPES.get(architecture, PLAIN_ROPE_TYPES)
    if kind not in kinds:
        raise ValueError(f"config.json, rope type: expected {' or '.join(kinds)}, found {kind}")
    share = settings.get("partial_rotary_factor", 1.0)
    if share != 1.0 and architecture != "phi3":
        raise ValueError(f"config.json, partial_rotary_factor: expected 1.0 for an export, found {share}")
    context = full["max_position_embeddings"]
    given = settings.get("original_max_position_embeddings") or full.get("original_max_position_embeddings")
    original = int(given or context)
    rope = {"kind": kind, "theta": float(settings["rope_theta"]), "dim": int(head_dim * share)}
    if kind == "llama3":
        return Rope(**rope, divisors=_llama3_divisors(settings, head_dim))
    if kind == "longrope":
        if max_length_tokens > original:
            raise ValueError(
                f"config.json, rope type longrope: expected model.max_length_tokens at most {original}, where its rotation "
                f"changes, found {max_length_tokens}"
            )
        factor = settings.get("attention_factor") or _longrope_factor(
            settings.get("factor") or context / original, original
        )
        divisors = tuple(settings["short_factor"])
        return Rope(**rope, original_tokens=original, attention_factor=factor, divisors=divisors)
    if kind == "default":
        return Rope(**rope)
    return Rope(**rope, factor=settings["factor"], original_tokens=original)


def _llama3_divisors(settings: dict[str, Any], dim: int) -> tuple[float, ...]:
    """Llama 3.1's report: long waves are slowed by `factor`, short ones are kept, those between are mixed."""
    original = settings["original_max_position_embeddings"]
    low, high, factor = settings["low_freq_factor"], settings["high_freq_factor"], settings["factor"]
    frequencies = settings["rope_theta"] ** (-np.arange(0, dim, 2, dtype=np.float64) / dim)
    turns = original * frequencies / (2 * math.pi)
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
    divisors: Sequence[float] = (1.0 / ((1.0 - smooth) / factor + smooth)).tolist()
    return tuple(divisors)


def _longrope_factor(scale: float, original_tokens: int) -> float:
    """LongRoPE (arXiv 2402.13753): sqrt(1 + ln(scale) / ln(original length)), 1 where nothing is scaled."""
    return math.sqrt(1 + math.log(scale) / math.log(original_tokens)) if scale > 1 else 1.0
