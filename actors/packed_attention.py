"""Attention of rows that lie one after the other, without padding, each behind a prompt that it may share.

Below a row's `start` everything is the plain base's (`actors.masked_lora`), so the keys and values of a prompt carry no gradient
and are the same for every completion of a group. They are computed once, kept here by layer, and each row sees

    its prompt's keys and values, then its own up to the token itself

A position of a row is its place in prompt and tail together, so a sliding window counts from there. On a GPU this is one call of
flash attention for rows of different lengths; elsewhere rows of like lengths are padded to each other, in attention alone.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

ATTENTION = "terse_packed"
"""Name under which transformers knows it."""
LIKE = 0.75
"""Rows share a padded call when the shorter has at least this share of the longer one's queries and keys."""

LayerStates = dict[int, Tensor]
"""Layer → keys, and behind them values, `[S, 2 × heads of keys, D]` of all prompts."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Bucket:
    """Rows of like lengths: B rows, Tq queries and Tk keys of the longest."""

    queries: Tensor
    """int64 `[B, Tq]`, places among the pass's tokens; a row's last one in the padding"""
    keys: Tensor
    """int64 `[B, Tk]`, places among prompts and tokens together"""
    positions: Tensor
    """int64 `[B, Tq]`, of each query in its row"""
    masks: dict[tuple[int | None, torch.dtype], Tensor] = field(default_factory=dict)

    def mask(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """`[B, 1, Tq, Tk]`: 0 where a query sees a key and -inf elsewhere; one for all layers with that sliding window."""
        if (window, dtype) not in self.masks:
            places = torch.arange(self.keys.shape[1], device=self.keys.device)
            unseen = places > self.positions[..., None]
            if window:
                unseen |= places <= self.positions[..., None] - window
            mask = torch.zeros(unseen.shape, dtype=dtype, device=unseen.device)
            self.masks[window, dtype] = mask.masked_fill_(unseen, float("-inf"))[:, None]
        return self.masks[window, dtype]


@dataclass(frozen=True, kw_only=True, eq=False)
class Segments:
    """Where queries and keys of each row lie. Keys are numbered over all prompts, then over the tokens of the pass."""

    prompt_begins: np.ndarray
    """int64 `[R]`, of each row's prompt among all prompts"""
    prompt_lengths: np.ndarray
    """int64 `[R]`, 0 for a row without one"""
    lengths: np.ndarray
    """int64 `[R]`, of each row's own tokens"""
    num_prompt_tokens: int
    """Of all prompts together: S."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def to(self, device: torch.device) -> "Segments":
        parts = {name: getattr(self, name) for name in ("prompt_begins", "prompt_lengths", "lengths")}
        return Segments(**parts, num_prompt_tokens=self.num_prompt_tokens, device=device)

    @cached_property
    def key_index(self) -> Tensor | None:
        """int64 `[number of keys]`: places of every row's keys, one row after the other; None when no row has a prompt."""
        if not self.num_prompt_tokens:
            return None
        return torch.from_numpy(np.concatenate([self._keys(row) for row in range(len(self.lengths))])).to(self.device)

    @cached_property
    def query_ends(self) -> Tensor:
        """int32 `[R + 1]`, as flash attention wants them; `key_ends` likewise."""
        return self._ends(self.lengths)

    @cached_property
    def key_ends(self) -> Tensor:
        return self._ends(self.lengths + self.prompt_lengths)

    @cached_property
    def buckets(self) -> tuple[list[Bucket], Tensor]:
        """Rows by like lengths, and for each token its place in the buckets' outputs, one after the other."""
        num_keys, begins = self.lengths + self.prompt_lengths, self._begins
        back, offset, made = np.empty(int(self.lengths.sum()), dtype=np.int64), 0, []
        for rows in like_rows(self.lengths, num_keys):
            most_queries, most_keys = int(self.lengths[rows].max()), int(num_keys[rows].max())
            queries = np.minimum(np.arange(most_queries)[None], self.lengths[rows][:, None] - 1)
            keys = np.zeros((len(rows), most_keys), dtype=np.int64)
            for place, row in enumerate(rows):
                keys[place, : num_keys[row]] = self._keys(row)
                begin, length = begins[row], self.lengths[row]
                back[begin : begin + length] = offset + place * most_queries + np.arange(length)
            offset += len(rows) * most_queries
            made.append(
                Bucket(
                    queries=self._tensor(queries + begins[rows][:, None]),
                    keys=self._tensor(keys),
                    positions=self._tensor(queries + self.prompt_lengths[rows][:, None]),
                )
            )
        return made, self._tensor(back)

    @cached_property
    def _begins(self) -> np.ndarray:
        return np.cumsum(self.lengths) - self.lengths

    def _keys(self, row: int) -> np.ndarray:
        begin = self.prompt_begins[row]
        own = self.num_prompt_tokens + self._begins[row]
        prompt = np.arange(begin, begin + self.prompt_lengths[row])
        return np.concatenate([prompt, np.arange(own, own + self.lengths[row])])

    def _ends(self, lengths: np.ndarray) -> Tensor:
        return torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)).to(self.device)

    def _tensor(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(self.device)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PackedPass:
    """What attention must know of one forward pass."""

    segments: Segments
    prompts: LayerStates
    """Empty when the rows have no prompts."""
    kept: LayerStates | None = None
    """Where this pass leaves its own keys and values; None: nowhere."""


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    packed: PackedPass | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention of one packed pass, in transformers' form: query `[1, heads, N, D]` → `[1, N, heads, D]`.

    Raises RuntimeError for a model that does not hand `packed` on to its layers.
    """
    if packed is None:
        raise RuntimeError(f"{type(module).__name__}: expected the packed pass, which its decoder does not hand on")
    q, k, v = (states.squeeze(0).transpose(0, 1) for states in (query, key, value))
    kv = torch.cat([k, v], dim=1)  # one tensor, so that rows are gathered from it once
    if packed.kept is not None:
        packed.kept[module.layer_idx] = kv
    if packed.segments.num_prompt_tokens:
        kv = torch.cat([packed.prompts[module.layer_idx], kv])
    run = _flash if _has_flash(q) else _padded
    return run(q, kv, packed.segments, scaling, sliding_window)[None], None


def _has_flash(q: Tensor) -> bool:
    """Whether flash attention takes these queries `[N, heads, D]`."""
    if not q.is_cuda or q.dtype not in (torch.bfloat16, torch.float16) or _varlen() is None:
        return False
    return torch.cuda.get_device_capability(q.device) >= (8, 0) and q.shape[-1] <= 256 and q.shape[-1] % 8 == 0


@cache
def _varlen() -> Callable[..., Any] | None:
    """torch's flash attention for rows of different lengths; None where this torch has none that takes all that is needed."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    needed = {"scale", "window_size", "enable_gqa"}
    return varlen_attn if needed <= inspect.signature(varlen_attn).parameters.keys() else None


def _flash(q: Tensor, kv: Tensor, segments: Segments, scaling: float | None, window: int | None) -> Tensor:
    varlen = _varlen()
    assert varlen is not None
    if segments.key_index is not None:
        kv = kv.index_select(0, segments.key_index)
    k, v = kv.chunk(2, dim=1)
    out: Tensor = varlen(
        *(q.contiguous(), k.contiguous(), v.contiguous(), segments.query_ends, segments.key_ends),
        max_q=int(segments.lengths.max()),
        max_k=int((segments.lengths + segments.prompt_lengths).max()),
        scale=scaling,
        window_size=(window - 1 if window else -1, 0),
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return out


def _padded(q: Tensor, kv: Tensor, segments: Segments, scaling: float | None, window: int | None) -> Tensor:
    buckets, back = segments.buckets
    outs: list[Tensor] = []
    for bucket in buckets:
        k, v = _rows(kv, bucket.keys).chunk(2, dim=1)
        out = F.scaled_dot_product_attention(
            *(_rows(q, bucket.queries), k, v),
            attn_mask=bucket.mask(window, q.dtype),
            scale=scaling,
            enable_gqa=q.shape[1] != k.shape[1],
        )
        outs.append(out.transpose(1, 2).flatten(0, 1))
    return (outs[0] if len(outs) == 1 else torch.cat(outs)).index_select(0, back)


def _rows(states: Tensor, index: Tensor) -> Tensor:
    """`[tokens, heads, D]` at `[B, T]` → `[B, heads, T, D]`."""
    return states.index_select(0, index.flatten()).unflatten(0, index.shape).transpose(1, 2)


def like_rows(lengths: np.ndarray, num_keys: np.ndarray) -> list[list[int]]:
    """Rows, the longest first, parted where one has less than `LIKE` of the queries or of the keys of another in its bucket.

    Example: lengths `[4, 8, 7]`, keys `[9, 9, 9]` → `[[1, 2], [0]]`.
    """
    buckets: list[list[int]] = []
    fewest = most = 0
    for row in sorted(range(len(lengths)), key=lambda row: (-lengths[row], -num_keys[row])):
        fewest, most = min(fewest, num_keys[row]), max(most, num_keys[row])
        if not buckets or lengths[row] < LIKE * lengths[buckets[-1][0]] or fewest < LIKE * most:
            buckets.append([])
            fewest = most = num_keys[row]
        buckets[-1].append(row)
    return buckets


def segments_of(
    lengths: Sequence[int], prompts: Sequence[tuple[int, int]] = (), num_prompt_tokens: int = 0
) -> Segments:
    """Of rows with so many own tokens; `prompts` has each row's (begin, length) among all prompts, none when empty."""
    begins, prompt_lengths = zip(*prompts, strict=True) if prompts else ([0] * len(lengths), [0] * len(lengths))
    return Segments(
        prompt_begins=np.asarray(begins, dtype=np.int64),
        prompt_lengths=np.asarray(prompt_lengths, dtype=np.int64),
        lengths=np.asarray(lengths, dtype=np.int64),
        num_prompt_tokens=num_prompt_tokens,
    )


ALL_ATTENTION_FUNCTIONS.register(ATTENTION, attend)
# Each row's mask follows from its segments; transformers need not make one.
ALL_MASK_ATTENTION_FUNCTIONS.register(ATTENTION, lambda *_, **__: None)
