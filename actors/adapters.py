"""Adapters as bytes: pack, hash, write, read.

A packed adapter is one safetensors blob: the LoRA matrices under PEFT's names, and PEFT's
`adapter_config.json` as its metadata. It is what travels and what is hashed; on disk it becomes a PEFT
directory (`adapter_config.json`, `adapter_model.safetensors`, where the second file is the blob itself).
"""

import hashlib
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import safe_open

from actors import files
from actors.owned_directory import OwnedDirectory
from actors.types import AdapterRef

if TYPE_CHECKING:
    import torch  # seconds, which only what looks at the weights has to wait

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
DTYPES = {"torch.float32": "F32", "torch.bfloat16": "BF16", "torch.float16": "F16"}
"""Torch's dtypes as safetensors calls them."""

Packed = bytes | np.ndarray
"""A packed adapter: bytes, or uint8 `[size_bytes]`, which Ray lends from its shared memory instead of copying it."""


def pack(
    tensors: "dict[str, torch.Tensor]", peft_config: dict[str, Any], dtype: "torch.dtype | None" = None
) -> np.ndarray:
    """One blob, uint8 `[size_bytes]`, of these tensors in `dtype` (None: their own); equal ones give equal bytes.

    They are the bytes of `safetensors.torch.save`, which copies the weights twice more on the way to them.
    """
    import torch

    dtypes = {name: dtype or tensor.dtype for name, tensor in tensors.items()}
    names = sorted(tensors, key=lambda name: (-dtypes[name].itemsize, name))
    header: dict[str, Any] = {"__metadata__": {"adapter_config": json.dumps(peft_config, sort_keys=True)}}
    size_bytes = 0
    for name in names:
        begin, size_bytes = size_bytes, size_bytes + tensors[name].numel() * dtypes[name].itemsize
        shape, offsets = list(tensors[name].shape), [begin, size_bytes]
        header[name] = {"dtype": DTYPES[str(dtypes[name])], "shape": shape, "data_offsets": offsets}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    packed = np.empty(len(head) + size_bytes, dtype=np.uint8)
    packed[: len(head)] = np.frombuffer(head, dtype=np.uint8)
    data = torch.from_numpy(packed[len(head) :])
    for name in names:
        place = data[slice(*header[name]["data_offsets"])]
        place.view(dtypes[name]).view(tensors[name].shape).copy_(tensors[name].detach())
    return packed


def make_ref(packed: Packed, version: int) -> AdapterRef:
    return AdapterRef(version=version, sha256=sha256(packed), size_bytes=len(packed))


def sha256(packed: Packed) -> str:
    return hashlib.sha256(_buffer(packed)).hexdigest()


def unpack(packed: Packed) -> "tuple[dict[str, torch.Tensor], dict[str, Any]]":
    """Tensors and PEFT config. Raises ValueError for a blob that `pack` did not make."""
    from safetensors.torch import load as load_safetensors

    config = read_config(packed)
    return load_safetensors(bytes(packed)), config


def read_config(packed: Packed) -> dict[str, Any]:
    """The PEFT config. Raises ValueError for a blob that `pack` did not make."""
    header_bytes = int.from_bytes(bytes(packed[:8]), "little")
    try:
        header = json.loads(bytes(packed[8 : 8 + header_bytes]))
        config: dict[str, Any] = json.loads(header["__metadata__"]["adapter_config"])
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"not a packed adapter: expected safetensors with adapter_config metadata ({error})"
        ) from error
    return config


def write_directory(packed: Packed, directory: Path, equal: Iterable[Path] = ()) -> None:
    """Write a PEFT directory under a temporary name, flush it to disk, then rename it to `directory`.

    `equal` are files that hold the same bytes: the weights are a hard link to the first of them that is still there.
    """
    config = read_config(packed)
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = files.temporary_name(directory)
    temporary.mkdir()
    try:
        if not any(files.link(path, temporary / WEIGHTS_FILE) for path in equal):
            files.write_file(temporary / WEIGHTS_FILE, _buffer(packed))
        files.write_file(temporary / CONFIG_FILE, json.dumps(config, indent=2, sort_keys=True).encode())
        files.sync_directory(temporary)
        files.replace(temporary, directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_shared(packed: Packed, sha256: str, name: str, owned: OwnedDirectory) -> Path:
    """Write a PEFT directory into `owned`; processes of this machine that name the same hash share one file of weights.

    The first of them writes it and the others wait for that. It is gone once the last has removed its directory, or was
    killed. `sha256` is taken at its word here: `read_ref` says what the file holds.
    """
    directory = owned.path / f"{name}-{sha256}"
    with owned.alone():
        write_directory(packed, directory, owned.find_everywhere(f"*-{sha256}/{WEIGHTS_FILE}"))
    return directory


def read_ref(directory: Path, version: int) -> AdapterRef:
    """Hash and size of the weights as they lie in a PEFT directory."""
    size_bytes, sha256 = files.fingerprint(directory / WEIGHTS_FILE)
    return AdapterRef(version=version, sha256=sha256, size_bytes=size_bytes)


def read_directory(directory: Path) -> bytes:
    """The packed adapter of a directory that `write_directory` or plain PEFT wrote.

    Raises FileNotFoundError when one of the two files is missing.
    """
    weights, config_path = directory / WEIGHTS_FILE, directory / CONFIG_FILE
    for path in (weights, config_path):
        if not path.is_file():
            raise FileNotFoundError(f"no adapter in {directory}: expected {CONFIG_FILE} and {WEIGHTS_FILE}")
    with safe_open(weights, framework="np") as file:
        if "adapter_config" in (file.metadata() or {}):
            return weights.read_bytes()
    with safe_open(weights, framework="pt") as file:  # numpy has no bfloat16
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    return pack(tensors, json.loads(config_path.read_text())).tobytes()


def perturbed(packed: Packed, seed: int, size: float = 0.05) -> np.ndarray:
    """A probe: the same adapter with noise of that standard deviation, a typical weight's, added to every matrix."""
    import torch

    tensors, config = unpack(packed)
    generator = torch.Generator().manual_seed(seed)
    noisy = {
        name: (tensor.float() + size * torch.randn(tensor.shape, generator=generator)).to(tensor.dtype)
        for name, tensor in tensors.items()
    }
    return pack(noisy, config)


def _buffer(packed: Packed) -> bytes | memoryview:
    return packed if isinstance(packed, bytes) else packed.data
