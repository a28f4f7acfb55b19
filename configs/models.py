"""Where a model named in the config lies."""

import hashlib
import importlib.resources
import json
import re
from pathlib import Path
from typing import Any

from configs.schema.run import EMBEDDED_MODEL

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
"""Of an adapter in PEFT's format."""
FETCHABLE_MODELS = ("smollm2-135m", "qwen2.5-coder-0.5b")
"""What `terse fetch-model` can make."""
INDEX_FILE = "model.safetensors.index.json"
DATA_FORMATS = {
    **dict.fromkeys((".json", ".jsonl", ".ndjson", ".json.gz", ".jsonl.gz", ".ndjson.gz"), "json"),
    **{".parquet": "parquet", ".csv": "csv", ".tsv": "csv"},
}
"""How a data file's name ends, in either case → its format."""


def data_format(name: str) -> str:
    """`json`, `parquet` or `csv`; empty for a name that says nothing of it."""
    return next((kind for suffix, kind in DATA_FORMATS.items() if name.lower().endswith(suffix)), "")


def known_config(name: str) -> dict[str, Any]:
    """The sizes in `config.json` of a hub model that a shipped configuration names, so that a plan needs no download; empty
    for others."""
    path = importlib.resources.files("configs") / "known_models.json"
    return json.loads(path.read_text(encoding="utf-8")).get(name, {})


def looks_like_path(value: str) -> bool:
    """Whether a data or model setting means a local file or directory rather than a hub name."""
    return value.startswith(("./", "../", "/", "~")) or bool(data_format(value))


def is_local_data(value: str) -> bool:
    """Whether `source` means files here: a path by its looks, a pattern, or something that is there."""
    return looks_like_path(value) or any(sign in value for sign in "*?[") or Path(value).exists()


def is_local_model(path: str) -> bool:
    """A path by its looks, or a relative one whose parent is a directory here; a hub name is at most `org/name`."""
    return looks_like_path(path) or Path(path).is_dir() or ("/" in path and Path(path).parent.is_dir())


def is_local_adapter(name: str) -> bool:
    """Whether `sft.adapter` means a directory rather than a hub name, which is `org/name` and no path here."""
    is_hub = re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name) is not None
    return not is_hub or Path(name).is_dir() or Path(name).parent.is_dir()


def is_hub_name(path: str) -> bool:
    """Neither the embedded model nor a local directory."""
    return path != EMBEDDED_MODEL and not is_local_model(path)


def resolve_model_path(path: str) -> str:
    """A directory for `embedded` and local models, the name itself for hub models.

    Raises ValueError for a local directory without `config.json` or safetensors weights.
    """
    if path == EMBEDDED_MODEL:
        directory = Path(str(importlib.resources.files("configs"))) / "tiny_model"
    elif is_local_model(path):
        directory = Path(path).expanduser()
    else:
        return path
    if problem := directory_problem(directory):
        raise ValueError(f"model.path {path!r}: {problem}")
    return str(directory)


def directory_problem(directory: Path) -> str:
    """What keeps a directory from being a Hugging Face model; empty when nothing does."""
    if not directory.is_dir():
        return f"expected a directory with config.json and *.safetensors, found no directory {directory}"
    names = {file.name for file in directory.iterdir()}
    missing = [] if "config.json" in names else ["config.json"]
    if not any(name.endswith(".safetensors") for name in names):
        missing.append("*.safetensors")
    return (
        f"expected config.json and *.safetensors in {directory}, found no {' and no '.join(missing)}" if missing else ""
    )


def weight_files(directory: Path) -> list[Path]:
    """The files that transformers loads: `model.safetensors`, else those that the index names, in the order of their names.

    Raises ValueError when one is not there.
    """
    if (directory / "model.safetensors").is_file():
        return [directory / "model.safetensors"]
    index = directory / INDEX_FILE
    if not index.is_file():
        found = ", ".join(sorted(path.name for path in directory.glob("*.safetensors"))) or "neither"
        raise ValueError(f"expected model.safetensors or {INDEX_FILE} in {directory}, found {found}")
    try:
        named = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index}: expected a weight_map of files, found something else ({error})") from error
    if missing := [name for name in named if not (directory / name).is_file()]:
        raise ValueError(f"{index}: expected the files that it names, found no {', '.join(missing)}")
    return [directory / name for name in named]


def weights_sha256(model_path: str | Path) -> str:
    """Hex digest of the model's weights (`model.safetensors`, or the files that its index names), one after the other in the order of their names.

    `model_path` is a directory or a hub name whose files have been fetched.
    """
    directory = Path(model_path)
    if not directory.is_dir():
        from huggingface_hub import snapshot_download

        directory = Path(
            snapshot_download(
                str(model_path), local_files_only=True, allow_patterns=["*.safetensors", "*.safetensors.index.json"]
            )
        )
    digest = hashlib.sha256()
    for path in weight_files(directory):
        with path.open("rb") as file:
            while block := file.read(1 << 24):
                digest.update(block)
    return digest.hexdigest()


def context_tokens(hf_config: dict[str, Any]) -> int | None:
    """Longest sequence that a model's `config.json` allows, as vLLM reads it; None when it does not say.

    `linear` and `dynamic` rope scaling multiply it; other kinds state the length that is already scaled.
    """
    text_config = hf_config.get("text_config") or hf_config
    length = text_config.get("max_position_embeddings")
    rope = text_config.get("rope_scaling") or text_config.get("rope_parameters") or {}
    if length is not None and rope.get("rope_type", rope.get("type")) in ("linear", "dynamic"):
        return int(length * rope["factor"])
    return length
