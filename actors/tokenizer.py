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
    """End tokens of the tokenizer and of the model's generation config (chat models often name several)."""
    ids = {tokenizer.eos_token_id} - {None}
    path = Path(model_path) / "generation_config.json"
    if path.is_file():
        named = json.loads(path.read_text()).get("eos_token_id")
        ids |= set(named if isinstance(named, list) else [named]) - {None}
    if not ids:
        raise ValueError(f"model.path {model_path!r}: expected an end token in tokenizer or generation config")
    return tuple(sorted(ids))
