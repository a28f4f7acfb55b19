"""The adapter merged into the base, for tools that know no adapters: one ordinary Hugging Face directory.

    W_merged = W + alpha / rank * B A

It is on everywhere, the prompt included, so it is not the masked policy that was trained, base mode is gone, and an int4
base leaves its grid. An export runs without it.
"""

import json
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from actors import adapters
from actors.masked_lora import peft_name

_COPIED = ("config.json", "generation_config.json")


def write_merged(base_dir: Path, tokenizer_dir: Path, packed_adapter: adapters.Packed, target: Path) -> None:
    """Weights keep the base's dtype; the sum is made in float32.

    Raises ValueError naming the first layer of the adapter that the base does not have.
    """
    tensors, peft = adapters.unpack(packed_adapter)
    scale, missing = peft["lora_alpha"] / peft["r"], set(tensors)
    target.mkdir(parents=True)
    for shard in sorted(base_dir.glob("*.safetensors")):
        weights = load_file(shard)
        for name, weight in weights.items():
            a, b = (peft_name(name.removesuffix(".weight"), matrix) for matrix in "AB")
            if a in tensors:
                change = scale * (tensors[b].float() @ tensors[a].float())
                weights[name] = (weight.float() + change).to(weight.dtype)
                missing -= {a, b}
        save_file(weights, target / shard.name, {"format": "pt"})
    if missing:
        raise ValueError(
            f"{base_dir}: expected the weights of every layer of the adapter, found none for {min(missing)}"
        )
    for name in (*_COPIED, *(path.name for path in base_dir.glob("*.index.json"))):
        if (base_dir / name).is_file():
            shutil.copyfile(base_dir / name, target / name)
    config = json.loads((target / "config.json").read_text())
    config.pop("torch_dtype", None)
    config["dtype"] = str(next(iter(weights.values())).dtype).removeprefix("torch.")
    (target / "config.json").write_text(json.dumps(config, indent=2))
    shutil.copytree(tokenizer_dir, target, dirs_exist_ok=True)
