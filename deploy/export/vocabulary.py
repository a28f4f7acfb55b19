"""A tokenizer as llama.cpp's other tools want it. Terse's own runtime never reads it: it works on token ids.

Only byte-level BPE tokenizers that llama.cpp splits text for in the same way are written; for another one the file
says how many tokens there are and no more.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
"""Token types of GGUF."""

_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_PATTERNS = {
    rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|{_LETTERS}|\p{{N}}|{_REST}": "qwen2",
    rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|{_LETTERS}|\p{{N}}{{1,3}}|{_REST}": "llama-bpe",
}
"""Regular expression that text is split by → llama.cpp's name for it."""

_TEXT = {
    chr(code)
    for first, last in ((0x21, 0x7E), (0xA1, 0xAC), (0xAE, 0xBF), (0x122, 0x143))
    for code in range(first, last + 1)
}
_TEXT |= {"\u0120", "\u010a"}
"""Printable ASCII, the bytes 0x80 to 0xBF, space and line break, as byte-level BPE writes them: what text of any language
needs. Rarer bytes are missing from some vocabularies."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Vocabulary:
    """A byte-level BPE vocabulary under GGUF's names."""

    pre: str
    """llama.cpp's name of the way text is split."""
    tokens: tuple[str, ...]
    types: tuple[int, ...]
    merges: tuple[str, ...]
    special_ids: dict[str, int]
    """`bos`, `eos`, `pad`, `unk` → id, as far as the tokenizer has them."""
    chat_template: str
    """Empty when there is none."""


def read_vocabulary(tokenizer_dir: Path, num_tokens: int) -> Vocabulary | None:
    """The vocabulary of a `tokenizer.json`, filled up to `num_tokens` (rows of the embeddings); None for a kind that
    llama.cpp does not know, and for one that cannot write plain text."""
    path = tokenizer_dir / "tokenizer.json"
    if not path.is_file():
        return None
    raw = json.loads(path.read_text())
    pre = _pre_tokenizer(raw.get("pre_tokenizer") or {})
    model = raw["model"]
    if model.get("type") != "BPE" or pre is None or not model["vocab"].keys() >= _TEXT:
        return None
    tokens, types = [f"[PAD{index}]" for index in range(num_tokens)], [UNUSED] * num_tokens
    for text, index in model["vocab"].items():
        tokens[index], types[index] = text, NORMAL
    for added in raw.get("added_tokens", []):
        tokens[added["id"]], types[added["id"]] = added["content"], CONTROL if added["special"] else USER_DEFINED
    merges = (merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"])
    config = _read_json(tokenizer_dir / "tokenizer_config.json")
    ids = {text: index for index, text in enumerate(tokens)}
    return Vocabulary(
        pre=pre,
        tokens=tuple(tokens),
        types=tuple(types),
        merges=tuple(merges),
        special_ids={
            kind: ids[text] for kind in ("bos", "eos", "pad", "unk") if (text := _content(config, kind)) in ids
        },
        chat_template=_chat_template(tokenizer_dir, config),
    )


def _pre_tokenizer(raw: dict[str, Any]) -> str | None:
    parts = raw.get("pretokenizers", [raw])
    kinds = [part.get("type") for part in parts]
    if any(part.get("add_prefix_space") for part in parts):
        return None
    if kinds == ["ByteLevel"] and parts[0].get("use_regex", True):
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and parts[0].get("individual_digits") and parts[1].get("use_regex", True):
        return "smollm"
    if kinds == ["Split", "ByteLevel"] and parts[0].get("behavior") == "Isolated" and not parts[1].get("use_regex"):
        return _PATTERNS.get(parts[0].get("pattern", {}).get("Regex"))
    return None


def _content(config: dict[str, Any], kind: str) -> str | None:
    token = config.get(f"{kind}_token")
    return token["content"] if isinstance(token, dict) else token


def _chat_template(tokenizer_dir: Path, config: dict[str, Any]) -> str:
    path = tokenizer_dir / "chat_template.jinja"
    if path.is_file():
        return path.read_text()
    template = config.get("chat_template")
    return template if isinstance(template, str) else ""


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.is_file() else {}
