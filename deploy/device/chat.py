"""Prompts for the device: the chat template rendered as transformers renders it, token ids by `tokenizers`."""

import json
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from deploy.device.templates import count_steps, make_environment
from deploy.manifest import ExportError

SPECIAL_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")


class Chat:
    """Tokenizer and chat template of an export's `tokenizer/`."""

    def __init__(self, directory: Path) -> None:
        """Raises ExportError when something is missing, or the template is none."""
        self._directory = directory
        try:
            self._tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
            config = json.loads((directory / "tokenizer_config.json").read_text(encoding="utf-8"))
            # A file of its own goes before the entry in tokenizer_config.json.
            path = directory / "chat_template.jinja"
            source = path.read_text(encoding="utf-8") if path.is_file() else config.get("chat_template")
            special = {key: config.get(key) for key in SPECIAL_TOKENS}
        except Exception as error:  # `tokenizers` raises plain Exception
            raise ExportError(
                f"{directory}: expected tokenizer.json and tokenizer_config.json ({_in_one_line(error)})"
            ) from error
        if not isinstance(source, str) or not source:
            raise ExportError(f"{directory}: expected a chat template, found none")
        try:
            self._template = make_environment().from_string(source)
        except Exception as error:  # Jinja works out what is constant already here
            raise ExportError(
                f"{directory}: expected a chat template, found text that is none ({_in_one_line(error)})"
            ) from error
        self._special = {
            key: value.get("content") if isinstance(value, dict) else value for key, value in special.items() if value
        }
        for key, value in self._special.items():
            if not isinstance(value, str):
                raise ExportError(
                    f"{directory / 'tokenizer_config.json'}, {key}: expected text, found {special[key]!r}"
                )

    def prompt(self, messages: list[dict[str, str]]) -> list[int]:
        """Token ids `[P]` of a chat that the assistant is to go on with. Raises ExportError where the template fails or
        does not end."""
        try:
            text = count_steps(self._render, messages)
        except Exception as error:  # whatever a template can do wrong
            raise ExportError(
                f"{self._directory}: expected a chat template that a chat can be put in, found one that cannot "
                f"({_in_one_line(error)})"
            ) from error
        return self.encode(text)

    def _render(self, messages: list[dict[str, str]]) -> str:
        return self._template.render(
            messages=messages, tools=None, documents=None, add_generation_prompt=True, **self._special
        )

    def encode(self, text: str) -> list[int]:
        """Without special tokens around it."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, token_ids: list[int]) -> str:
        """Special tokens left out."""
        return self._tokenizer.decode(token_ids, skip_special_tokens=True)

    def stream(self) -> "TextStream":
        return TextStream(self._tokenizer)


class TextStream:
    """Text of a completion as its tokens come."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self._stream = tokenizer, DecodeStream(skip_special_tokens=True)

    def add(self, token_id: int) -> str:
        """What the token adds; empty while a character is not complete."""
        return self._stream.step(self._tokenizer, token_id) or ""


def _in_one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
