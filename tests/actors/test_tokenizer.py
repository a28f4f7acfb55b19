"""Variables of a chat template, written into it."""

from dataclasses import replace

import pytest

from actors.tokenizer import load_tokenizer, with_arguments
from configs.schema.run import ModelSection
from deploy.device.templates import make_environment

TEMPLATE = (
    "{%- macro close() %}{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>{% endif %}"
    "{%- endmacro %}{% for m in messages %}{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}>{{ close() }}{{ style }}{% endif %}"
)
TURNS = [{"role": "user", "content": "hi"}]


def render(template: str, **values) -> str:
    return make_environment().from_string(template).render(messages=TURNS, add_generation_prompt=True, **values)


def test_variables_hold_whatever_a_template_is_rendered_with():
    template = with_arguments(TEMPLATE, {"enable_thinking": False, "style": 'say "so"'})
    assert render(template) == 'hi><think>\n\n</think>say "so"'
    assert render(template, enable_thinking=True, style="x") == render(template)
    assert render(TEMPLATE, enable_thinking=True) == "hi>"
    assert with_arguments(template, {"enable_thinking": False}) == template


def test_transformers_and_the_device_render_the_same(tiny_model_dir):
    tokenizer = load_tokenizer(str(tiny_model_dir), ModelSection())
    tokenizer.chat_template = with_arguments(TEMPLATE, {"enable_thinking": False, "style": 3})
    text = tokenizer.apply_chat_template(TURNS, tokenize=False, add_generation_prompt=True)
    assert text == render(tokenizer.chat_template) == "hi><think>\n\n</think>3"


def test_several_templates_by_name_all_get_them():
    found = with_arguments({"default": TEMPLATE, "tools": TEMPLATE}, {"style": None})
    assert found == dict.fromkeys(("default", "tools"), "{%- set style = none %}" + TEMPLATE)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            {"enable_thinkin": False},
            "model.chat_template_args.enable_thinkin: expected a variable of the model's chat template",
        ),
        (
            {"style": float("nan")},
            "model.chat_template_args.style: expected text, a number or a truth value, found nan",
        ),
    ],
)
def test_what_a_template_does_not_know_is_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        with_arguments(TEMPLATE, arguments)


def test_a_tokenizer_is_loaded_with_them(tiny_model_dir):
    plain = load_tokenizer(str(tiny_model_dir), ModelSection())
    name = "messages"
    with pytest.raises(ValueError, match=r"model\.chat_template_args\.nothing"):
        load_tokenizer(str(tiny_model_dir), replace(ModelSection(), chat_template_args={"nothing": 1}))
    loaded = load_tokenizer(
        str(tiny_model_dir), replace(ModelSection(), chat_template_args={"add_generation_prompt": True})
    )
    assert name in plain.chat_template
    assert loaded.chat_template == "{%- set add_generation_prompt = true %}" + plain.chat_template
