"""A vLLM plugin: top-p on CPU engines from the most probable tokens instead of a sort of the whole vocabulary.

vLLM's CPU sampler sorts all logits of every row in every step; with 152k tokens that takes nearly as long as a small
model itself. Here a partial selection finds the largest logits, and their probabilities among all show where top-p
cuts. A row whose candidates hold too little is tried with more of them, and then sorted by vLLM's own function. So is
a row where the cut is too close to call: a probability may lie within vLLM's own rounding of `1 - p`.

What is kept is what vLLM keeps: top-k first and with its ties, then top-p, at least one token. Of tokens with equal
logits at the cut of top-p as many are kept; which of them is left to an unstable order, there as here. Top-k alone is
not sorted by vLLM either, and GPU engines are not touched.

The rank of a sampled token, which comes with its logprob, is always 0: nobody here reads ranks, and counting them takes a pass
over all logits, which vLLM compiles for seconds of every engine's start.

`actors.cpu_lora` registers it on CPU engines. Where vLLM is not the one that was tested its own functions stay.
"""

import logging
from collections.abc import Callable
from typing import Any

import torch

from actors.patches import Patch, apply_patches

log = logging.getLogger(__name__)

NUM_CANDIDATES = (512, 4096)
"""Tried one after the other. They are fixed so that a row's result depends on no other row."""
ROUNDING = 2.0**-20
"""Relative error of vLLM's float32 sum over a row, by the tokens that are summed last, which are few and large."""
OUTSIDE_ROUNDING = 2.0**-13
"""The same by all the others: thousands of equal logits are rounded in one direction."""

Sort = Callable[[torch.Tensor, torch.Tensor | None, torch.Tensor], torch.Tensor]


def register() -> None:
    """Patch this process. Idempotent; does nothing where vLLM is not the one that was tested."""
    if problem := apply_patches(PATCHES):
        log.warning("vLLM's own sampler is used, whose top-p sorts the whole vocabulary: %s", problem)


def keep_top_k_top_p(
    logits: torch.Tensor,
    k: torch.Tensor | None,
    p: torch.Tensor,
    sort: Sort,
    num_candidates: tuple[int, ...] = NUM_CANDIDATES,
) -> torch.Tensor:
    """Logits `[B, V]` with −inf for tokens that top-k, or then top-p, leaves out; in place.

    `k` `[B]` integer, V for none; `p` `[B]` float32, 1 for none. Rows with neither are left as they are. `sort` does
    the same for the rows `[R, V]` that candidates do not settle.
    """
    is_cut = p < 1 if k is None else (p < 1) | (k < logits.shape[1])
    rows = is_cut.nonzero().squeeze(1)
    for num in num_candidates:
        if not len(rows):
            return logits
        subset = logits if len(rows) == len(logits) else logits[rows]
        values, token_ids = subset.topk(min(num, logits.shape[1]))
        probabilities = subset.softmax(-1)
        weights = probabilities.gather(1, token_ids)
        # Not one less the candidates': their rounding would be as large as what is left.
        outside = probabilities.scatter_(1, token_ids, 0).sum(-1)
        is_kept, is_settled = find_kept(
            values, weights.double(), outside.double(), None if k is None else k[rows], p[rows], logits.shape[1]
        )
        settled = rows[is_settled]
        values.masked_fill_(~is_kept, -torch.inf)
        logits.index_fill_(0, settled, -torch.inf)
        logits[settled[:, None], token_ids[is_settled]] = values[is_settled]
        rows = rows[~is_settled]
    if len(rows):
        logits[rows] = sort(logits[rows], None if k is None else k[rows], p[rows])
    return logits


def find_kept(
    values: torch.Tensor,
    weights: torch.Tensor,
    outside: torch.Tensor,
    k: torch.Tensor | None,
    p: torch.Tensor,
    num_tokens: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Which of a row's C largest logits are kept, bool `[R, C]`, and whether that is certain, bool `[R]`.

    `values` `[R, C]` fall; `weights` `[R, C]` and `outside` `[R]`, float64, are their probabilities and the sum of all
    others, up to one factor. `num_tokens` is V. As vLLM does it: a token is left out when the probabilities up to and
    with its own, from the smallest on, reach no more than `1 - p`.

    Example: probabilities 0.5, 0.3, 0.2 with p = 0.7: the sums are 1, 0.5 and 0.2, so two tokens are kept.
    """
    is_settled = weights[:, 0] > 0  # not so for NaN
    if k is not None:
        num_candidates = values.shape[1]
        has_limit = k < num_tokens
        smallest = values.gather(1, k.clamp(max=num_candidates).long()[:, None] - 1)
        weights = weights.masked_fill((values < smallest) & has_limit[:, None], 0)
        outside = outside.masked_fill(has_limit, 0)
        # Ties of the k-th logit are kept too, so all of them have to be among the candidates.
        has_ties = (k <= num_candidates) & ((values[:, -1:] < smallest).squeeze(1) | (num_candidates == num_tokens))
        is_settled &= ~has_limit | has_ties
    sums = outside[:, None] + weights.flip(-1).cumsum(-1).flip(-1)
    total = sums[:, 0]
    bound = (1 - p).double() * total
    error = bound * (ROUNDING + OUTSIDE_ROUNDING * outside / total)
    is_close = ((sums - bound[:, None]).abs() <= error[:, None]) & (sums > 0)
    is_settled &= (outside <= bound - error) & ~is_close[:, 1:].any(-1)
    is_kept = sums > bound[:, None]
    is_kept[:, 0] = True
    return is_kept, is_settled


def _wrap(original: Any) -> Any:
    def apply_top_k_top_p_pytorch(
        logits: torch.Tensor, k: torch.Tensor | None, p: torch.Tensor | None, allow_cpu_sync: bool = False
    ) -> torch.Tensor:
        if p is None or logits.dtype != torch.float32 or not logits.is_cpu:
            return original(logits, k, p, allow_cpu_sync)
        return keep_top_k_top_p(logits, k, p, original)

    return apply_top_k_top_p_pytorch


def _wrap_count(original: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def batched_count_greater_than(x: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(x), dtype=torch.int64)

    return batched_count_greater_than


PATCHES = (
    Patch(
        module="vllm.v1.sample.ops.topk_topp_sampler",
        name="apply_top_k_top_p_pytorch",
        source_sha256="d6bcc4924866e6b9",
        wrap=_wrap,
    ),
    Patch(
        module="vllm.v1.sample.ops.logprobs",
        name="batched_count_greater_than",
        source_sha256="85869de0f00bb508",
        wrap=_wrap_count,
        also_in=("vllm.v1.sample.sampler",),
    ),
)
