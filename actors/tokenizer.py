"""The base model's tokenizer and end tokens, the same for every process that reads or writes text."""

import json
from pathlib import Path
from typing import Any

from configs.schema import ModelSection


def load_tokenizer(model_path: str, model: ModelSection) -> Any:
    """The model's tokenizer; ValueError when it has no chat template."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_path, trust_remote_code=model.trust_remote_code)
    if not tokenizer.chat_template:
        raise ValueError(f"model.path {model_path!r}: expected a tokenizer with a chat template, found none")
    return tokenizer


def stop_token_ids(model_path: str, tokenizer: Any) -> tuple[int, ...]:
    """End tokens of the tokenizer and of the model's generation config (chat models often name several), which follows from
    config.json where there is none, as in transformers. The same for a directory and a hub name.

    Raises ValueError when neither names one.
    """
    ids = {tokenizer.eos_token_id} - {None}
    named = _named_end_tokens(model_path)
    ids |= set(named if isinstance(named, list) else [named]) - {None}
    if not ids:
        raise ValueError(f"model.path {model_path!r}: expected an end token in tokenizer or generation config")
    return tuple(sorted(ids))


def _named_end_tokens(model_path: str) -> Any:
    from transformers.utils import cached_file

    for name in ("generation_config.json", "config.json"):
        path = Path(model_path) / name
        if not Path(model_path).is_dir():
            found = cached_file(model_path, name, _raise_exceptions_for_missing_entries=False, local_files_only=True)
            path = Path(found) if found else path
        if path.is_file():
            settings = json.loads(path.read_text())
            return settings.get("eos_token_id", (settings.get("text_config") or {}).get("eos_token_id"))
    return None
