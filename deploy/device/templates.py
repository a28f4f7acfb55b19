"""Chat templates: the environment that transformers renders them in, and an end to those that have none.

A template comes with a model, so it is text that others wrote. Covered: loops in loops, recursion, ranges, and products
and powers of great size; each raises. Not covered: text that a template doubles again and again until memory is full, and
a single step that takes long.
"""

import datetime
import json
import re
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, ParamSpec, TypeVar

import jinja2
import jinja2.ext
import jinja2.sandbox

MAX_STEPS = 2_000_000
"""Lines of Python that a template may take, about two seconds; a chat of some turns takes a few hundred."""
MAX_RENDERING_S = 10.0
"""For steps that take long, each of them."""
MAX_PRODUCT = 2**40
MAX_REPEATED = 100_000
"""Characters or items of a text or list that is multiplied."""

P = ParamSpec("P")
T = TypeVar("T")


def count_steps(function: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """What the function returns. Raises RuntimeError once it and what it calls took `MAX_STEPS` lines of Python, or
    `MAX_RENDERING_S` and are still at it."""
    num_left, deadline_s = MAX_STEPS, time.monotonic() + MAX_RENDERING_S

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal num_left
        num_left -= 1
        if num_left < 0:
            raise RuntimeError(f"it does not end within {MAX_STEPS} steps")
        if time.monotonic() > deadline_s:
            raise RuntimeError(f"it does not end within {MAX_RENDERING_S:g} s")
        return trace

    previous = sys.gettrace()
    sys.settrace(trace)
    try:
        return function(*arguments, **named)
    finally:
        sys.settrace(previous)


def make_environment() -> jinja2.Environment:
    """What chat templates may rely on: transformers' own settings, filters and functions."""
    environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment


class _Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Looks at the operators whose results can be far larger than what they are made of."""

    intercepted_binops = frozenset(["*", "**", "%"])

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "%" and isinstance(left, str) and re.search(r"[0-9]{5}|\*", left):
            raise jinja2.sandbox.SecurityError("a format: expected fields of at most 9999 characters")
        if operator == "**" and _size(left) ** min(_size(right), 64) > MAX_PRODUCT:
            raise jinja2.sandbox.SecurityError(f"a power: expected at most {MAX_PRODUCT}")
        if operator == "*":
            most = MAX_PRODUCT if isinstance(left, int | float) and isinstance(right, int | float) else MAX_REPEATED
            if _size(left) * _size(right) > most:
                raise jinja2.sandbox.SecurityError(f"a product: expected at most {most}")
        return super().call_binop(context, operator, left, right)


def _size(value: Any) -> float:
    return abs(value) if isinstance(value, int | float) else len(value) if hasattr(value, "__len__") else 0


def _to_json(value: Any, indent: int | None = None, ensure_ascii: bool = False, **options: Any) -> str:
    # Jinja's own filter escapes HTML.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)
