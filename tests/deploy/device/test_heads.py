"""The heads on the device, against values worked out by hand, and which files are refused."""

import math

import numpy as np
import pytest

from deploy.device.heads import DeviceHeads, PromptPooler, read_heads
from deploy.manifest import ExportError
from tests.deploy.exports import write_heads


def test_pooling_by_hand():
    pooler = PromptPooler(chunk_tokens=2, alpha=0.25)
    for value in (1.0, 3.0, 10.0, 20.0, 4.0):
        pooler.add(np.array([value, -value]))
    # Chunk means 2, 15 and 4, the last chunk being short: 2 → 0.25 * 15 + 0.75 * 2 = 5.25 → 0.25 * 4 + 0.75 * 5.25.
    assert pooler.pooled().tolist() == [4.9375, -4.9375]


def test_pooling_ends_on_a_whole_chunk_and_refuses_an_empty_prompt():
    pooler = PromptPooler(chunk_tokens=2, alpha=0.5)
    with pytest.raises(ValueError, match="got none"):
        pooler.pooled()
    for value in (1.0, 3.0, 5.0, 7.0):
        pooler.add(np.array([value]))
    assert pooler.pooled().tolist() == [4.0]


def test_probabilities_by_hand():
    zeros = np.zeros((8, 2), dtype=np.float32)
    hidden = zeros.copy()
    hidden[0], hidden[1] = [1.0, 0.0], [-1.0, 0.0]
    output = np.zeros((1, 8), dtype=np.float32)
    output[0, :2] = [2.0, 100.0]
    heads = DeviceHeads(
        tensors={
            "switcher.hidden.weight": hidden,
            "switcher.hidden.bias": np.zeros(8),
            "switcher.output.weight": output,
            "switcher.output.bias": np.array([-1.0]),
            "switcher.feature_mean": np.array([1.0, 0.0]),
            "switcher.feature_scale": np.array([2.0, 1.0]),
            "verifier.weight": np.array([[1.0, -1.0]]),
            "verifier.bias": np.array([0.5]),
            "verifier.feature_mean": np.array([0.0, 1.0]),
            "verifier.feature_scale": np.array([1.0, 4.0]),
        },
        threshold=0.5,
        chunk_tokens=128,
        ema_alpha=0.5,
        verification_prompt="",
    )
    # (5 - 1) / 2 = 2 → ReLU: 2 and 0 → 2 * 2 - 1 = 3
    assert heads.switcher_probability(np.array([5.0, 9.0])) == pytest.approx(1 / (1 + math.exp(-3)))
    # 3 - (9 - 1) / 4 + 0.5 = 1.5
    assert heads.verifier_score(np.array([3.0, 9.0])) == pytest.approx(1 / (1 + math.exp(-1.5)))


def test_heads_of_another_model_another_format_and_no_heads_are_refused(tmp_path):
    path = tmp_path / "heads.safetensors"
    write_heads(path, "a" * 64, 16)
    assert read_heads(path, "a" * 64, 16).chunk_tokens == 4
    with pytest.raises(ExportError, match=r"heads of another model: expected base bbbb.*fitted on aaaa"):
        read_heads(path, "b" * 64, 16)
    with pytest.raises(ExportError, match=r"switcher\.hidden\.weight: expected shape \(8, 32\), found \(8, 16\)"):
        read_heads(path, "a" * 64, 32)
    path.write_bytes(b"not safetensors at all")
    with pytest.raises(ExportError, match="expected heads in safetensors format"):
        read_heads(path, "a" * 64, 16)
