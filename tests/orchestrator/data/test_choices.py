"""Rows with choices or labels become tasks whose answer is one of few."""

import json

import pytest

from configs.schema.data import TaskSource
from orchestrator.data.choices import lettered, read_choices, read_label
from orchestrator.data.tasks import load_tasks

LIST = TaskSource(source="x.jsonl", choice_fields=("choices",))
COLOURS = ["red", "blue", "green"]


@pytest.mark.parametrize("answer", [1, "1", "B", "blue"])
def test_the_right_choice_is_given_by_place_letter_or_text(answer):
    assert read_choices({"choices": COLOURS, "answer": answer}, LIST, "row 1", 0) == (COLOURS, "B")


def test_a_number_that_is_itself_a_choice_is_meant_as_text_when_it_is_text():
    row = {"choices": ["3", "0", "1"]}
    assert read_choices({**row, "answer": "1"}, LIST, "row 1", 0)[1] == "C"
    assert read_choices({**row, "answer": 1}, LIST, "row 1", 0)[1] == "B"


def test_choices_of_separate_fields_come_in_a_seeded_order_with_the_first_field_right():
    source = TaskSource(source="x.jsonl", choice_fields=("right", "wrong 1", "wrong 2"))
    row = {"right": "four", "wrong 1": "three", "wrong 2": "five"}
    seen = set()
    for index in range(30):
        texts, letter = read_choices(row, source, "row 1", index)
        assert sorted(texts) == ["five", "four", "three"]
        assert texts["ABC".index(letter)] == "four"
        assert (texts, letter) == read_choices(row, source, "row 1", index)
        seen.add(letter)
    assert seen == {"A", "B", "C"}


def test_choices_are_listed_by_letter():
    assert lettered(COLOURS) == "A. red\nB. blue\nC. green"


@pytest.mark.parametrize("answer", [3, "D", "pink"])
def test_an_answer_that_is_no_choice_is_named_with_its_row(answer):
    with pytest.raises(ValueError, match=r"row 7: field 'answer': expected a choice's place from 0 to 2"):
        read_choices({"choices": COLOURS, "answer": answer}, LIST, "row 7", 6)


def test_a_field_that_is_no_list_of_choices_is_named():
    with pytest.raises(ValueError, match="row 7: expected a list of choices in field 'choices', found 'red'"):
        read_choices({"choices": "red", "answer": 0}, LIST, "row 7", 6)


@pytest.mark.parametrize(
    ("value", "label"),
    [("Yes", "yes"), (" no ", "no"), (True, "yes"), (False, "no"), ({"Yes": 0, "No": 1}, "no"), ({"Yes": 1}, "yes")],
)
def test_a_label_is_read_from_a_word_a_truth_value_or_scores(value, label):
    source = TaskSource(source="x.jsonl", labels=("yes", "no"))
    assert read_label({"answer": value}, source, "row 1") == label


@pytest.mark.parametrize("value", ["maybe", 1, None, {}])
def test_what_is_no_label_is_named_with_its_row(value):
    source = TaskSource(source="x.jsonl", labels=("yes", "no"))
    with pytest.raises(ValueError, match="row 3: field 'answer': expected one of yes, no, found "):
        read_label({"answer": value}, source, "row 3")


def test_rows_become_tasks_with_their_labels(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    choice = tmp_path / "mmlu.jsonl"
    choice.write_text(json.dumps({"question": "Which?", "choices": COLOURS, "answer": 2}) + "\n")
    (task,) = load_tasks(TaskSource(source=str(choice), preset="mmlu"))
    assert task.messages[0]["content"] == "Which?\n\nA. red\nB. blue\nC. green"
    assert (task.reference_answer, task.labels) == ("C", ("A", "B", "C"))
    nested = tmp_path / "strategyqa.json"
    examples = [{"input": "Is it?", "target_scores": {"Yes": 0, "No": 1}}]
    nested.write_text(json.dumps({"name": "strategyqa", "examples": examples}))
    (task,) = load_tasks(TaskSource(source=str(nested), preset="strategyqa"))
    assert (task.messages[0]["content"], task.reference_answer, task.labels) == ("Is it?", "no", ("yes", "no"))
