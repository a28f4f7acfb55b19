"""What a model directory's own files say against training on it: read before anything starts, without loading a weight."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from configs.architectures import adapted_layers
from configs.model_shape import missing_sizes
from configs.models import weight_files
from configs.schema.run import RunConfig

MAX_HEADER_BYTES = 100 * 2**20
FLOAT_TYPES = ("F32", "F16", "BF16", "F64")
LOGIT_SETTINGS = ("final_logit_softcapping", "logits_scaling", "logit_scale", "output_multiplier_scale")
DROPOUT_SETTINGS = ("attention_dropout", "hidden_dropout", "embd_pdrop", "resid_pdrop", "attn_pdrop")

Shapes = dict[str, tuple[int, ...]]
"""Tensor name → shape."""


def architecture_problems(config: RunConfig, hf_config: dict[str, Any]) -> Iterator[str]:
    """What is wrong with `config.json`: what the learner, or the export at the end, would refuse hours later."""
    where = f"model.path {config.model.path!r}: config.json"
    if missing := missing_sizes(hf_config):
        kind = hf_config.get("model_type", "no model_type")
        yield f"{where}: expected a decoder such as Llama or Qwen2, found {kind} without {', '.join(missing)}"
    if quantised := hf_config.get("quantization_config"):
        method = quantised.get("quant_method", "some") if isinstance(quantised, dict) else "some"
        yield f"{where}: expected unquantised weights, found quantization_config of {method}; use the model it was made of"
    for name in LOGIT_SETTINGS:
        if hf_config.get(name) not in (None, 1, 1.0):
            yield f"{where}: expected no {name} (the learner computes logits without it), found {hf_config[name]!r}"
    for name in DROPOUT_SETTINGS:
        if hf_config.get(name):
            yield f"{where}: expected {name} 0 (only the adapter has dropout), found {hf_config[name]!r}"
    if config.export.at_end and hf_config.get("architectures"):
        from deploy.export.decoder import read_decoder

        try:
            read_decoder(hf_config, config.model.max_length_tokens)
        except ValueError as error:
            yield f"export.at_end: expected a model that can be exported, found {error}; export.at_end=false goes without"


def weight_problems(config: RunConfig, directory: Path) -> Iterator[str]:
    """What is wrong with the weights' headers and index, and with the settings that name layers."""
    where = f"model.path {config.model.path!r}"
    try:
        shapes = read_shapes(directory)
    except ValueError as error:
        yield f"{where}: {error}"
        return
    layers = {
        name.removesuffix(".weight").rpartition(".")[2]
        for name, shape in shapes.items()
        if _is_block_linear(name, shape)
    }
    _, missing = adapted_layers(config.lora.target_modules, layers)
    if missing:
        yield (
            f"lora.target_modules: expected names of the model's linear layers ({', '.join(sorted(layers))}), "
            f"found {', '.join(missing)}"
        )
    rows = next((shape[0] for name, shape in shapes.items() if name.endswith("embed_tokens.weight")), None)
    largest = _largest_token_id(directory)
    if rows is not None and largest is not None and largest >= rows:
        yield f"{where}: expected token ids below the {rows} rows of the embedding, found {largest} in tokenizer.json"


def tokenizer_problems(config: RunConfig, directory: Path) -> Iterator[str]:
    """Whether there is a tokenizer with a chat template."""
    where = f"model.path {config.model.path!r}"
    names = {path.name for path in directory.iterdir()}
    if not names & {"tokenizer.json", "tokenizer.model", "vocab.json"}:
        yield f"{where}: expected a tokenizer (tokenizer.json) in {directory}, found none"
        return
    settings = _read_json(directory / "tokenizer_config.json")
    if not settings.get("chat_template") and not names & {
        "chat_template.jinja",
        "chat_template.json",
        "additional_chat_templates",
    }:
        yield f"{where}: expected a tokenizer with a chat template, found none in {directory}"


def read_shapes(directory: Path) -> Shapes:
    """Shapes of all tensors, from the headers of the files that the index names, else of `model.safetensors`.

    Raises ValueError naming the file that is missing, cut, or no safetensors.
    """
    shapes: Shapes = {}
    for path in weight_files(directory):
        shapes |= _read_header(path)
    return shapes


def _read_header(path: Path) -> Shapes:
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if (start + file.read(32)).startswith(b"version https://git-lfs"):
            raise ValueError(f"{path}: expected weights, found a pointer of Git LFS; fetch them with `git lfs pull`")
        header_bytes = int.from_bytes(start, "little")
        if header_bytes > min(size_bytes, MAX_HEADER_BYTES):
            raise ValueError(f"{path}: expected safetensors, found something else")
        file.seek(8)
        try:
            header = json.loads(file.read(header_bytes))
            tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
            end = 8 + header_bytes + max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
            shapes = {name: tuple(entry["shape"]) for name, entry in tensors.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}: expected safetensors, found something else ({error})") from error
    if end != size_bytes:
        raise ValueError(f"{path}: expected {end} bytes, found {size_bytes}; the file was cut, or is not all here")
    return shapes


def _is_block_linear(name: str, shape: tuple[int, ...]) -> bool:
    return name.endswith(".weight") and len(shape) == 2 and "embed" not in name and "lm_head" not in name


def _largest_token_id(directory: Path) -> int | None:
    path = directory / "tokenizer.json"
    if not path.is_file():
        return None
    tokenizer = _read_json(path)
    vocabulary = (tokenizer.get("model") or {}).get("vocab") or {}
    ids = list(vocabulary.values()) if isinstance(vocabulary, dict) else [len(vocabulary) - 1]
    ids += [token["id"] for token in tokenizer.get("added_tokens") or []]
    return max((number for number in ids if isinstance(number, int)), default=None)


def _read_json(path: Path) -> dict[str, Any]:
    """Empty when it is not there. Raises ValueError naming a damaged file."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: expected JSON, found something else ({error})") from error
    return value if isinstance(value, dict) else {}
