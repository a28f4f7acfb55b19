"""Templates of Markdown files: what models and people wrote stays text there, whatever characters it has."""

import re
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

_LINE_BREAK = re.compile(r"\r\n|[\n\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")
"""Whatever some reader of Markdown takes for the end of a line."""
_BACKTICKS = re.compile(r"`+")


class Verbatim(str):
    """Text that stands in a block or in quotes of code, where nothing needs an escape."""


def make_environment() -> Environment:
    """Every value is escaped for a line or a cell, except what the filters `block`, `fence` and `code` made code of."""
    environment = Environment(
        loader=PackageLoader("orchestrator.report", "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
        finalize=as_line,
    )
    environment.filters |= {"block": as_block, "fence": as_fence, "code": as_code}
    return environment


def as_line(value: Any) -> Any:
    """One line without HTML, links, or a `|` that would end a cell.

    Example: `a|<b>` and a line break → `a\\|&lt;b>` and a blank.
    """
    if isinstance(value, Verbatim) or not isinstance(value, str):
        return value
    text = value.replace("\\|", "|").replace("|", "\\|").replace("<", "&lt;").replace("](", "]\\(")
    return _LINE_BREAK.sub(" ", text)


def as_block(text: str) -> Verbatim:
    """The lines of a block that the template indents by four blanks: no character in the text ends it."""
    return Verbatim("\n    ".join(_LINE_BREAK.split(text)))


def as_fence(text: str, language: str = "") -> Verbatim:
    """A fenced block; its fence is longer than any that the text holds."""
    fence = "`" * max(3, 1 + _longest(text))
    return Verbatim(f"{fence}{language}\n{text.rstrip()}\n{fence}")


def as_code(text: str) -> Verbatim:
    """Quoted as code within a line, by more backticks than the text holds in a row."""
    line = _LINE_BREAK.sub(" ", text)
    quote = "`" * (1 + _longest(line))
    blank = " " if line.startswith("`") or line.endswith("`") else ""
    return Verbatim(f"{quote}{blank}{line}{blank}{quote}")


def _longest(text: str) -> int:
    return max((len(run) for run in _BACKTICKS.findall(text)), default=0)
