"""Functions of vLLM that the plugins wrap: all those of a plugin are patched, or none.

vLLM promises nothing about its inner functions. Each is compared with the source that its wrapper was written for;
where one differs, vLLM stays as it is.
"""

import hashlib
import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

SUPPORTED_VLLM = "0.32.0"

_ORIGINAL = "terse_original"


@dataclass(frozen=True, slots=True, kw_only=True)
class Patch:
    """One function of vLLM that is wrapped."""

    module: str
    name: str
    """`function` or `Class.method`"""
    source_sha256: str
    """Beginning of the hash of the source that the wrapper was written for."""
    wrap: Callable[[Any], Any]
    also_in: tuple[str, ...] = ()
    """Other modules that hold the function under its own name."""

    def owner(self) -> Any:
        """The module or class that holds the function. Raises ImportError or AttributeError when it is gone."""
        owner = importlib.import_module(self.module)
        for part in self.name.split(".")[:-1]:
            owner = getattr(owner, part)
        return owner

    @property
    def attribute(self) -> str:
        return self.name.rpartition(".")[2]


def apply_patches(wanted: tuple[Patch, ...]) -> str | None:
    """Patch this process, idempotently. Returns why nothing was patched, in one line; None when all are."""
    if problem := find_problem(wanted):
        return problem
    for patch in wanted:
        if is_patched(patch):
            continue
        owner = patch.owner()
        original = getattr(owner, patch.attribute)
        wrapper = patch.wrap(original)
        setattr(wrapper, _ORIGINAL, original)
        setattr(owner, patch.attribute, wrapper)
        for name in patch.also_in:
            setattr(importlib.import_module(name), patch.attribute, wrapper)
    return None


def is_patched(patch: Patch) -> bool:
    """Raises ImportError or AttributeError when the function is gone."""
    return hasattr(getattr(patch.owner(), patch.attribute), _ORIGINAL)


def find_problem(wanted: tuple[Patch, ...]) -> str | None:
    """Why this vLLM cannot be patched, in one line; None when it can, or is already."""
    import vllm

    # Local labels (`+cpu`) name a build, not another source.
    if vllm.__version__.partition("+")[0] != SUPPORTED_VLLM:
        return f"expected vllm {SUPPORTED_VLLM}, found {vllm.__version__}"
    for patch in wanted:
        try:
            function = getattr(patch.owner(), patch.attribute)
            holders = [getattr(importlib.import_module(name), patch.attribute) for name in patch.also_in]
        except (ImportError, AttributeError) as error:
            return f"vllm {vllm.__version__} has no {patch.module}.{patch.name} as expected: {error}"
        if any(holder is not function for holder in holders):
            return f"expected {' and '.join(patch.also_in)} to use {patch.module}.{patch.name}, found another function"
        found = source_sha256(getattr(function, _ORIGINAL, function))
        if found != patch.source_sha256:
            return f"{patch.module}.{patch.name}: expected source {patch.source_sha256}, found {found}"
    return None


def source_sha256(function: Any) -> str:
    """First 16 hex digits."""
    return hashlib.sha256(inspect.getsource(function).encode()).hexdigest()[:16]
