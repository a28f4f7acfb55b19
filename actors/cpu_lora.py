"""A vLLM plugin: LoRA on CPU engines as one matrix product per adapter instead of one gather per token.

vLLM's CPU fallback copies the adapter's matrices once for every token before it multiplies, which makes the
adapter several times more expensive than the model, and it reads the index -1 ("no adapter") as the last
slot. Here the tokens of a step are grouped by adapter slot and each group is multiplied as a whole; tokens
without adapter are left alone. GPU engines are not touched.

Registered as `vllm.general_plugins`, so vLLM loads it in each of its processes, and `actors.cpu_sampling` with it.
"""

from typing import Any

import torch

from actors import cpu_sampling


def register() -> None:
    """Make CPU engines use the grouped wrapper and the faster top-p. Idempotent; does nothing on other platforms."""
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        wrapper = "actors.cpu_lora.get_grouped_wrapper"
        platform: Any = type(current_platform)
        platform.get_punica_wrapper = classmethod(lambda cls: wrapper)
        cpu_sampling.register()


def get_grouped_wrapper(*args: Any, **kwargs: Any) -> Any:
    """What vLLM calls to make a wrapper (it only knows the name of a callable)."""
    return _grouped_wrapper_class()(*args, **kwargs)


def group_rows(slots: torch.Tensor) -> list[tuple[int, torch.Tensor | None]]:
    """Rows of each adapter slot, from slot indices `[T]` where -1 means no adapter.

    A slot that owns every row comes with None instead of an index: `[0, 0, 0] → [(0, None)]`,
    `[0, -1, 1] → [(0, [0]), (1, [2])]`, `[-1, -1] → []`.
    """
    present = [slot for slot in torch.unique(slots).tolist() if slot >= 0]
    if len(present) == 1 and bool((slots == present[0]).all()):
        return [(present[0], None)]
    return [(slot, (slots == slot).nonzero().squeeze(1)) for slot in present]


def apply_grouped(
    output: torch.Tensor,
    inputs: torch.Tensor,
    groups: list[tuple[int, torch.Tensor | None]],
    lora_a: tuple[torch.Tensor, ...],
    lora_b: tuple[torch.Tensor, ...],
    output_slices: tuple[int, ...],
    scale: float,
) -> None:
    """`output[rows, slice] += scale · inputs[rows] @ A[slot].T @ B[slot].T`, in place.

    Shapes: output `[T, out]`, inputs `[T, in]`, A `[slots, 1, rank, in]`, B `[slots, 1, width, rank]` for each
    of the packed slices (three for a fused qkv).
    """
    for slot, rows in groups:
        selected = inputs if rows is None else inputs[rows]
        offset = 0
        for a, b, width in zip(lora_a, lora_b, output_slices, strict=True):
            expand = b[slot, 0].T
            shrunk = selected @ a[slot, 0].T
            target = output[:, offset : offset + expand.shape[1]]
            if rows is None:
                target.addmm_(shrunk, expand, alpha=scale)
            else:
                target.index_add_(0, rows, shrunk @ expand, alpha=scale)
            offset += width


def _grouped_wrapper_class() -> type:
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    class GroupedPunicaWrapperCPU(PunicaWrapperCPU):
        def __init__(self, max_num_batched_tokens: int, max_batches: int, *args: Any, **kwargs: Any) -> None:
            # Buffers by runs of tokens with one adapter: a request is one run, a masked one (`kv_sharing`) two.
            super().__init__(max_num_batched_tokens, 2 * max_batches, *args, **kwargs)

        def update_metadata(self, *args: Any, **kwargs: Any) -> None:
            super().update_metadata(*args, **kwargs)
            self._groups = group_rows(self.token_lora_indices)

        def add_lora_linear(
            self,
            y: torch.Tensor,
            x: torch.Tensor,
            lora_a_stacked: tuple[torch.Tensor, ...],
            lora_b_stacked: tuple[torch.Tensor, ...],
            scale: float,
            output_slices: tuple[int, ...],
            **kwargs: Any,
        ) -> None:
            # The step may be padded past the mapped tokens; those rows have no adapter.
            num_tokens = self.token_lora_indices.shape[0]
            apply_grouped(
                y.view(-1, y.shape[-1])[:num_tokens],
                x.view(-1, x.shape[-1])[:num_tokens],
                self._groups,
                lora_a_stacked,
                lora_b_stacked,
                output_slices,
                scale,
            )

    return GroupedPunicaWrapperCPU
