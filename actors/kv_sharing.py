"""A vLLM plugin: an adapter that is on from position `start`, over prompt blocks shared with the base.

Below `start` a request computes what the plain base computes, so its keys and values there are the base's, and
base, reasoning and other adapters' requests can use each other's prompt blocks. Stock vLLM applies an adapter to
every token and keeps the prefix cache of each adapter apart. Two things change:

    mapping   the tokens of a step below their request's `start` get adapter 0, which is none (model runner)
    hash      blocks that end at or before `start` leave the adapter out of their hash, later ones take `start` in
              (scheduler): one adapter from two starts on computes two things

Both read `start` from the request's `SamplingParams.extra_args`. Requests without it, and every other user of this
vLLM, are served as before.

Registered as `vllm.general_plugins`, so vLLM loads it in each of its processes. Where vLLM is not the one that was
tested nothing is patched (`actors.patches`), and `find_unpatched` says so.
"""

import logging
from typing import Any

import numpy as np

from actors.patches import Patch, apply_patches, find_problem, is_patched

log = logging.getLogger(__name__)

START = "terse_adapter_start"
"""Key in `SamplingParams.extra_args`."""


def mask_token_adapters(
    adapter_ids: np.ndarray, starts: np.ndarray, num_computed: np.ndarray, num_scheduled: np.ndarray
) -> np.ndarray:
    """Adapter of each scheduled token `[sum(num_scheduled)]`, 0 below its request's start; all inputs `[R]`.

    Example: adapters `[7, 7]`, starts `[3, 3]`, computed `[0, 4]`, scheduled `[5, 1]` → `[0, 0, 0, 7, 7, 7]`.
    """
    num_off = np.clip(starts - num_computed, 0, num_scheduled)
    ids = np.stack([np.zeros_like(adapter_ids), adapter_ids], axis=1)
    return ids.ravel().repeat(np.stack([num_off, num_scheduled - num_off], axis=1).ravel())


def keys_of_block(extra_keys: tuple[Any, ...] | None, start: int, end_token_idx: int) -> tuple[Any, ...] | None:
    """Extra keys of a block's hash, from those that vLLM gives a request with an adapter; None when none is left.

    A block that ends at or before `start` is the base's. A later one depends on `start` as well as on the adapter.

    Examples, block of 32 tokens that ends at 64: start 64, `(("lora", "v7", "/x"), ("cache_salt", "a"))` →
    `(("cache_salt", "a"),)`; start 63, `(("lora", "v7", "/x"),)` → `(("lora", "v7", "/x"), ("terse_start", 63))`.
    """
    keys = extra_keys or ()
    if end_token_idx <= start:
        return tuple(key for key in keys if key[0] != "lora") or None
    return (*keys, ("terse_start", start)) if start else extra_keys


def start_of(sampling_params: Any) -> int:
    """The request's `start`; 0, the adapter acts everywhere, when it has none (pooling requests have no params)."""
    return int((getattr(sampling_params, "extra_args", None) or {}).get(START, 0))


def _wrap_block_hash(original: Any) -> Any:
    def generate_block_hash_extra_keys(request: Any, start_token_idx: int, end_token_idx: int, mm_idx: int) -> Any:
        extra_keys, next_mm_idx = original(request, start_token_idx, end_token_idx, mm_idx)
        if request.lora_request is not None:
            extra_keys = keys_of_block(extra_keys, start_of(request.sampling_params), end_token_idx)
        return extra_keys, next_mm_idx

    return generate_block_hash_extra_keys


def _wrap_v1_add(original: Any) -> Any:
    def add_request(self: Any, request: Any) -> int:
        if start := start_of(request.sampling_params):
            self.__dict__.setdefault("terse_starts", {})[request.req_id] = start
        return original(self, request)

    return add_request


def _wrap_v1_remove(original: Any) -> Any:
    def remove_request(self: Any, req_id: str) -> Any:
        self.__dict__.get("terse_starts", {}).pop(req_id, None)
        return original(self, req_id)

    return remove_request


def _wrap_v1_mapping(original: Any) -> Any:
    def make_lora_inputs(self: Any, num_scheduled_tokens: np.ndarray, num_sampled_tokens: np.ndarray) -> Any:
        sampled, tokens, requests = original(self, num_scheduled_tokens, num_sampled_tokens)
        if starts_by_id := self.__dict__.get("terse_starts"):
            num_reqs = self.num_reqs
            starts = np.fromiter((starts_by_id.get(req_id, 0) for req_id in self.req_ids), np.int64, num_reqs)
            num_computed = self.num_computed_tokens_cpu[:num_reqs]
            if (num_computed < starts).any():
                ids = self.request_lora_mapping[:num_reqs]
                tokens = tuple(mask_token_adapters(ids, starts, num_computed, num_scheduled_tokens))
        return sampled, tokens, requests

    return make_lora_inputs


def _wrap_v2_add(original: Any) -> Any:
    def add_requests(self: Any, scheduler_output: Any) -> None:
        original(self, scheduler_output)
        state = self.lora_state
        # The runner's own count, which it brings up to date before each forward.
        state.terse_num_computed = self.req_states.num_computed_tokens_np
        starts = state.__dict__.setdefault("terse_starts", {})
        for request in scheduler_output.scheduled_new_reqs:
            if start := start_of(request.sampling_params):
                starts[request.req_id] = start

    return add_requests


def _wrap_v2_remove(original: Any) -> Any:
    def remove_request(self: Any, req_id: str) -> None:
        self.__dict__.get("terse_starts", {}).pop(req_id, None)
        original(self, req_id)

    return remove_request


def _wrap_v2_mapping(original: Any) -> Any:
    def make_lora_inputs(
        self: Any, req_ids: list[str], idx_mapping: np.ndarray, num_scheduled_tokens: np.ndarray
    ) -> Any:
        sampled, tokens, requests = original(self, req_ids, idx_mapping, num_scheduled_tokens)
        if starts_by_id := self.__dict__.get("terse_starts"):
            starts = np.fromiter((starts_by_id.get(req_id, 0) for req_id in req_ids), np.int64, len(req_ids))
            num_computed = self.terse_num_computed[idx_mapping]
            if (num_computed < starts).any():
                ids = self.lora_ids[idx_mapping]
                tokens = tuple(mask_token_adapters(ids, starts, num_computed, num_scheduled_tokens))
        return sampled, tokens, requests

    return make_lora_inputs


HASH = (
    Patch(
        module="vllm.v1.core.kv_cache_utils",
        name="generate_block_hash_extra_keys",
        source_sha256="fabb6e4b928af21a",
        wrap=_wrap_block_hash,
        also_in=("vllm.v1.core.block_pool", "vllm.v1.simple_kv_offload.manager"),
    ),
)
V1_RUNNER = (
    Patch(
        module="vllm.v1.worker.gpu_input_batch",
        name="InputBatch.add_request",
        source_sha256="33b3f53b9b1925ff",
        wrap=_wrap_v1_add,
    ),
    Patch(
        module="vllm.v1.worker.gpu_input_batch",
        name="InputBatch.remove_request",
        source_sha256="74776981e14d7610",
        wrap=_wrap_v1_remove,
    ),
    Patch(
        module="vllm.v1.worker.gpu_input_batch",
        name="InputBatch.make_lora_inputs",
        source_sha256="bd9f00169c9791d7",
        wrap=_wrap_v1_mapping,
    ),
)
V2_RUNNER = (
    Patch(
        module="vllm.v1.worker.gpu.model_runner",
        name="GPUModelRunner.add_requests",
        source_sha256="8321187d017efc99",
        wrap=_wrap_v2_add,
    ),
    Patch(
        module="vllm.v1.worker.gpu.lora_utils",
        name="LoraState.remove_request",
        source_sha256="1057962b4579b056",
        wrap=_wrap_v2_remove,
    ),
    Patch(
        module="vllm.v1.worker.gpu.lora_utils",
        name="LoraState.make_lora_inputs",
        source_sha256="33793667f696cb91",
        wrap=_wrap_v2_mapping,
    ),
)


def patches() -> tuple[Patch, ...]:
    """Those of this platform: CPU engines only have the V1 model runner."""
    from vllm.platforms import current_platform

    return HASH + V1_RUNNER + (() if current_platform.is_cpu() else V2_RUNNER)


def register() -> None:
    """Patch this process. Idempotent; patches all or, where vLLM is not the one that was tested, nothing."""
    if problem := apply_patches(patches()):
        log.warning("masked adapters are not available: %s", problem)


def find_unpatched() -> str | None:
    """What keeps this process from masking adapters, in one line; None when nothing does."""
    wanted = patches()
    if problem := find_problem(wanted):
        return problem
    missing = [patch.name for patch in wanted if not is_patched(patch)]
    if missing:
        return f"vLLM did not load the plugin terse_kv_sharing (VLLM_PLUGINS?): {', '.join(missing)} not patched"
    return None


class WorkerExtension:
    """Methods that vLLM adds to its workers, called by `collective_rpc`."""

    def find_unpatched_worker(self) -> str | None:
        return find_unpatched()
