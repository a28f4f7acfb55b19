"""`manifest.json` of an export: what its files are, and how the model is to be used. Standard library only."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FORMAT_VERSION = 1
MANIFEST_FILE = "manifest.json"
BASE_FILE, ADAPTER_FILE, HEADS_FILE = "base.gguf", "adapter.gguf", "heads.safetensors"
TOKENIZER_DIR, PEFT_DIR, MERGED_DIR, CARD_FILE = "tokenizer", "adapter", "merged", "MODEL_CARD.md"
START_RULE = "prompt_len - 1"


class ExportError(RuntimeError):
    """An export directory that cannot be used; one line that names the file, what was expected and what was found."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The values of `manifest.json`, under its names."""

    architecture: str
    """`qwen2` or `llama`"""
    precision: str
    """`f32`, `f16` or `int4`"""
    base_sha256: str
    """Of the weights that adapter and heads were trained on (`configs.models.weights_sha256`); heads name theirs too."""
    files: dict[str, dict[str, Any]]
    """Path in the directory → `sha256`, `size_bytes`"""
    start_rule: str = START_RULE
    """First position at which the adapter is on."""
    stop_token_ids: tuple[int, ...]
    forced_answer_token_ids: tuple[int, ...]
    """What a cap appends."""
    answer_tokens: int
    """Generated at most after that."""
    default_cap: int | None = None
    """Tokens after which an answer is forced unless the caller says otherwise; None is no cap."""
    max_length_tokens: int
    """Prompt and completion together."""
    system_prompt: str = ""
    budget_prompt_template: str
    """With `{question}` and `{budget_tokens}`."""
    budgets_tokens: tuple[int, ...]
    """The budgets of training, for a difficulty of 0."""
    sampling: dict[str, float]
    """`temperature`, `top_p`"""
    switcher: dict[str, float] | None = None
    """`threshold`, when there are heads"""
    training: dict[str, Any] = field(default_factory=dict)
    """`run_id`, `run_name`, `commit`, `versions`"""

    def to_json(self) -> str:
        values = {name: getattr(self, name) for name in self.__slots__}
        absent = [name for name in ("switcher",) if values[name] is None]
        kept = {name: value for name, value in values.items() if name not in absent}
        return json.dumps({"format_version": FORMAT_VERSION, **kept}, indent=2) + "\n"


def read_manifest(directory: Path) -> Manifest:
    """Raises ExportError for a directory that is no export, and for one of another format."""
    path = directory / MANIFEST_FILE
    if not path.is_file():
        raise ExportError(f"{directory}: expected an export directory with {MANIFEST_FILE}, found none")
    try:
        raw = json.loads(path.read_text())
        if raw.pop("format_version") != FORMAT_VERSION:
            raise ExportError(f"{path}: expected format_version {FORMAT_VERSION}; this export needs another Terse")
        lists = ("stop_token_ids", "forced_answer_token_ids", "budgets_tokens")
        values: dict[str, Any] = {key: tuple(value) if key in lists else value for key, value in raw.items()}
        manifest = Manifest(**values)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ExportError(f"{path}: expected the manifest of an export, found something else ({error})") from error
    if manifest.start_rule != START_RULE:
        raise ExportError(f"{path}, start_rule: expected {START_RULE!r}, found {manifest.start_rule!r}")
    return manifest


def check_files(directory: Path, manifest: Manifest) -> None:
    """Raises ExportError naming the first file that is missing or is not the one that was exported."""
    for name, expected in manifest.files.items():
        path = directory / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ExportError(f"{directory}: expected files inside the directory, the manifest names {name}")
        if not path.is_file():
            raise ExportError(f"{path}: expected this file of the export, found none")
        size = path.stat().st_size
        if size != expected["size_bytes"]:
            raise ExportError(f"{path}: expected {expected['size_bytes']} bytes, found {size}; the file is damaged")
        if (found := file_sha256(path)) != expected["sha256"]:
            raise ExportError(
                f"{path}: expected SHA-256 {expected['sha256'][:16]}…, found {found[:16]}…; the file is damaged"
            )


def describe_files(directory: Path) -> dict[str, dict[str, Any]]:
    """Every file of a directory but the manifest, for the manifest."""
    paths = sorted(path for path in directory.rglob("*") if path.is_file() and path.name != MANIFEST_FILE)
    return {
        path.relative_to(directory).as_posix(): {"sha256": file_sha256(path), "size_bytes": path.stat().st_size}
        for path in paths
    }


def file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
