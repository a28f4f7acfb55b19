"""The base model's tokenizer and end tokens, the same for every process that reads or writes text."""

import json
import logging
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from configs.schema.run import ModelSection

log = logging.getLogger(__name__)

PROBE = "terse"
"""What an assistant says to see how a chat template ends its turn."""


def read_tokenizers_only() -> None:
    """Hide torch from this process for good, unless it is there already: transformers then reads tokenizers as where torch is not
    installed, and loads none of what models need. For a process that ends with what it reads of tokenizers.
    """
    if "torch" not in sys.modules:
        sys.modules["torch"] = None  # type: ignore[assignment]  # Python's mark of a module that is not to be imported
        os.environ["TRANSFORMERS_NO_ADVISORY_WARNINGS"] = "1"  # else it says that torch is missing


def load_tokenizer(model_path: str, model: ModelSection) -> Any:
    """The model's tokenizer, with `model.chat_template_args` written into its chat template.

    Raises ValueError when it has no chat template, or one that does not know an argument.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_path, trust_remote_code=model.trust_remote_code)
    if not tokenizer.chat_template:
        raise ValueError(f"model.path {model_path!r}: expected a tokenizer with a chat template, found none")
    if model.chat_template_args:
        tokenizer.chat_template = with_arguments(tokenizer.chat_template, model.chat_template_args)
    return tokenizer


def with_arguments(template: Any, arguments: Mapping[str, Any]) -> Any:
    """A chat template, or several by name, in which these variables have these values whatever it is rendered with.

    Example: `{"enable_thinking": False}` → `{%- set enable_thinking = false %}` before the template. Raises ValueError for a
    variable that the template does not use, and for a value that no template can hold.
    """
    if isinstance(template, dict):
        return {name: with_arguments(one, arguments) for name, one in template.items()}
    lines = []
    for name, value in arguments.items():
        if not re.search(rf"\b{re.escape(name)}\b", template):
            raise ValueError(
                f"model.chat_template_args.{name}: expected a variable of the model's chat template, found none"
            )
        try:
            literal = json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"model.chat_template_args.{name}: expected text, a number or a truth value, found {value!r}"
            ) from error
        line = f"{{%- set {name} = {'none' if value is None else literal} %}}"
        if not template.startswith(line):  # an export's template holds them already
            lines.append(line)
    return "".join(lines) + template


def stop_token_ids(model_path: str, tokenizer: Any) -> tuple[int, ...]:
    """What ends a completion: the tokenizer's end token, those of the model's generation config (chat models often name
    several), which follows from config.json where there is none, as in transformers, and the token that the chat template
    ends an assistant's turn with. The same for a directory and a hub name.

    Raises ValueError when none of them names one.
    """
    ids = {tokenizer.eos_token_id} - {None}
    named = _named_end_tokens(model_path)
    ids |= set(named if isinstance(named, list) else [named]) - {None}
    ids |= _turn_end_tokens(tokenizer)
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


def _turn_end_tokens(tokenizer: Any) -> set[int]:
    """The special token that follows the assistant's words in the chat template; empty when there is none.

    Example: ChatML writes `terse<|im_end|>\\n`, so `<|im_end|>` ends a turn although a base model's tokenizer may say
    `<|endoftext|>`.
    """
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": PROBE}]
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False)
    except (
        Exception
    ) as error:  # a chat template raises what it likes; rows and prompts that need it are refused by name
        log.warning("chat template: what ends a turn cannot be read of it (%s: %s)", type(error).__name__, error)
        return set()
    _, said, rest = text.rpartition(PROBE)
    ids = tokenizer(rest, add_special_tokens=False)["input_ids"] if said else []
    special = set(tokenizer.all_special_ids) | {
        number for number, token in tokenizer.added_tokens_decoder.items() if token.special
    }
    return set([token for token in ids if token in special][:1])
