"""The int4 base: one grid of integers x scales for learner, engines and the device file.

    w_hat = scale * q,    q in {-8, …, 7},    one fp16 scale for 32 neighbours along the input dimension

The grid is symmetric (no zero point), which is what GGUF's Q4_0 holds: `deploy.export.gguf` packs these integers and scales as
they are. Learner and engines load the products as an ordinary model, so adapters are trained over the quantised base
(the paper's QAMR). A product must not be rounded there, so the scale has as many significant bits as the dtype leaves:
|q| <= 8 has at most 3 (7 = 111b, and 8 is a power of two), float32 keeps 24 and bfloat16 keeps 8. So float32 takes any
fp16 scale (11 bits) and bfloat16 takes scales of 5.
"""

import hashlib
import json
import os
import shutil
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from configs.models import directory_problem, weights_sha256

Method = Literal["nearest", "least_l2"]

GROUP = 32
Q_MIN, Q_MAX = -8, 7
SCALE_BITS = {"float32": 11, "bfloat16": 5}
"""Significant bits of a scale whose products with q are exact in the dtype."""
GRID_DIR = "quantization"
"""Beside the weights, not among them: engines load every *.safetensors of the model's own directory."""
GRID_FILE = "grid.safetensors"
REPORT_FILE = "report.json"

# Where the best step lies for 32 weights: at amax / 7 nothing is clipped, larger divisors clip the extremes. With a
# negative scale the extreme reaches -8, so both signs are tried.
_DIVISORS = tuple(float(d) for d in np.linspace(6.5, 9.5, 13))
_GROUPS_AT_ONCE = 1 << 14


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerError:
    """How far a layer is from its original."""

    relative_l2: float
    """||w_hat - w|| / ||w||"""
    max_error: float
    """max |w_hat - w|"""
    max_weight: float
    """max |w|"""


def quantize(weight: np.ndarray, method: Method, scale_bits: int = 11) -> tuple[np.ndarray, np.ndarray]:
    """Integers int8 `[out, in]` and scales float16 `[out, in / 32]` of a weight `[out, in]`.

    `nearest`: scale = max |w| / 7, nothing is clipped. `least_l2`: the scale of a grid around it with the least squared
    error, of either sign. Scales have at most `scale_bits` significant bits; q is rounded with the scale as stored.

    Example: 32 weights `[7, -7, 3.4, 0, …]` with `nearest` → scale 1, q `[7, -7, 3, 0, …]`.
    Raises ValueError for a width that is no multiple of 32, and for weights that fp16 scales cannot reach.
    """
    if weight.ndim != 2 or weight.shape[1] % GROUP:
        raise ValueError(f"expected a matrix whose width is a multiple of {GROUP}, got shape {weight.shape}")
    groups = np.ascontiguousarray(weight, dtype=np.float32).reshape(-1, GROUP)
    if not np.isfinite(groups).all() or np.abs(groups).max(initial=0.0) > np.finfo(np.float16).max:
        raise ValueError("expected finite weights within the range of fp16 scales (65504)")
    q = np.empty(groups.shape, dtype=np.int8)
    scales = np.empty(len(groups), dtype=np.float16)
    for first in range(0, len(groups), _GROUPS_AT_ONCE):
        part = slice(first, first + _GROUPS_AT_ONCE)
        scales[part] = _choose_scales(groups[part], method, scale_bits)
        q[part] = _round(groups[part], scales[part].astype(np.float32))
    return q.reshape(weight.shape), scales.reshape(weight.shape[0], -1)


def dequantize(q: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """float32 `[out, in]`, exact: a product has at most 14 significant bits."""
    groups = q.reshape(len(q), -1, GROUP).astype(np.float32)
    return (groups * scales[:, :, None].astype(np.float32)).reshape(q.shape)


def layer_error(weight: np.ndarray, quantised: np.ndarray) -> LayerError:
    difference = quantised.astype(np.float32) - weight.astype(np.float32)
    norm = float(np.linalg.norm(weight.astype(np.float32)))
    return LayerError(
        relative_l2=float(np.linalg.norm(difference)) / norm if norm else 0.0,
        max_error=float(np.abs(difference).max(initial=0.0)),
        max_weight=float(np.abs(weight).max(initial=0.0)),
    )


def is_quantised(name: str, shape: tuple[int, ...]) -> bool:
    """The weights of the decoder's linear layers; norms, biases, embeddings and lm_head stay as they are."""
    return len(shape) == 2 and ".layers." in name and name.endswith("_proj.weight")


def quantize_model(source: Path, target: Path, method: Method, dtype: str) -> dict[str, Any]:
    """Write the Hugging Face directory `target`: `source` with its linear layers on the int4 grid, in `dtype`.

    `target` loads like any model of that dtype and holds, in `quantization/`, integers and scales
    (`<weight>.q`, `<weight>.scale`) and the report, which is returned. It is written under a temporary name, then
    renamed. Raises ValueError when there is nothing to quantise or a layer cannot be.
    """
    if problem := directory_problem(source):
        raise ValueError(problem)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    temporary.mkdir(parents=True)
    try:
        report = _write_model(source, temporary, method, dtype)
        os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return report


def quantised_base(source: Path, target: Path, method: Method, dtype: str) -> Path:
    """`target`, made of `source` if it is not there.

    Raises RuntimeError when what is there was made of other weights or by other settings.
    """
    if not target.exists():
        quantize_model(source, target, method, dtype)
        return target
    report = json.loads((target / GRID_DIR / REPORT_FILE).read_text())
    expected = {"method": method, "dtype": dtype, "source_sha256": weights_sha256(source)}
    found = {key: report.get(key) for key in expected}
    if found != expected:
        raise RuntimeError(f"{target}: expected the int4 base made with {expected}, found {found}; remove it")
    return target


def read_grid(model_dir: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Integers and scales of each quantised weight by its name; empty for a model that is not quantised."""
    path = model_dir / GRID_DIR / GRID_FILE
    if not path.is_file():
        return {}
    with safe_open(path, framework="np") as file:
        names = [key.removesuffix(".q") for key in file.keys() if key.endswith(".q")]  # noqa: SIM118 (not a dict)
        return {name: (file.get_tensor(f"{name}.q"), file.get_tensor(f"{name}.scale")) for name in names}


def _write_model(source: Path, target: Path, method: Method, dtype: str) -> dict[str, Any]:
    for file in source.iterdir():
        if file.is_file() and file.suffix != ".safetensors":
            shutil.copyfile(file, target / file.name)
    config = json.loads((source / "config.json").read_text())
    config.pop("torch_dtype", None)
    (target / "config.json").write_text(json.dumps({**config, "dtype": dtype}, indent=2))
    grid: dict[str, torch.Tensor] = {}
    layers: dict[str, LayerError] = {}
    for shard in sorted(source.glob("*.safetensors")):
        tensors = load_file(shard)
        for name, tensor in tensors.items():
            value = tensor
            if is_quantised(name, tuple(tensor.shape)):
                original = tensor.float().numpy()
                try:
                    q, scales = quantize(original, method, SCALE_BITS[dtype])
                except ValueError as error:
                    raise ValueError(f"{name} of {shard}: {error}") from error
                value = torch.from_numpy(dequantize(q, scales))
                grid[f"{name}.q"], grid[f"{name}.scale"] = torch.from_numpy(q), torch.from_numpy(scales)
                layers[name] = layer_error(original, value.numpy())
            tensors[name] = value.to(getattr(torch, dtype)) if value.is_floating_point() else value
        save_file(tensors, target / shard.name, {"format": "pt"})
    if not layers:
        raise ValueError(f"{source}: expected linear layers named model.layers.*_proj.weight, found none")
    (target / GRID_DIR).mkdir()
    save_file(grid, target / GRID_DIR / GRID_FILE)
    report = {
        "method": method,
        "dtype": dtype,
        "group": GROUP,
        "scale_bits": SCALE_BITS[dtype],
        "source_sha256": weights_sha256(source),
        "grid_sha256": hashlib.sha256((target / GRID_DIR / GRID_FILE).read_bytes()).hexdigest(),
        "mean_relative_l2": float(np.mean([error.relative_l2 for error in layers.values()])),
        "worst_relative_l2": max((error.relative_l2, name) for name, error in layers.items()),
        "layers": {name: asdict(error) for name, error in sorted(layers.items())},
    }
    (target / GRID_DIR / REPORT_FILE).write_text(json.dumps(report, indent=2))
    return report


def _choose_scales(groups: np.ndarray, method: Method, scale_bits: int) -> np.ndarray:
    """float16 `[N]` for groups `[N, 32]`."""
    largest = np.abs(groups).max(axis=1)
    if method == "nearest":
        return _storable(largest / Q_MAX, scale_bits)
    best = np.zeros(len(groups), dtype=np.float16)
    least = np.full(len(groups), np.inf, dtype=np.float32)
    for divisor in _DIVISORS:
        for sign in (1.0, -1.0):
            scales = _storable(sign * largest / divisor, scale_bits)
            wide = scales.astype(np.float32)
            error = np.square(_round(groups, wide) * wide[:, None] - groups).sum(axis=1)
            is_better = error < least
            best[is_better], least[is_better] = scales[is_better], error[is_better]
    return best


def _storable(scales: np.ndarray, scale_bits: int) -> np.ndarray:
    """The nearest float16 with so many significant bits."""
    mantissa, exponent = np.frexp(scales.astype(np.float16).astype(np.float32))
    step = float(1 << scale_bits)
    return np.ldexp(np.rint(mantissa * step) / step, exponent).astype(np.float16)


def _round(groups: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """q of groups `[N, 32]` under scales `[N]`, as float32; 0 where the scale is 0."""
    safe = np.where(scales == 0, 1, scales)
    q = np.clip(np.rint(groups / safe[:, None]), Q_MIN, Q_MAX)
    return np.where(scales[:, None] == 0, 0, q)
