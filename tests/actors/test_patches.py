"""Functions of vLLM are patched where all are those that were tested, and else none."""

from dataclasses import replace

import pytest
from vllm.v1.core import kv_cache_utils

from actors.patches import Patch, apply_patches, find_problem, is_patched, source_sha256

pytestmark = pytest.mark.integration

KNOWN = Patch(
    module="vllm.v1.core.kv_cache_utils",
    name="hash_block_tokens",
    source_sha256=source_sha256(kv_cache_utils.hash_block_tokens),
    wrap=lambda original: lambda *arguments: original(*arguments),
)
CHANGED = replace(KNOWN, source_sha256="0" * 16)
GONE = replace(KNOWN, name="no_such")


@pytest.fixture(autouse=True)
def _restore(monkeypatch):
    monkeypatch.setattr(kv_cache_utils, "hash_block_tokens", kv_cache_utils.hash_block_tokens)


def test_another_vllm_is_refused_by_name(monkeypatch):
    monkeypatch.setattr("vllm.__version__", "0.99.0")
    assert find_problem((KNOWN,)) == "expected vllm 0.32.0, found 0.99.0"


def test_a_changed_or_missing_function_is_refused_by_name():
    assert f"expected source 0000000000000000, found {KNOWN.source_sha256}" in find_problem((CHANGED,))
    assert "has no vllm.v1.core.kv_cache_utils.no_such as expected" in find_problem((GONE,))


@pytest.mark.parametrize("unknown", [CHANGED, GONE])
def test_one_unknown_function_keeps_all_from_being_patched(unknown):
    before = kv_cache_utils.hash_block_tokens
    assert apply_patches((KNOWN, unknown)) is not None
    assert kv_cache_utils.hash_block_tokens is before


def test_a_function_is_patched_once():
    assert not is_patched(KNOWN)
    assert apply_patches((KNOWN,)) is None
    once = kv_cache_utils.hash_block_tokens
    assert is_patched(KNOWN)
    assert apply_patches((KNOWN,)) is None
    assert kv_cache_utils.hash_block_tokens is once
