"""All functions that a configuration names: whether they are there, and which source files they are in."""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from configs.built_ins import ADVANTAGES, LENGTH_REWARDS, LOSSES, SAME_ANSWER, TASK_SOURCES, VERIFIERS
from configs.errors import UserError
from configs.functions import (
    BuiltIns,
    call_problem,
    is_task_function,
    load_function,
    name_problem,
    search_working_directory,
    source_digest,
)
from configs.keys import sections_of
from configs.presets import apply_preset
from configs.schema.data import SftSource, TaskSource
from configs.schema.run import RunConfig

WITH_SETTINGS = ("code",)
"""Built-in functions whose settings are arguments too; length rewards have sections."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedFunction:
    """A setting that names a function.

    Example: `NamedFunction(key="rl.loss", name="my_losses:capped", built_ins=LOSSES, num_arguments=2, args={"cap": 4})`
    """

    key: str
    name: str
    built_ins: BuiltIns
    num_arguments: int
    """It is called with, besides `args`"""
    args: Mapping[str, Any]

    @property
    def is_own(self) -> bool:
        """Not one that comes with Terse."""
        return self.name not in self.built_ins


def named_functions(config: RunConfig) -> list[NamedFunction]:
    """In the order of the schema."""
    rl, reward, scaling = config.rl, config.reward, config.scaling
    rows = [
        *_source_functions(config),
        ("reward.verifier", reward.verifier, VERIFIERS, 2, reward.verifier_args),
        ("reward.length", reward.length, LENGTH_REWARDS, 1, reward.length_args),
        ("rl.loss", rl.loss, LOSSES, 2, rl.loss_args),
        ("rl.advantage", rl.advantage, ADVANTAGES, 1, rl.advantage_args),
        ("scaling.same_answer", scaling.same_answer, SAME_ANSWER, 2, scaling.same_answer_args),
    ]
    return [
        NamedFunction(key=key, name=name, built_ins=built_ins, num_arguments=num, args=args)
        for key, name, built_ins, num, args in rows
    ]


def _source_functions(config: RunConfig) -> Iterator[tuple[str, str, BuiltIns, int, Mapping[str, Any]]]:
    for key, source in _sources(config):
        if is_task_function(source.source):
            yield f"{key}.source", source.source, TASK_SOURCES, 0, source.source_args
        if isinstance(source, TaskSource) and source.verifier:
            yield f"{key}.verifier", source.verifier, VERIFIERS, 2, source.verifier_args


def _sources(config: RunConfig) -> list[tuple[str, TaskSource | SftSource]]:
    """By key, with their presets' settings: these may name a verifier."""
    found = [pair for name in ("data.train", "data.evaluation") for pair in sections_of(config, name)]
    found += [(f"data.{name}", getattr(config.data, name)) for name in ("sft", "easy", "hard")]
    return [(key, apply_preset(source)) for key, source in found]


def naming_problems(config: RunConfig) -> Iterator[str]:
    """Names of the wrong form, and arguments where nothing takes them; imports nothing."""
    for function in named_functions(config):
        if problem := name_problem(function.key, function.name, function.built_ins):
            yield problem
        elif function.args and not function.is_own and function.name not in WITH_SETTINGS:
            yield (
                f"{function.key}_args: expected none with {function.key}={function.name}, found {dict(function.args)}"
            )
    for key, source in _sources(config):
        if source.source_args and not is_task_function(source.source):
            yield f"{key}.source_args: expected none for a source that is no function, found {source.source_args}"
        if isinstance(source, TaskSource) and source.verifier_args and not source.verifier:
            yield f"{key}.verifier_args: expected none without verifier, found {source.verifier_args}"


def with_functions(config: RunConfig) -> RunConfig:
    """The configuration with `run.functions` written: what it is to be compared by, whatever stood there.

    Looks for modules in the working directory too, and imports those that are named. Raises UserError for a function that is not
    there or does not take its settings.
    """
    functions = named_functions(config)
    own = [function for function in functions if function.is_own]
    if own:
        search_working_directory()
    for function in [function for function in functions if function.is_own or function.args]:
        loaded = load_function(function.key, function.name, function.built_ins)
        if problem := call_problem(function.key, loaded, function.num_arguments, function.args):
            raise UserError(problem)
    names = sorted({function.name for function in own})
    digests = tuple(f"{name} sha256:{source_digest(name)}" for name in names)
    return dataclasses.replace(config, run=dataclasses.replace(config.run, functions=digests))
