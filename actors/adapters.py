"""Adapters as bytes: pack, hash, write, read.

A packed adapter is one safetensors blob: the LoRA matrices under PEFT's names, and PEFT's
`adapter_config.json` as its metadata. It is what travels and what is hashed; on disk it becomes a PEFT
directory (`adapter_config.json`, `adapter_model.safetensors`, where the second file is the blob itself).
"""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors

from actors import files
from actors.types import AdapterRef

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"


def pack(tensors: dict[str, torch.Tensor], peft_config: dict[str, Any]) -> bytes:
    """One blob; equal tensors and config give equal bytes."""
    metadata = {"adapter_config": json.dumps(peft_config, sort_keys=True)}
    return save_safetensors({name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}, metadata)


def make_ref(packed: bytes, version: int) -> AdapterRef:
    return AdapterRef(version=version, sha256=sha256(packed), size_bytes=len(packed))


def sha256(packed: bytes) -> str:
    return hashlib.sha256(packed).hexdigest()


def unpack(packed: bytes) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and PEFT config. Raises ValueError for a blob that `pack` did not make."""
    header_bytes = int.from_bytes(packed[:8], "little")
    try:
        config = json.loads(json.loads(packed[8 : 8 + header_bytes])["__metadata__"]["adapter_config"])
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"not a packed adapter: expected safetensors with adapter_config metadata ({error})"
        ) from error
    return load_safetensors(packed), config


def write_directory(packed: bytes, directory: Path) -> None:
    """Write a PEFT directory under a temporary name, flush it to disk, then rename it to `directory`."""
    _, config = unpack(packed)
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = files.temporary_name(directory)
    temporary.mkdir()
    try:
        files.write_file(temporary / WEIGHTS_FILE, packed)
        files.write_file(temporary / CONFIG_FILE, json.dumps(config, indent=2, sort_keys=True).encode())
        files.sync_directory(temporary)
        files.replace(temporary, directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read_directory(directory: Path) -> bytes:
    """The packed adapter of a directory that `write_directory` or plain PEFT wrote.

    Raises FileNotFoundError when one of the two files is missing.
    """
    weights, config_path = directory / WEIGHTS_FILE, directory / CONFIG_FILE
    for path in (weights, config_path):
        if not path.is_file():
            raise FileNotFoundError(f"no adapter in {directory}: expected {CONFIG_FILE} and {WEIGHTS_FILE}")
    with safe_open(weights, framework="pt") as file:
        if "adapter_config" in (file.metadata() or {}):
            return weights.read_bytes()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    return pack(tensors, json.loads(config_path.read_text()))


def perturbed(packed: bytes, seed: int, size: float = 0.05) -> bytes:
    """A probe: the same adapter with noise of that standard deviation, a typical weight's, added to every matrix."""
    tensors, config = unpack(packed)
    generator = torch.Generator().manual_seed(seed)
    noisy = {
        name: (tensor.float() + size * torch.randn(tensor.shape, generator=generator)).to(tensor.dtype)
        for name, tensor in tensors.items()
    }
    return pack(noisy, config)
