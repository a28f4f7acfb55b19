"""Which source each prompt comes from: shares, order, and that an index is all it takes."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.schema.data import TaskSource
from configs.schema.run import BudgetSection
from orchestrator.data.mixture import BLOCK, Schedule, apportion
from orchestrator.data.tasks import TaskStream, held_out_tasks, name_budget

BUDGET = BudgetSection(buckets_tokens=(100,), prompt_template="{question} ({budget_tokens})")
SUMS = TaskSource(name="sums", weight=3.0, difficulties=(2, 3))
EASY = TaskSource(
    name="easy", weight=1.0, difficulties=(1,), buckets_tokens=(7,), prompt_template="{budget_tokens}: {question}"
)


@pytest.mark.parametrize(
    ("weights", "total", "counts"),
    [
        ([2, 1, 1], 10, [5, 3, 2]),
        ([1, 1], 1, [1, 0]),
        ([1, 1000], 10, [1, 9]),
        ([0.5], 7, [7]),
        ([1, 2], 0, [0, 0]),
    ],
)
def test_apportion_by_hand(weights, total, counts):
    assert apportion(weights, total) == counts


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=8), st.integers(0, 500))
def test_apportion_adds_up_and_leaves_none_out(weights, total):
    counts = apportion(weights, total)
    assert sum(counts) == total
    assert min(counts) >= (total >= len(weights))


def test_shares_are_exact_over_a_block_and_each_source_goes_on_where_it_was():
    schedule = Schedule([3.0, 1.0], seed=0)
    found = [schedule.at(index) for index in range(3 * BLOCK)]
    assert Counter(source for source, _ in found[BLOCK : 2 * BLOCK]) == {0: 750, 1: 250}
    for source, count in ((0, 2250), (1, 750)):
        assert sorted(place for number, place in found if number == source) == list(range(count))
    assert [source for source, _ in found[:BLOCK]] != [source for source, _ in found[BLOCK : 2 * BLOCK]]


def test_an_index_alone_says_where_it_comes_from():
    schedule = Schedule([3.0, 1.0], seed=0)
    later = [schedule.at(index) for index in (5000, 17, 2500)]
    assert [Schedule([3.0, 1.0], seed=0).at(index) for index in (5000, 17, 2500)] == later
    assert [Schedule([3.0, 1.0], seed=1).at(index) for index in range(50)] != [schedule.at(i) for i in range(50)]


def test_one_source_alone_has_every_index():
    assert [Schedule([0.3], seed=0).at(index) for index in (0, 5, 12345)] == [(0, 0), (0, 5), (0, 12345)]


def test_a_mixture_draws_by_weight_with_the_sources_own_budgets_and_template():
    stream = TaskStream([SUMS, EASY], BUDGET, seed=0)
    pairs = [stream.at(index) for index in range(400)]
    counts = Counter(task.source for task, _ in pairs)
    assert 260 <= counts["sums"] <= 340
    assert {(task.source, budget) for task, budget in pairs} == {("sums", 100), ("easy", 7)}
    assert all(task.difficulty == 1 for task, _ in pairs if task.source == "easy")
    assert len({task.task_id for task, _ in pairs}) == 400
    easy = next(task for task, _ in pairs if task.source == "easy")
    assert name_budget(easy, 7, BUDGET)[0]["content"] == f"7: {easy.messages[0]['content']}"
    sums = next(task for task, _ in pairs if task.source == "sums")
    assert name_budget(sums, 100, BUDGET)[0]["content"] == f"{sums.messages[0]['content']} (100)"


def test_a_resumed_mixture_goes_on_with_what_an_uninterrupted_one_would_have_had():
    whole = [TaskStream([SUMS, EASY], BUDGET, seed=3).at(index) for index in range(30)]
    resumed = TaskStream([SUMS, EASY], BUDGET, seed=3)
    assert [resumed.at(index) for index in range(17, 30)] == whole[17:]
    other_attempt = resumed.at(5, attempt=1)
    assert other_attempt[0].source == whole[5][0].source
    assert other_attempt != whole[5]


def test_held_out_tasks_of_a_mixture_are_counted_by_weight():
    sources = [
        TaskSource(name="sums", weight=3.0, held_out=True),
        TaskSource(name="easy", difficulties=(1,), held_out=True),
    ]
    tasks = [task for task, _ in held_out_tasks(sources, BUDGET, 40, seed=0)]
    assert Counter(task.source for task in tasks) == {"sums": 30, "easy": 10}
    assert len({task.task_id for task in tasks}) == 40
    alone = [task.messages for task, _ in held_out_tasks(sources[:1], BUDGET, 40, seed=0)]
    assert alone == [task.messages for task, _ in held_out_tasks(sources[:1], BUDGET, 40, seed=0)]


@pytest.mark.parametrize(
    ("source", "label"),
    [
        (TaskSource(source="data/mine.jsonl.gz"), "mine"),
        (TaskSource(source="openai/gsm8k"), "gsm8k"),
        (TaskSource(source="my.module:rows"), "rows"),
        (TaskSource(source="/data/"), "data"),
        (TaskSource(source="x/*.jsonl"), "tasks"),
        (TaskSource(source="x.jsonl", name="own"), "own"),
        (TaskSource(), "arithmetic"),
    ],
)
def test_labels(source, label):
    assert source.label == label
