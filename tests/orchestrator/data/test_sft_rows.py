"""SFT rows: the loss mask covers the assistant's tokens and nothing else; order and position are exact."""

import dataclasses
import json

import numpy as np
import pytest

from configs.errors import UserError
from configs.load import load_config
from configs.schema.data import DataSection, SftSource
from orchestrator.data.arithmetic import Chain
from orchestrator.data.sft_rows import RowCheck, SftRows, make_row
from orchestrator.tools.pretrain_tiny import make_tokenizer

TOKENIZER = make_tokenizer()
END = (TOKENIZER.eos_token_id,)
CONFIG = load_config("quickstart")


def with_sft(sft: SftSource, max_length_tokens: int = 384):
    model = dataclasses.replace(CONFIG.model, max_length_tokens=max_length_tokens)
    return dataclasses.replace(CONFIG, data=DataSection(sft=sft), model=model)


def write_rows(tmp_path, rows: list[dict]) -> SftSource:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return SftSource(source=str(path))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def turns(*texts: str) -> list[dict[str, str]]:
    """User and assistant by turns."""
    return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]


def test_a_single_turn_by_hand():
    row = make_row(turns("7", "89"), TOKENIZER, END, masked_lora=False)
    assert TOKENIZER.convert_ids_to_tokens(row.token_ids.tolist()) == [
        *("<|user|>", "7", "<|end|>", "<|assistant|>", "8", "9", "<|end|>"),
    ]
    assert row.loss_mask.tolist() == [False] * 4 + [True] * 3
    assert row.token_ids.dtype == np.int32
    assert (row.start, row.advantage, row.behaviour_logprobs.tolist()) == (0, 0.0, [0.0] * 7)


def test_every_assistant_turn_is_trained_on_with_its_end_token():
    messages = [{"role": "system", "content": "s"}, *turns("a", "b", "cd", "e")]
    row = make_row(messages, TOKENIZER, END, masked_lora=False)
    trained = [token for token, is_trained in zip(row.token_ids.tolist(), row.loss_mask, strict=True) if is_trained]
    assert TOKENIZER.convert_ids_to_tokens(trained) == ["b", "<|end|>", "e", "<|end|>"]
    assert TOKENIZER.decode(row.token_ids) == TOKENIZER.apply_chat_template(messages, tokenize=False)


def test_the_adapter_starts_at_the_token_before_the_first_turn_that_is_trained_on():
    assert make_row(turns("7", "89"), TOKENIZER, END, masked_lora=True).start == 3
    row = make_row(turns("a", "b", "cd", "e"), TOKENIZER, END, masked_lora=True)
    assert (row.start, int(row.loss_mask.argmax())) == (3, 4)


def with_template(template: str):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def test_what_follows_the_end_token_is_not_trained_on():
    tokenizer = with_template(
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    row = make_row(turns("a", "b", "c", "d"), tokenizer, END, masked_lora=False)
    text = "<|user|>a<|end|>\n<|assistant|>b<|end|>\n<|user|>c<|end|>\n<|assistant|>d<|end|>"
    assert tokenizer.decode(row.token_ids) == text
    # user turn 4 + assistant tag; b and end; line break, user turn 4 + tag; d and end
    assert row.loss_mask.tolist() == [False] * 5 + [True] * 2 + [False] * 6 + [True] * 2


FORGETS_THOUGHTS = (
    "{% for m in messages %}<|{{ m.role }}|>{% if loop.last or m.role == 'user' %}{{ m.content }}"
    "{% else %}{{ m.content.split('</think>')[-1] }}{% endif %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""As Qwen3's."""


def test_a_template_that_forgets_earlier_thoughts_leaves_the_last_turn_to_train_on():
    messages = turns("a", "<think>b</think>c", "d", "<think>e</think>f")
    tokenizer = with_template(FORGETS_THOUGHTS)
    row = make_row(messages, tokenizer, END, masked_lora=True)
    before = "<|user|>a<|end|><|assistant|>c<|end|><|user|>d<|end|><|assistant|>"
    assert tokenizer.decode(row.token_ids) == before + "<think>e</think>f<|end|>"
    assert tokenizer.decode(row.token_ids[row.loss_mask]) == "<think>e</think>f<|end|>"
    assert row.start == int(row.loss_mask.argmax()) - 1
    # Without thoughts nothing is forgotten, and every turn counts.
    row = make_row(turns("a", "b", "c", "d"), tokenizer, END, masked_lora=True)
    assert tokenizer.decode(row.token_ids[row.loss_mask]) == "b<|end|>d<|end|>"


def test_a_template_that_rewrites_the_prompt_is_refused_with_the_place_that_differs():
    tokenizer = with_template(
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>/think{% endif %}"
    )
    words = r"at turn 2 it changes what stands before it \(.*assistant\|>/think' became …'.*assistant\|>b<\|end\|>'\)"
    with pytest.raises(ValueError, match=words):
        make_row(turns("a", "b"), tokenizer, END, masked_lora=False)


def test_all_rows_are_looked_at_before_training_and_the_first_that_cannot_be_used_are_named(tmp_path):
    good = {"messages": turns("a", "b")}
    rows = [
        good,
        {"messages": []},
        good,
        {"messages": [{"role": "tool", "content": "x"}]},
        good,
        {"messages": turns("a")},
    ]
    rows += [{"messages": turns("a")}]
    source = dataclasses.replace(write_rows(tmp_path, rows), layout="messages")
    with pytest.raises(UserError, match=r"^data\.sft: 4 of 7 rows cannot be trained on: ") as caught:
        SftRows(with_sft(source), TOKENIZER).check()
    assert [f"rows.jsonl, row {n}" in str(caught.value) for n in (1, 2, 4, 6, 7)] == [False, True, True, True, False]
    check = RowCheck(SftRows(with_sft(source), TOKENIZER))
    with pytest.raises(UserError, match="4 of 7"):
        check.wait()
    RowCheck(SftRows(with_sft(write_rows(tmp_path, [good | {"prompt": "p", "completion": "c"}])), TOKENIZER)).wait()
    SftRows(with_sft(SftSource()), TOKENIZER).check()


def test_the_look_renders_each_kind_of_conversation_once(tmp_path):
    no_system = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('system role is not supported') }}{% endif %}"
        "<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    rows = [{"messages": turns("a", "b")}] * 3 + [{"messages": [{"role": "system", "content": "s"}, *turns("a", "b")]}]
    source = dataclasses.replace(write_rows(tmp_path, rows), layout="messages")
    with pytest.raises(UserError, match=r"1 of 4 rows cannot .*rows\.jsonl, row 4: system role is not supported"):
        SftRows(with_sft(source), with_template(no_system)).check()


def test_a_turn_without_end_token_is_refused():
    tokenizer = with_template("{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}")
    tokenizer.chat_template += "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    with pytest.raises(ValueError, match=r"expected one of the end tokens \['<\|end\|>'\]"):
        make_row(turns("a", "b"), tokenizer, END, masked_lora=False)


def test_rows_from_any_position_are_those_of_an_uninterrupted_run(tmp_path):
    rows = [{"prompt": f"p{n}", "completion": f"c{n}"} for n in range(5)]
    for source in (SftSource(), SftSource(num_rows=4), write_rows(tmp_path, rows)):
        whole = [SftRows(with_sft(source), TOKENIZER).at(index).token_ids.tolist() for index in range(12)]
        resumed = SftRows(with_sft(source), TOKENIZER)
        assert [resumed.at(index).token_ids.tolist() for index in range(7, 12)] == whole[7:]


def test_an_epoch_holds_every_row_once(tmp_path):
    rows = SftRows(with_sft(write_rows(tmp_path, [{"prompt": str(n), "completion": "x"} for n in range(5)])), TOKENIZER)
    for first in (0, 5):
        prompts = [TOKENIZER.decode(rows.at(index).token_ids)[len("<|user|>")] for index in range(first, first + 5)]
        assert sorted(prompts) == ["0", "1", "2", "3", "4"]


def test_rows_over_the_limit_are_dropped_counted_and_replaced(tmp_path):
    source = write_rows(tmp_path, [{"prompt": "p", "completion": "x" * length} for length in (3, 60, 3)])
    rows = SftRows(with_sft(source, max_length_tokens=20), TOKENIZER)
    lengths = [len(rows.at(index).token_ids) for index in range(9)]
    assert lengths == [4 + 3 + 1] * 9
    assert rows.num_dropped == 1
    too_short = SftRows(with_sft(source, max_length_tokens=5), TOKENIZER)
    with pytest.raises(ValueError, match=r"expected rows of at most model\.max_length_tokens 5 tokens"):
        too_short.at(0)


def test_a_missing_field_names_file_row_and_field(tmp_path):
    source = write_rows(tmp_path, [{"prompt": "p", "completion": None, "level": 1}])
    with pytest.raises(
        ValueError, match=r"rows\.jsonl, row 1: expected a field 'completion', found none; fields there"
    ):
        SftRows(with_sft(source), TOKENIZER).at(0)


def test_arithmetic_rows_are_training_chains_with_right_answers_and_budgets_that_say_nothing():
    rows = SftRows(with_sft(SftSource()), TOKENIZER)
    lengths, budgets = [], []
    for index in range(200):
        row = rows.at(index)
        text = TOKENIZER.decode(row.token_ids)
        user, _, completion = text.partition("<|end|><|assistant|>")
        expression, _, budget = user.removeprefix("<|user|>").partition("=?\nBudget: ")
        numbers = tuple(map(int, expression.replace("-", "+").split("+")))
        assert not Chain(numbers=numbers, operations=tuple(c for c in expression if c in "+-")).is_held_out
        answer = completion.partition("</think>")[2].removesuffix("<|end|>")
        assert int(answer) == eval(expression)
        assert TOKENIZER.decode(row.token_ids[row.loss_mask]) == completion
        lengths.append(int(row.loss_mask.sum()))
        budgets.append(int(budget))
    assert min(budgets) < 40
    assert max(budgets) > 340
    assert abs(np.corrcoef(lengths, budgets)[0, 1]) < 0.2
