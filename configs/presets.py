"""Where well-known datasets keep question, answer and tests; settings that were changed from their defaults win."""

import dataclasses
from typing import Any, TypeVar

from configs.built_ins import TASK_SOURCES
from configs.schema.data import SftSource, TaskSource

AnySource = TypeVar("AnySource", TaskSource, SftSource)

_BLOCK = "Put the whole program in one ```python block."
_WITH_BLOCK = "{question}\n\n" + _BLOCK
_WITH_CHOICES = "{question}\n\n{choices}"

TASK_PRESETS: dict[str, dict[str, Any]] = {
    "none": {},
    "gsm8k": {"answer_pattern": r"####[ \t]*([^\n]*\S)"},
    "math500": {"question_template": "{problem}"},
    "svamp": {"question_template": "{Body} {Question}", "answer_field": "Answer"},
    "addsub": {"question_template": "{input}", "answer_field": "target"},
    "aime": {"question_template": "{problem}"},
    "amc": {},
    "mmlu": {"question_template": _WITH_CHOICES, "choice_fields": ("choices",)},
    "gpqa": {
        "question_template": "{Question}\n\n{choices}",
        "choice_fields": ("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3"),
    },
    "code": {"question_template": _WITH_BLOCK, "answer_field": "", "verifier": "code", "verifier_fields": ("tests",)},
    "humaneval": {
        "question_template": "Complete this Python function.\n\n```python\n{prompt}\n```\n\n" + _BLOCK,
        "answer_field": "",
        "verifier": "code",
        "verifier_fields": ("test", "entry_point", "prompt"),
    },
    "mbpp": {
        "question_template": "{prompt}\nYour code should pass these tests:\n\n{test_list}\n\n" + _BLOCK,
        "answer_field": "",
        "verifier": "code",
        "verifier_fields": ("test_list", "test_imports?"),
    },
    "livecodebench": {
        "question_template": "{question_content}\n\n{starter_code?}\n\n" + _BLOCK,
        "answer_field": "",
        "verifier": "code",
        "verifier_fields": ("public_test_cases?", "private_test_cases?", "metadata?"),
    },
    "strategyqa": {
        "rows_field": "examples",
        "question_template": "{input}",
        "labels": ("yes", "no"),
        "answer_field": "target_scores",
    },
}
SFT_PRESETS: dict[str, dict[str, Any]] = {
    "none": {},
    # `solution … #### n`: the answer's mark is one that scoring knows, so it stays.
    "gsm8k": {"prompt_template": "{question}", "completion_template": "{answer}"},
    "openthoughts3": {"layout": "messages", "messages_field": "conversations"},
    "mixture_of_thoughts": {"layout": "messages", "messages_field": "messages"},
}


def apply_preset(source: AnySource) -> AnySource:
    """The source with its preset's settings wherever the config left the default."""
    presets = TASK_PRESETS if isinstance(source, TaskSource) else SFT_PRESETS
    # A built-in function's rows have a preset of its name.
    name = source.source if source.preset == "none" and source.source in TASK_SOURCES else source.preset
    preset = presets.get(name, {})
    plain = type(source)()
    changes = {name: value for name, value in preset.items() if getattr(source, name) == getattr(plain, name)}
    return dataclasses.replace(source, **changes)
