"""Keeps passwords and tokens out of logs, files and reports."""

import logging
import os
import re
from typing import Any

from configs.secrets import QUERY_SECRET, SECRET_NAME, USER_INFO

REDACTED = "***"
MIN_SECRET_CHARS = 8
"""Shorter values of such variables are more likely `true` or `token` than a secret."""


def redacted(text: str) -> str:
    """The text with `***` for passwords in addresses, and for the values of environment variables that are secrets.

    Example: `https://me:pw@host/x` → `https://me:***@host/x`; with `HF_TOKEN=hf_abcdefgh`: `hf_abcdefgh` → `***`.
    """
    for value in secret_values(dict(os.environ)):
        text = text.replace(value, REDACTED)
    return QUERY_SECRET.sub(rf"\1{REDACTED}", USER_INFO.sub(_redact_password, text))


def _redact_password(match: re.Match[str]) -> str:
    """`://me:pw@` → `://me:***@`, `://token@` → `://***@`"""
    user, colon, _ = match.group().removeprefix("://").removesuffix("@").partition(":")
    return f"://{user}:{REDACTED}@" if colon else f"://{REDACTED}@"


def secret_values(environment: dict[str, str]) -> list[str]:
    """Values of the variables whose names say that they are secret, longest first."""
    found = {
        value
        for name, value in environment.items()
        if SECRET_NAME.search(name) and len(value) >= MIN_SECRET_CHARS and not os.path.exists(value)
    }
    return sorted(found, key=lambda value: (-len(value), value))


class RedactingFormatter(logging.Formatter):
    """Redacts what is about to be written, tracebacks included."""

    def format(self, record: Any) -> str:
        return redacted(super().format(record))
