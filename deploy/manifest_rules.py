"""What each value of an export's `manifest.json` must be. Standard library only, and the names of architectures."""

import json
import math
import re
import string
from collections.abc import Callable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from configs.architectures import DEVICE_NAMES

FORMAT_VERSION = 1
MANIFEST_FILE = "manifest.json"
BASE_FILE, ADAPTER_FILE, HEADS_FILE = "base.gguf", "adapter.gguf", "heads.safetensors"
TOKENIZER_DIR = "tokenizer"
START_RULE = "prompt_len - 1"
NEEDED_FILES = (BASE_FILE, ADAPTER_FILE, f"{TOKENIZER_DIR}/tokenizer.json", f"{TOKENIZER_DIR}/tokenizer_config.json")
MAX_TOKENS = 2**24
"""Largest value of anything that is counted or numbered in tokens."""
MAX_TEMPERATURE = 1000.0
TEMPLATE_FIELDS = {"question", "budget_tokens"}
SHOWN_CHARACTERS = 80

_SHA256 = re.compile(r"[0-9a-f]{64}")

Rule = tuple[str, Callable[[Any], bool]]
"""What was expected, in words, and whether a value is that."""


def first_problem(raw: Any) -> str:
    """The first thing that is wrong with a manifest as JSON has it: `key: expected …, found …`, one line; empty when
    nothing is."""
    return next(_problems(raw), "")


def _problems(raw: Any) -> Iterator[str]:
    if not isinstance(raw, dict):
        yield f"expected the manifest of an export, found something else ({shown(raw)})"
        return
    if "format_version" not in raw:
        yield "expected the manifest of an export, found something else (no format_version)"
        return
    version = raw["format_version"]
    if not (_is_count(version) and version == FORMAT_VERSION):
        yield f"expected format_version {FORMAT_VERSION}, found {shown(version)}; this export needs another Terse"
        return
    for key, (words, is_right) in RULES.items():
        if key not in raw:
            if key not in OPTIONAL:
                yield f"{key}: expected {words}, found no such key"
        elif not is_right(raw[key]):
            yield f"{key}: expected {words}, found {shown(raw[key])}"
    for key in raw:
        if key != "format_version" and key not in RULES:
            yield f"{shown(key)}: expected no such key in format_version {FORMAT_VERSION}, found {shown(raw[key])}"
    # Each value is right by itself from here on: the first problem is the one that counts.
    yield from _file_problems(raw["files"])
    if raw.get("switcher") is not None and HEADS_FILE not in raw["files"]:
        yield f"files: expected {HEADS_FILE}, since there is a switcher, found {shown(sorted(raw['files']))}"
    forced = len(raw["forced_answer_token_ids"]) + raw["answer_tokens"] + (raw["default_cap"] or 1)
    if forced >= raw["max_length_tokens"]:
        yield (
            f"max_length_tokens: expected more than {forced} (default_cap, forced_answer_token_ids and answer_tokens "
            f"together), found {raw['max_length_tokens']}"
        )


def _file_problems(files: Mapping[str, Any]) -> Iterator[str]:
    for name, entry in files.items():
        path = PurePosixPath(name)
        is_inside = not path.is_absolute() and ".." not in path.parts and path.as_posix() == name
        if not is_inside or "\\" in name or not name.isprintable():
            yield f"files: expected files inside the directory, found {shown(name)}"
        if name == MANIFEST_FILE:
            yield f"files: expected no entry for {MANIFEST_FILE} itself, found one"
        if not (isinstance(entry, dict) and entry.keys() == {"sha256", "size_bytes"}):
            yield f"files, {shown(name)}: expected sha256 and size_bytes, found {shown(entry)}"
            continue
        if not is_sha256(entry["sha256"]):
            yield f"files, {shown(name)}, sha256: expected 64 hexadecimal digits, found {shown(entry['sha256'])}"
        if not _is_count(entry["size_bytes"]):
            yield f"files, {shown(name)}, size_bytes: expected a number of bytes, found {shown(entry['size_bytes'])}"
    for name in NEEDED_FILES:
        if name not in files:
            yield f"files: expected {name}, found {shown(sorted(files))}"


def is_sha256(value: Any) -> bool:
    return isinstance(value, str) and _SHA256.fullmatch(value) is not None


def is_temperature(value: Any) -> bool:
    return _is_number(value) and 0 <= value <= MAX_TEMPERATURE


def shown(value: Any) -> str:
    """As JSON in one line, cut where it is long."""
    text = json.dumps(value)
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "…"


def _is_count(value: Any, least: int = 0, most: float = math.inf) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _is_number(value: Any) -> bool:
    # A whole number may be too large for a float.
    return (isinstance(value, float) and math.isfinite(value)) or _is_count(value, -(2**53), 2**53)


def _is_text(value: Any) -> bool:
    """JSON can hold halves of characters, which are no text."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _tokens(least: int) -> Callable[[Any], bool]:
    return lambda value: _is_count(value, least, MAX_TOKENS)


def _list_of_tokens(least: int, is_empty_right: bool) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and (is_empty_right or value != []) and all(map(_tokens(least), value))


def _is_template(value: Any) -> bool:
    """A format of `{question}` and, where it is wanted, `{budget_tokens}`: plain fields of no great width."""
    if not _is_text(value):
        return False
    try:
        fields = [field for field in string.Formatter().parse(value) if field[1] is not None]
        names = {name for _, name, _, _ in fields}
        if not ("question" in names and names <= TEMPLATE_FIELDS):
            return False
        # No field in a field, and no number in a format that could be a width of thousands.
        if any("{" in (form or "") or re.search("[0-9]{4}", form or "") for _, _, form, _ in fields):
            return False
        value.format(question="1+1=?", budget_tokens=1)
    except (ValueError, LookupError):
        return False
    return True


def _is_sampling(value: Any) -> bool:
    if not (isinstance(value, dict) and value.keys() == {"temperature", "top_p"}):
        return False
    return is_temperature(value["temperature"]) and _is_number(value["top_p"]) and 0 < value["top_p"] <= 1


def _is_switcher(value: Any) -> bool:
    if value is None:
        return True
    return isinstance(value, dict) and value.keys() == {"threshold"} and _is_number(value["threshold"])


def _is_training(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    texts = all(_is_text(value[key]) for key in ("run_id", "run_name", "commit") if key in value)
    return texts and isinstance(value.get("versions", {}), dict)


RULES: dict[str, Rule] = {
    "architecture": (f"one of {', '.join(DEVICE_NAMES)}", lambda value: value in DEVICE_NAMES),
    "precision": ('"f32", "f16" or "int4"', lambda value: value in ("f32", "f16", "int4")),
    "base_sha256": ("64 hexadecimal digits", is_sha256),
    "files": ("an object of paths", lambda value: isinstance(value, dict)),
    "start_rule": (f'"{START_RULE}"', lambda value: value == START_RULE),
    "stop_token_ids": ("a list of token ids, at least one", _list_of_tokens(0, is_empty_right=False)),
    "forced_answer_token_ids": ("a list of token ids", _list_of_tokens(0, is_empty_right=True)),
    "answer_tokens": ("a number of tokens, at least 1", _tokens(1)),
    "default_cap": (
        "a number of tokens, at least 1, or null for no cap",
        lambda value: value is None or _tokens(1)(value),
    ),
    "max_length_tokens": (f"a number of tokens, from 2 to {MAX_TOKENS}", _tokens(2)),
    "system_prompt": ("text", _is_text),
    "budget_prompt_template": ("text with {question}, {budget_tokens} and no other field", _is_template),
    "budgets_tokens": ("a list of numbers of tokens, at least one, each at least 1", _list_of_tokens(1, False)),
    "sampling": (
        f"temperature from 0 to {MAX_TEMPERATURE:g}, top_p above 0 and at most 1, and nothing else",
        _is_sampling,
    ),
    "switcher": ("threshold, a number, and nothing else", _is_switcher),
    "training": ("an object with run_id, run_name, commit and versions", _is_training),
}
OPTIONAL = ("switcher",)
"""Without heads there is none."""
