"""The int4 grid: integers times fp16 scales, exact in the dtype that the model is loaded in."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from deploy.export.quantize import (
    SCALE_BITS,
    dequantize,
    layer_error,
    quantised_base,
    quantize,
    quantize_model,
    read_grid,
)


def random_weight(shape=(24, 96), seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32) * 0.05


def test_nearest_rounds_with_the_largest_weight_at_seven():
    weight = np.zeros((1, 32), dtype=np.float32)
    weight[0, :4] = [14.0, -14.0, 6.9, -1.1]
    q, scales = quantize(weight, "nearest")
    assert scales.tolist() == [[2.0]]
    assert q[0, :5].tolist() == [7, -7, 3, -1, 0]
    assert dequantize(q, scales)[0, :4].tolist() == [14.0, -14.0, 6.0, -2.0]


def test_a_group_of_zeros_stays_zero():
    weight = random_weight((2, 64))
    weight[0, :32] = 0.0
    for method in ("nearest", "least_l2"):
        q, _ = quantize(weight, method)
        assert q[0, :32].tolist() == [0] * 32
        assert np.abs(q[0, 32:]).max() >= 7


def test_least_l2_is_near_the_best_of_all_scales():
    weight = random_weight((64, 32))
    q, scales = quantize(weight, "least_l2")
    found = np.square(dequantize(q, scales) - weight).sum(axis=1)
    best = []
    for group in weight:
        candidates = np.concatenate([sign * np.abs(group).max() / np.linspace(5, 12, 4001) for sign in (1, -1)])
        rounded = np.clip(np.rint(group / candidates[:, None]), -8, 7) * candidates[:, None]
        best.append(np.square(rounded - group).sum(axis=1).min())
    assert sum(best) * 0.99 < found.sum() < 1.03 * sum(best)
    nearest = dequantize(*quantize(weight, "nearest"))
    assert found.sum() < 0.8 * np.square(nearest - weight).sum()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", ["nearest", "least_l2"])
def test_products_are_exact_in_the_dtype_that_scales_were_made_for(dtype, method):
    q, scales = quantize(random_weight(seed=2), method, SCALE_BITS[dtype])
    exact = scales.astype(np.float64).repeat(32, axis=1) * q
    assert (torch.from_numpy(exact).to(getattr(torch, dtype)).double().numpy() == exact).all()


def test_one_more_bit_would_not_be_exact_in_bfloat16():
    q, scales = quantize(random_weight(seed=2), "least_l2", SCALE_BITS["bfloat16"] + 1)
    exact = scales.astype(np.float64).repeat(32, axis=1) * q
    assert (torch.from_numpy(exact).to(torch.bfloat16).double().numpy() != exact).any()


def test_widths_and_values_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"multiple of 32, got shape \(4, 33\)"):
        quantize(np.zeros((4, 33), dtype=np.float32), "nearest")
    with pytest.raises(ValueError, match="finite"):
        quantize(np.full((1, 32), np.nan, dtype=np.float32), "nearest")


def test_layer_error_by_hand():
    error = layer_error(np.array([[3.0, 4.0]]), np.array([[3.0, 3.0]]))
    assert (error.relative_l2, error.max_error, error.max_weight) == (0.2, 1.0, 4.0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_quantised_model_loads_like_any_other_and_lies_on_the_grid(tmp_path, random_model, dtype):
    report = quantize_model(random_model, tmp_path / "int4", "least_l2", dtype)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "int4", dtype="auto")
    assert model.dtype == getattr(torch, dtype)
    state, grid = model.state_dict(), read_grid(tmp_path / "int4")
    assert len(grid) == 2 * 7 == len(report["layers"])
    for name, (q, scales) in grid.items():
        assert (state[name].float().numpy() == dequantize(q, scales)).all()
        assert q.min() >= -8
        assert q.max() <= 7
    original = load_file(random_model / "model.safetensors")
    untouched = [name for name in original if name not in grid]
    assert "model.embed_tokens.weight" in untouched
    assert all((state[name] == original[name].to(state[name].dtype)).all() for name in untouched)
    assert 0.05 < report["mean_relative_l2"] < 0.1
    assert list(tmp_path.iterdir()) == [tmp_path / "int4"]


def test_the_int4_base_is_made_once_and_refused_when_it_is_of_something_else(tmp_path, random_model):
    target = tmp_path / "int4_base"
    quantised_base(random_model, target, "nearest", "float32")
    before = (target / "model.safetensors").stat().st_mtime_ns
    assert quantised_base(random_model, target, "nearest", "float32") == target
    assert (target / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(RuntimeError, match=r"'method': 'least_l2'.*found.*'method': 'nearest'"):
        quantised_base(random_model, target, "least_l2", "float32")


def test_a_model_that_cannot_be_quantised_leaves_nothing_behind(tmp_path, random_model):
    odd = tmp_path / "odd"
    odd.mkdir()
    (odd / "config.json").write_text(json.dumps({"architectures": ["none"]}))
    from safetensors.numpy import save_file

    save_file({"model.layers.0.mlp.up_proj.weight": np.zeros((4, 40), dtype=np.float32)}, odd / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.layers\.0\.mlp\.up_proj\.weight of .*multiple of 32"):
        quantize_model(odd, tmp_path / "out", "nearest", "float32")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["odd"]
