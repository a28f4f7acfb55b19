"""Chat templates that do not end, and those that are none: given up in one line."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from deploy.device import templates
from deploy.device.chat import Chat
from deploy.device.templates import count_steps, make_environment
from deploy.manifest import ExportError

MESSAGES = [{"role": "user", "content": "1+1=?"}]


@pytest.fixture
def tokenizer_dir(tmp_path, plain_export) -> Path:
    return shutil.copytree(plain_export / "tokenizer", tmp_path / "tokenizer")


def refusal(directory: Path) -> str:
    with pytest.raises(ExportError) as caught:
        Chat(directory).prompt(MESSAGES)
    assert str(caught.value).startswith(str(directory))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{{ messages }}{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}{% for b in range(99999)|list %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% for i in range(9) %}{{ f(n - 1) if n else 1 }}{% endfor %}{% endmacro %}{{ f(50) }}",
    ],
)
def test_loops_in_loops_are_given_up(tokenizer_dir, monkeypatch, template):
    monkeypatch.setattr(templates, "MAX_STEPS", 100_000)
    (tokenizer_dir / "chat_template.jinja").write_text(template)
    assert "it does not end within 100000 steps" in refusal(tokenizer_dir)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{{ 9 ** 9 ** 9 ** 9 }}", "a power: expected at most"),
        ("{{ 2.5 ** 1000000000 }}", "a power: expected at most"),
        ("{{ messages[0].content * 10 ** 9 }}", "a product: expected at most"),
        ("{{ 'a' * 1000000000000 }}", "a product: expected at most"),
        ("{{ [1] * 1000000000000 }}", "a product: expected at most"),
        ("{{ '%99999999999d' % 1 }}", "a format: expected fields"),
        ("{{ range(1000000) }}", "Range too big"),
        ("{{ messages.append(1) }}", "SecurityError"),
        ("{{ raise_exception('no\nsuch role') }}", "TemplateError: no such role"),
        ("{{ messages[7].content.x }}", "UndefinedError"),
        ("{% for %}", "expected a chat template, found text that is none"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
    ],
)
def test_templates_that_cannot_be_rendered_are_refused_in_one_line(tokenizer_dir, template, message):
    (tokenizer_dir / "chat_template.jinja").write_text(template)
    assert message in refusal(tokenizer_dir)


def test_steps_that_take_long_are_given_up_at_the_deadline(monkeypatch):
    # A deadline that is over before the first step.
    monkeypatch.setattr(templates, "MAX_RENDERING_S", -1.0)
    with pytest.raises(RuntimeError, match="it does not end within -1 s"):
        count_steps(lambda: 3)


def test_ordinary_arithmetic_and_text_pass():
    source = "{{ 3 * 4 }} {{ 7 % 2 }} {{ '%05.1f' % 2.5 }} {{ 'ab' * 2 }} {{ 2 ** 10 }} {{ [1, 2] * 2 }} {{ 2 ** -1 }}"
    rendered = count_steps(make_environment().from_string(source).render)
    assert rendered == "12 1 002.5 abab 1024 [1, 2, 1, 2] 0.5"


def test_counting_leaves_another_tracer_where_it_was():
    def tracer(frame, event, argument):
        return None

    previous = sys.gettrace()
    try:
        sys.settrace(tracer)
        assert count_steps(lambda: 3) == 3
        with pytest.raises(KeyError):
            count_steps(lambda: {}[1])
        assert sys.gettrace() is tracer
    finally:
        sys.settrace(previous)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ([], "expected tokenizer.json and tokenizer_config.json"),
        ({"chat_template": 3}, "expected a chat template, found none"),
        ({"chat_template": "x", "eos_token": 5}, "eos_token: expected text, found 5"),
        ({"chat_template": "x", "bos_token": {"id": 5}}, "bos_token: expected text, found {'id': 5}"),
    ],
)
def test_a_tokenizer_config_of_another_kind_is_refused(tokenizer_dir, config, message):
    (tokenizer_dir / "chat_template.jinja").unlink()
    (tokenizer_dir / "tokenizer_config.json").write_text(json.dumps(config))
    assert message in refusal(tokenizer_dir)
