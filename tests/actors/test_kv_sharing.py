"""The vLLM plugin's own functions, and that it patches all or nothing."""

from types import SimpleNamespace

import numpy as np
import pytest
from vllm.lora.request import LoRARequest
from vllm.v1.core import block_pool, kv_cache_utils
from vllm.v1.worker.gpu.lora_utils import LoraState

from actors import kv_sharing
from actors.kv_sharing import keys_of_block, mask_token_adapters, start_of
from actors.patches import find_problem

pytestmark = pytest.mark.integration


@pytest.mark.parametrize(
    ("adapters", "starts", "computed", "scheduled", "expected"),
    [
        # a whole prompt of 5, start 3; a decode step of another request
        ([7, 7], [3, 3], [0, 4], [5, 1], [0, 0, 0, 7, 7, 7]),
        # chunks: all below start, across it, all above it
        ([7, 7, 7], [10, 10, 10], [0, 8, 10], [4, 4, 2], [0, 0, 0, 0, 0, 0, 7, 7, 7, 7]),
        # base, ordinary and masked in one batch
        ([0, 5, 6], [0, 0, 2], [0, 0, 0], [2, 2, 3], [0, 0, 5, 5, 0, 0, 6]),
        # start after everything that is scheduled, and nothing scheduled
        ([7, 7], [100, 1], [0, 0], [2, 0], [0, 0]),
    ],
)
def test_adapter_of_each_token(adapters, starts, computed, scheduled, expected):
    arrays = [np.array(values, dtype=np.int32) for values in (adapters, starts, computed, scheduled)]
    assert mask_token_adapters(*arrays).tolist() == expected


def test_keys_of_blocks_before_and_after_start():
    lora, salt = ("lora", "v7", "/x"), ("cache_salt", "a")
    assert keys_of_block((lora, salt), 64, 64) == (salt,)
    assert keys_of_block((lora,), 64, 64) is None
    assert keys_of_block((lora, salt), 63, 64) == (lora, salt, ("terse_start", 63))
    assert keys_of_block((lora,), 0, 64) == (lora,)


def test_start_travels_in_extra_args_and_is_0_otherwise():
    assert start_of(SimpleNamespace(extra_args={kv_sharing.START: 9})) == 9
    assert start_of(SimpleNamespace(extra_args={"other": 1})) == 0
    assert start_of(SimpleNamespace(extra_args=None)) == 0
    assert start_of(None) == 0


def make_request(start, with_adapter=True):
    return SimpleNamespace(
        lora_request=LoRARequest("v7", 7, "/x") if with_adapter else None,
        sampling_params=SimpleNamespace(extra_args={kv_sharing.START: start}),
        mm_features=[],
        cache_salt=None,
        prompt_embeds=None,
    )


def test_blocks_that_end_at_or_before_start_are_the_bases():
    kv_sharing.register()

    def keys(request, begin, end):
        return kv_cache_utils.generate_block_hash_extra_keys(request, begin, end, 0)[0]

    masked = make_request(start=64)
    assert keys(masked, 0, 32) is None
    assert keys(masked, 32, 64) is None
    assert keys(masked, 64, 96) == keys(masked, 33, 65) == (("lora", "v7", "/x"), ("terse_start", 64))
    assert keys(make_request(start=0), 0, 32) == (("lora", "v7", "/x"),)
    assert keys(make_request(start=64, with_adapter=False), 64, 96) is None


def test_registering_twice_patches_once_and_every_holder_of_the_function():
    kv_sharing.register()
    once = kv_cache_utils.generate_block_hash_extra_keys
    kv_sharing.register()
    assert kv_cache_utils.generate_block_hash_extra_keys is once is block_pool.generate_block_hash_extra_keys
    assert kv_sharing.find_unpatched() is None


def test_the_v2_runners_functions_are_those_that_were_read():
    """The GPU runner cannot run here; what it is made of can be compared and its mapping called."""
    assert find_problem(kv_sharing.HASH + kv_sharing.V1_RUNNER + kv_sharing.V2_RUNNER) is None


def test_the_v2_mapping_masks_by_the_runners_own_token_counts():
    state = LoraState(max_num_reqs=4)
    state.add_request("a", 2, LoRARequest("v7", 7, "/x"))
    state.add_request("b", 0, None)
    runner = SimpleNamespace(
        lora_state=state, req_states=SimpleNamespace(num_computed_tokens_np=np.array([1, 0, 2, 0], dtype=np.int32))
    )
    new = SimpleNamespace(req_id="a", sampling_params=SimpleNamespace(extra_args={kv_sharing.START: 4}))
    kv_sharing._wrap_v2_add(lambda self, output: None)(runner, SimpleNamespace(scheduled_new_reqs=[new]))
    mapping = kv_sharing._wrap_v2_mapping(LoraState.make_lora_inputs)
    arguments = (["a", "b"], np.array([2, 0]), np.array([4, 1], dtype=np.int32))
    _, tokens, requests = mapping(state, *arguments)
    assert tokens == (0, 0, 7, 7, 0)
    assert {request.lora_int_id for request in requests} == {7}
    kv_sharing._wrap_v2_remove(LoraState.remove_request)(state, "a")
    state.add_request("a", 2, LoRARequest("v7", 7, "/x"))
    assert mapping(state, *arguments)[1] == (7, 7, 7, 7, 0)


def test_another_vllm_is_refused_by_name(monkeypatch):
    monkeypatch.setattr("vllm.__version__", "0.99.0")
    assert kv_sharing.find_unpatched() == "expected vllm 0.32.0, found 0.99.0"
