"""What is wrong with the settings of data sources; part of `configs.checks`."""

import re
import string
from collections.abc import Iterator
from pathlib import Path

from configs.checks.rules import expected
from configs.functions import is_task_function
from configs.keys import sections_of
from configs.models import DATA_FORMATS, data_format, is_local_data
from configs.schema.data import ARITHMETIC, SftSource, TaskSource
from configs.schema.run import RunConfig


def data_problems(config: RunConfig) -> Iterator[str]:
    """Of every source, and of those that must differ."""
    yield from _mixture_problems(config, "data.train")
    yield from _mixture_problems(config, "data.evaluation")
    for name in ("easy", "hard"):
        yield from _task_source_problems(f"data.{name}", config.resolved(getattr(config.data, name)))
    yield from _split_problems(config)
    yield from _sft_source_problems("data.sft", config.data.sft)


def field_names(template: str) -> list[str]:
    """Fields of a `str.format` template. Raises ValueError when it is malformed or has fields without a name."""
    names = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    for name in names:
        if not all(part.isidentifier() for part in name.removesuffix("?").split(".")):
            raise ValueError(
                f"fields must be plain names, names with dots for nested ones, names that end in ? for what may be missing, found {{{name}}}"
            )
    return names


def _mixture_problems(config: RunConfig, name: str) -> Iterator[str]:
    sections = sections_of(config, name)
    for key, source in sections:
        yield from _task_source_problems(key, config.resolved(source))
    labels = [source.label for _, source in sections]
    if len(set(labels)) < len(labels):
        yield expected(f"{name}.name", "a name of its own for each source", labels)


def _task_source_problems(prefix: str, source: TaskSource) -> Iterator[str]:
    yield from _source_problems(prefix, source)
    yield from _template_problems(f"{prefix}.question_template", source.question_template)
    if not source.answer_field.strip() and source.verifier in ("math", "label"):
        yield expected(
            f"{prefix}.answer_field", "the name of a row field (or a verifier of your own)", source.answer_field
        )
    if source.answer_pattern:
        try:
            num_groups = re.compile(source.answer_pattern).groups
        except re.error as error:
            yield f"{prefix}.answer_pattern: expected a regular expression, found {source.answer_pattern!r} ({error})"
        else:
            if num_groups != 1:
                yield expected(
                    f"{prefix}.answer_pattern", "exactly one group", f"{source.answer_pattern} ({num_groups})"
                )
    if source.prompt_template:
        yield from naming_template_problems(f"{prefix}.prompt_template", source.prompt_template)
    if source.name and not re.fullmatch(r"[A-Za-z0-9_-]+", source.name):
        yield expected(f"{prefix}.name", "letters, digits, '_' and '-'", source.name)
    if source.labels and source.choice_fields:
        yield expected(f"{prefix}.labels", "none with choice_fields (letters are the labels)", list(source.labels))
    if len(source.labels) == 1:
        yield expected(f"{prefix}.labels", "at least two words", list(source.labels))


def _sft_source_problems(prefix: str, source: SftSource) -> Iterator[str]:
    yield from _source_problems(prefix, source)
    if source.layout == "prompt_completion":
        yield from _template_problems(f"{prefix}.prompt_template", source.prompt_template)
        yield from _template_problems(f"{prefix}.completion_template", source.completion_template)
    elif not source.messages_field.strip():
        yield expected(f"{prefix}.messages_field", "the name of a row field", source.messages_field)


def _source_problems(prefix: str, source: TaskSource | SftSource) -> Iterator[str]:
    name = source.source
    if not name.strip():
        yield expected(f"{prefix}.source", f"{ARITHMETIC}, a local file or a dataset name", name)
    elif name == ARITHMETIC:
        if source.preset != "none":
            yield expected(f"{prefix}.preset", f"none for source {ARITHMETIC}", source.preset)
    elif not is_task_function(name) and is_local_data(name) and not any(sign in name for sign in "*?["):
        path = Path(name).expanduser()
        if not path.exists():
            yield f"{prefix}.source: expected a local file or directory, found no file {name}"
        elif path.is_file() and not data_format(name):
            yield expected(f"{prefix}.source", f"a file that ends in {', '.join(DATA_FORMATS)}", name)
    if not source.split.strip():
        yield expected(f"{prefix}.split", "a split such as train or test[:100]", source.split)


def _template_problems(key: str, template: str) -> Iterator[str]:
    try:
        names = field_names(template)
    except ValueError as error:
        yield f"{key}: expected text with row fields in braces, found {template!r} ({error})"
    else:
        if not names:
            yield expected(key, "at least one row field in braces", template)


def naming_template_problems(key: str, template: str) -> Iterator[str]:
    words = "{question} and {budget_tokens}, and no other field"
    try:
        names = set(field_names(template))
        template.format(question="1+1=?", budget_tokens=1)
    except (ValueError, LookupError) as error:
        yield f"{key}: expected {words}, found {template!r} ({error})"
    else:
        if names != {"question", "budget_tokens"}:
            yield expected(key, words, template)


def _split_problems(config: RunConfig) -> Iterator[str]:
    for _, train in sections_of(config, "data.train"):
        for key, held_out in sections_of(config, "data.evaluation"):
            yield from _same_split_problems(train, key, held_out)


def _same_split_problems(train: TaskSource, key: str, held_out: TaskSource) -> Iterator[str]:
    is_other_split = train.source == ARITHMETIC and train.held_out != held_out.held_out
    same = all(getattr(train, name) == getattr(held_out, name) for name in ("source", "source_args", "subset", "split"))
    if same and not is_other_split:
        hint = (
            "held_out: true" if train.source == ARITHMETIC else "another file or split, or slices such as train[90%:]"
        )
        yield f"{key}: expected other tasks than data.train's ({hint}), found the same source and split"
