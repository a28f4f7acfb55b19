"""Prompts for the device: the chat template rendered as transformers renders it, token ids by `tokenizers`."""

import datetime
import json
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.sandbox
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from deploy.manifest import ExportError


class Chat:
    """Tokenizer and chat template of an export's `tokenizer/`."""

    def __init__(self, directory: Path) -> None:
        """Raises ExportError when something is missing, or the template is none."""
        try:
            self._tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
            config = json.loads((directory / "tokenizer_config.json").read_text())
        except Exception as error:  # `tokenizers` raises plain Exception
            raise ExportError(f"{directory}: expected tokenizer.json and tokenizer_config.json ({error})") from error
        # A file of its own goes before the entry in tokenizer_config.json.
        path = directory / "chat_template.jinja"
        source = path.read_text() if path.is_file() else config.get("chat_template")
        if not isinstance(source, str) or not source:
            raise ExportError(f"{directory}: expected a chat template, found none")
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateError as error:
            raise ExportError(f"{directory}: expected a chat template, found text that is none ({error})") from error
        self._special = {
            key: value["content"] if isinstance(value, dict) else value
            for key, value in config.items()
            if key in ("bos_token", "eos_token", "pad_token", "unk_token") and value
        }

    def prompt(self, messages: list[dict[str, str]]) -> list[int]:
        """Token ids `[P]` of a chat that the assistant is to go on with."""
        text = self._template.render(
            messages=messages, tools=None, documents=None, add_generation_prompt=True, **self._special
        )
        return self.encode(text)

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


def _environment() -> jinja2.Environment:
    """What chat templates may rely on: transformers' own settings, filters and functions."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment


def _to_json(value: Any, indent: int | None = None, ensure_ascii: bool = False, **options: Any) -> str:
    # Jinja's own filter escapes HTML.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)
