"""`manifest.json` of an export: what its files are, and how the model is to be used. Standard library only."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from configs.errors import UserError
from deploy.manifest_rules import (
    ADAPTER_FILE,
    BASE_FILE,
    FORMAT_VERSION,
    HEADS_FILE,
    MANIFEST_FILE,
    START_RULE,
    TOKENIZER_DIR,
    first_problem,
)

__all__ = [
    "ADAPTER_FILE",
    "BASE_FILE",
    "CARD_FILE",
    "HEADS_FILE",
    "MANIFEST_FILE",
    "MERGED_DIR",
    "PEFT_DIR",
    "TOKENIZER_DIR",
    "ExportError",
    "Manifest",
    "check_files",
    "describe_files",
    "file_sha256",
    "read_manifest",
]

PEFT_DIR, MERGED_DIR, CARD_FILE = "adapter", "merged", "MODEL_CARD.md"


class ExportError(UserError, RuntimeError):
    """An export directory that cannot be used, or a file of it; one line that names it, what was expected and found."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The values of `manifest.json`, under its names."""

    architecture: str
    """`qwen2` or `llama`"""
    precision: str
    """`f32`, `f16` or `int4`"""
    base_sha256: str
    """Hash of the weights that adapter and heads were trained on (`configs.models.weights_sha256`); heads name theirs too."""
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
    """Raises ExportError for a directory that is no export, for one of another format, and for a value that is missing
    or cannot be."""
    path = directory / MANIFEST_FILE
    if not path.is_file():
        raise ExportError(f"{directory}: expected an export directory with {MANIFEST_FILE}, found none")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_without_repeats)
        problem = first_problem(raw)
    except (OSError, ValueError, RecursionError) as error:
        raise ExportError(f"{path}: expected the manifest of an export, found something else ({error})") from error
    if problem:
        separator = ":" if problem.startswith("expected") else ","
        raise ExportError(f"{path}{separator} {problem}")
    del raw["format_version"]
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in raw.items()}
    return Manifest(**values)


def check_files(directory: Path, manifest: Manifest) -> None:
    """Raises ExportError naming the first file that is missing, is not the one that was exported, or is not of the
    export. Tells damage and mix-ups; whoever can change a file can change the manifest as well."""
    for name, expected in manifest.files.items():
        path = directory / name
        if not path.is_file():
            raise ExportError(f"{path}: expected this file of the export, found none")
        try:
            size, found = path.stat().st_size, ""
            if size == expected["size_bytes"]:
                found = file_sha256(path)
        except OSError as error:
            raise ExportError(f"{path}: expected this file of the export, it cannot be read ({error})") from error
        if size != expected["size_bytes"]:
            raise ExportError(f"{path}: expected {expected['size_bytes']} bytes, found {size}; the file is damaged")
        if found != expected["sha256"]:
            raise ExportError(
                f"{path}: expected SHA-256 {expected['sha256'][:16]}…, found {found[:16]}…; the file is damaged"
            )
    for path in _files(directory):
        if path.relative_to(directory).as_posix() not in manifest.files:
            raise ExportError(
                f"{path}: expected only files that {MANIFEST_FILE} lists, found another one; it is no part of the export"
            )


def describe_files(directory: Path) -> dict[str, dict[str, Any]]:
    """Every file of a directory but the manifest, for the manifest."""
    return {
        path.relative_to(directory).as_posix(): {"sha256": file_sha256(path), "size_bytes": path.stat().st_size}
        for path in _files(directory)
    }


def _files(directory: Path) -> list[Path]:
    manifest = directory / MANIFEST_FILE
    return sorted(path for path in directory.rglob("*") if path.is_file() and path != manifest)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, which may name a key twice where one would be lost."""
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} stands there twice")
    return values


def file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
