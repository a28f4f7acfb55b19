"""The task stream: seeded, endless, the same from any position; and the prompts that tasks become."""

import json
from collections import Counter

import numpy as np
import pytest

from configs.schema.data import TaskSource
from configs.schema.run import BudgetSection
from orchestrator.data import arithmetic
from orchestrator.data.tasks import (
    TaskStream,
    arithmetic_task,
    held_out_tasks,
    make_prompt,
    with_budget,
)
from orchestrator.tools.pretrain_tiny import make_tokenizer

BUDGET = BudgetSection(
    buckets_tokens=(30, 60), per_difficulty_tokens=20, prompt_template="{question}\nBudget: {budget_tokens}"
)
CHAIN = arithmetic.Chain(numbers=(1, 2), operations=("+",))


@pytest.fixture
def five_rows(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    path = tmp_path / "five.jsonl"
    path.write_text("".join(json.dumps({"question": f"q{n}", "answer": str(n)}) + "\n" for n in range(5)))
    return TaskSource(source=str(path))


def answers(stream: TaskStream, indices: range) -> list[str]:
    return [stream.at(index)[0].reference_answer for index in indices]


def test_each_epoch_is_another_permutation_of_all_rows(five_rows):
    stream = TaskStream([five_rows], BUDGET, seed=0)
    epochs = [answers(stream, range(first, first + 5)) for first in range(0, 30, 5)]
    assert all(sorted(epoch) == ["0", "1", "2", "3", "4"] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


@pytest.mark.parametrize("kind", ["file", "arithmetic", "finite arithmetic"])
def test_a_new_stream_goes_on_where_the_old_one_stood(kind, five_rows):
    source = {"file": five_rows, "arithmetic": TaskSource(), "finite arithmetic": TaskSource(num_tasks=7)}[kind]
    whole = [TaskStream([source], BUDGET, seed=3).at(index) for index in range(20)]
    resumed = TaskStream([source], BUDGET, seed=3)
    assert [resumed.at(index) for index in range(12, 20)] == whole[12:]
    assert whole != [TaskStream([source], BUDGET, seed=4).at(index) for index in range(20)]


def test_arithmetic_tasks_are_right_and_of_the_training_split():
    stream = TaskStream([TaskSource(difficulties=(1, 3))], BUDGET, seed=0)
    items = [stream.at(index) for index in range(300)]
    counts = Counter(task.difficulty for task, _ in items)
    assert set(counts) == {1, 3}
    assert min(counts.values()) > 110
    for task, budget_tokens in items:
        question = task.messages[-1]["content"]
        assert eval(question.removesuffix("=?")) == int(task.reference_answer)
        assert budget_tokens in (30 + 20 * task.difficulty, 60 + 20 * task.difficulty)
    assert len({task.task_id for task, _ in items}) == 300


def test_finite_arithmetic_repeats_the_same_tasks():
    stream = TaskStream([TaskSource(num_tasks=7)], BUDGET, seed=0)
    epochs = [{stream.at(index)[0].messages[-1]["content"] for index in range(first, first + 7)} for first in (0, 7)]
    assert epochs[0] == epochs[1]
    assert len(epochs[0]) == 7


def test_budgets_are_drawn_about_equally_often():
    stream = TaskStream([TaskSource(difficulties=(1,))], BUDGET, seed=0)
    counts = Counter(stream.at(index)[1] for index in range(400))
    assert set(counts) == {50, 80}
    assert min(counts.values()) > 150


def test_later_attempts_at_an_index_are_other_tasks(five_rows):
    stream = TaskStream([five_rows], BUDGET, seed=0)
    assert len({stream.at(0, attempt)[0].task_id for attempt in range(20)}) > 1
    assert stream.at(0, 3) == stream.at(0, 3)


def test_held_out_tasks_are_distinct_balanced_and_never_trained_on():
    items = held_out_tasks([TaskSource(held_out=True)], BUDGET, 200, seed=0)
    assert len({task.messages[-1]["content"] for task, _ in items}) == len({task.task_id for task, _ in items}) == 200
    assert Counter(task.difficulty for task, _ in items) == {1: 50, 2: 50, 3: 50, 4: 50}
    stream = TaskStream([TaskSource()], BUDGET, seed=0)
    trained_on = {stream.at(index)[0].messages[-1]["content"] for index in range(2000)}
    assert not trained_on & {task.messages[-1]["content"] for task, _ in items}
    assert items == held_out_tasks([TaskSource(held_out=True)], BUDGET, 200, seed=0)


def test_more_held_out_chains_than_there_are_is_an_error():
    with pytest.raises(ValueError, match=r"expected 20000 different tasks of difficulties \[1\], found 1[0-9]{3} "):
        held_out_tasks([TaskSource(held_out=True, difficulties=(1,))], BUDGET, 20000, seed=0)


def test_held_out_rows_are_distinct_and_at_most_all(five_rows):
    assert len({task.task_id for task, _ in held_out_tasks([five_rows], BUDGET, 3, seed=0)}) == 3
    assert len({task.task_id for task, _ in held_out_tasks([five_rows], BUDGET, 99, seed=0)}) == 5


def test_a_bad_row_stops_the_stream_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    path = tmp_path / "bad.jsonl"
    path.write_text('{"question": "a", "answer": "1"}\n{"question": "b", "answer": ""}\n')
    with pytest.raises(ValueError, match=r"bad\.jsonl, row 2: expected a field 'answer', found an empty one"):
        TaskStream([TaskSource(source=str(path))], BUDGET, seed=0)


def test_a_prompt_is_the_chat_with_the_budget_in_the_last_user_turn():
    tokenizer = make_tokenizer()
    prompt = make_prompt(arithmetic_task(CHAIN, 4), 50, BUDGET, tokenizer, max_prompt_tokens=40, masked_lora=True)
    assert prompt is not None
    assert tokenizer.decode(prompt.token_ids) == "<|user|>1+2=?\nBudget: 50<|end|><|assistant|>"
    assert prompt.token_ids.dtype == np.int32
    # tag, `1+2=?`, line break, `Budget: 50`, two tags
    assert len(prompt.token_ids) == 1 + 5 + 1 + 10 + 2
    assert (prompt.task_id, prompt.budget_tokens, prompt.start) == ("arithmetic/4", 50, 18)


def test_a_prompt_over_the_limit_is_none():
    task, tokenizer = arithmetic_task(CHAIN, 0), make_tokenizer()
    assert make_prompt(task, 50, BUDGET, tokenizer, max_prompt_tokens=19, masked_lora=False).start == 0
    assert make_prompt(task, 50, BUDGET, tokenizer, max_prompt_tokens=18, masked_lora=False) is None


def test_braces_in_a_question_stay_as_they_are():
    messages = ({"role": "system", "content": "{s}"}, {"role": "user", "content": r"\frac{1}{2}"})
    assert with_budget(messages, 7, BUDGET) == [messages[0], {"role": "user", "content": "\\frac{1}{2}\nBudget: 7"}]
    with pytest.raises(ValueError, match="expected a user turn"):
        with_budget((messages[0],), 7, BUDGET)
