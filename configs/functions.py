"""Functions that a configuration names: a built-in one by its short name, or anybody's as `package.module:function`.

Both go the same way: the name is looked up among the built-in ones, whose targets are `module:function` too, and the module
is imported where the function is called. `terse plan` and every run look at all of them first (`configs.named_functions`).
"""

import difflib
import functools
import hashlib
import importlib
import importlib.util
import inspect
import os
import re
import socket
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from configs.built_ins import TASK_SOURCES
from configs.errors import UserError

_NAME = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
DIGEST_CHARS = 16
"""Of a source file's SHA-256 that are written down."""

BuiltIns = Mapping[str, str]
"""Short name → `module:function`"""


def is_function_name(name: str) -> bool:
    """Whether it has the form `package.module:function`; says nothing of whether there is one."""
    return _NAME.fullmatch(name) is not None


def is_task_function(name: str) -> bool:
    """Whether `data.*.source` names a function that returns rows."""
    return name in TASK_SOURCES or is_function_name(name)


def name_problem(key: str, name: str, built_ins: BuiltIns) -> str:
    """What is wrong with the form of a setting that names a function; empty when nothing is."""
    if name in built_ins or is_function_name(name):
        return ""
    close = difflib.get_close_matches(name, built_ins, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"{key}: expected one of {', '.join(built_ins)}, or package.module:function, found {name!r}{hint}"


def load_function(key: str, name: str, built_ins: BuiltIns) -> Callable[..., Any]:
    """The function that setting `key` names.

    Raises UserError, which names the setting and this node, when the name is none, the module cannot be imported here or has
    no such function.
    """
    if problem := name_problem(key, name, built_ins):
        raise UserError(problem)
    return _import(key, name, built_ins.get(name, name))


@functools.lru_cache(maxsize=64)
def _import(key: str, name: str, target: str) -> Callable[..., Any]:
    module_name, _, function_name = target.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever a module does when it is imported
        raise UserError(
            f"{key}: expected a module that can be imported, found {name!r}: {type(error).__name__}: {error} (on node "
            f"{socket.gethostname()}). Put its directory on PYTHONPATH, or ship it with the job: "
            "`ray job submit --working-dir DIRECTORY …`"
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        there = [thing for thing, value in vars(module).items() if inspect.isfunction(value)]
        close = difflib.get_close_matches(function_name, there, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise UserError(f"{key}: expected a function, found {name!r}, and {module_name} has none of that name{hint}")
    return function


def call_problem(key: str, function: Callable[..., Any], num_arguments: int, settings: Mapping[str, Any]) -> str:
    """Why a function cannot be called with so many arguments and the settings of `<key>_args`; empty when it can."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # written in C, say
        return ""
    try:
        signature.bind(*[None] * num_arguments, **settings)
    except TypeError as error:
        return (
            f"{key}_args: expected settings that {function.__module__}:{function.__qualname__}{signature} takes beside its "
            f"{num_arguments} argument{'s' * (num_arguments != 1)}, found {dict(settings)} ({error})"
        )
    return ""


def source_digest(name: str) -> str:
    """The beginning of the SHA-256 of the file that a `package.module:function` is in; empty where there is no file."""
    spec = importlib.util.find_spec(name.partition(":")[0])
    if spec is None or not spec.origin or not Path(spec.origin).is_file():
        return ""
    return hashlib.sha256(Path(spec.origin).read_bytes()).hexdigest()[:DIGEST_CHARS]


def search_working_directory() -> None:
    """Let modules be found in the directory that a command was started in, after everything that is installed."""
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
        importlib.invalidate_caches()
