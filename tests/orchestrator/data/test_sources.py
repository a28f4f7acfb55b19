"""Rows of local files: fields by preset or by name, and errors that name file, row and field."""

import json
from pathlib import Path

import pytest

from configs.errors import UserError
from configs.presets import apply_preset
from configs.schema.data import SftSource, TaskSource
from orchestrator.data.sources import load_rows, read_answer, read_conversation, render
from orchestrator.data.tasks import read_tasks

SHARED_DATA = Path(__file__).parents[4] / "shared" / "data"
needs_shared_data = pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="benchmark files are not here")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_json_lines_json_and_parquet_give_the_same_rows(tmp_path):
    rows = [{"question": "1+1", "answer": "2"}, {"question": "2+2", "answer": "4"}]
    lines = write_rows(tmp_path / "a.jsonl", rows)
    whole = tmp_path / "b.json"
    whole.write_text(json.dumps(rows))
    import datasets

    table = tmp_path / "c.parquet"
    datasets.Dataset.from_list(rows).to_parquet(str(table))
    for path in (lines, whole, table):
        assert list(load_rows(TaskSource(source=str(path)))) == rows


def test_only_the_first_rows_or_a_slice_are_used_when_asked_for(tmp_path):
    path = write_rows(tmp_path / "a.jsonl", [{"question": str(n), "answer": "1"} for n in range(5)])
    assert [row["question"] for row in load_rows(TaskSource(source=str(path), num_tasks=2))] == ["0", "1"]
    assert [row["question"] for row in load_rows(TaskSource(source=str(path), split="test[3:]"))] == ["3", "4"]


def test_unreadable_files_are_named_with_the_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"question": "1"}\n{"question" "2"}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl: line 2: expected a JSON object, found"):
        load_rows(TaskSource(source=str(path)))
    path.write_text("")
    with pytest.raises(ValueError, match=r"a\.jsonl: expected rows, found an empty file"):
        load_rows(TaskSource(source=str(path)))
    with pytest.raises(ValueError, match=r"found no file .*b\.jsonl"):
        load_rows(TaskSource(source=str(tmp_path / "b.jsonl")))


def test_a_hub_name_that_cannot_be_reached_says_how_to_give_a_file(monkeypatch):
    import datasets

    def unreachable(*_args, **_kwargs):
        raise ConnectionError("Couldn't reach 'org/name' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(ValueError, match=r"'org/name'.*Couldn't reach.*To use a local file"):
        load_rows(TaskSource(source="org/name"))


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ({"question": None, "answer": "2", "level": 3}, "found none; fields there: answer, level"),
        ({"question": "  ", "answer": "2"}, "found an empty one; fields there: question, answer"),
        ({"answer": "2"}, "found none; fields there: answer"),
    ],
)
def test_a_missing_or_empty_field_names_row_and_field(row, found):
    with pytest.raises(ValueError, match="expected a field 'question', " + found) as caught:
        render("{question}", row, "a.jsonl, row 7")
    assert str(caught.value).startswith("a.jsonl, row 7: ")


def test_presets_fill_what_the_config_left_alone():
    svamp = apply_preset(TaskSource(preset="svamp", source="x.json"))
    row = {"Body": "Two birds sit.", "Question": "How many?", "Answer": 2.0}
    assert render(svamp.question_template, row, "x") == "Two birds sit. How many?"
    assert read_answer(row, svamp, "x") == "2"
    assert apply_preset(TaskSource(preset="svamp", answer_field="mine")).answer_field == "mine"


def test_the_last_match_of_the_answer_pattern_counts():
    gsm8k = apply_preset(TaskSource(preset="gsm8k"))
    assert read_answer({"answer": "#### 3 no\n#### -1,234.5"}, gsm8k, "x") == "-1,234.5"
    with pytest.raises(ValueError, match="row 2: expected a match of answer_pattern"):
        read_answer({"answer": "it is 3"}, gsm8k, "x, row 2")


def test_gsm8k_solutions_lose_their_calculator_marks():
    source = apply_preset(SftSource(preset="gsm8k"))
    row = {"question": "q", "answer": "48/2 = <<48/2=24>>24 clips.\n#### 24"}
    assert read_conversation(row, source, "x")[-1] == {"role": "assistant", "content": "48/2 = 24 clips.\n#### 24"}


@pytest.mark.parametrize(
    ("preset", "row"),
    [
        ("openthoughts3", {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}),
        (
            "mixture_of_thoughts",
            {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
        ),
    ],
)
def test_both_layouts_of_chat_turns_are_read(preset, row):
    turns = read_conversation(row, apply_preset(SftSource(preset=preset, system_prompt="s")), "x")
    assert turns == [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a"},
    ]


@pytest.mark.parametrize(
    ("turns", "expected"),
    [
        ([], "expected an assistant's turn in field 'messages', found none"),
        ("text", "expected a list of turns in field 'messages', found str"),
        ([{"role": "user", "content": "q"}], "expected an assistant's turn in field 'messages', found none"),
        ([{"role": "robot", "content": "q"}], "turn 1 of messages: expected a role of"),
        ([{"role": "user", "content": ""}], "turn 1 of messages: expected a field 'content', found an empty one"),
    ],
)
def test_bad_turns_name_the_row(turns, expected):
    with pytest.raises(ValueError, match="x, row 1.*" + expected):
        read_conversation({"messages": turns}, SftSource(layout="messages"), "x, row 1")


def test_numbers_are_text_and_other_values_are_refused():
    source = TaskSource()
    assert read_answer({"answer": 43.0}, source, "x") == "43"
    assert read_answer({"answer": 0.5}, source, "x") == "0.5"
    with pytest.raises(ValueError, match="expected text or a number in field 'answer', found list"):
        read_answer({"answer": [1]}, source, "x")


@needs_shared_data
@pytest.mark.parametrize(
    ("name", "preset", "num_rows", "first_answer"),
    [
        ("gsm8k_train.jsonl", "gsm8k", 7473, "72"),
        ("gsm8k_test.jsonl", "gsm8k", 1319, "18"),
        ("math500.jsonl", "math500", 500, None),
        ("svamp.jsonl", "svamp", 1000, "145"),
    ],
)
def test_the_presets_read_every_row_of_the_public_files(name, preset, num_rows, first_answer):
    from orchestrator.data.tasks import load_tasks

    tasks = load_tasks(TaskSource(source=str(SHARED_DATA / name), preset=preset))
    assert len(tasks) == num_rows
    assert first_answer in (None, tasks[0].reference_answer)
    assert all(task.reference_answer and task.messages[-1]["content"] for task in tasks)


def rows_of(*, num_rows, field="answer"):
    return ({"question": f"{n}+1=?", field: n + 1, "extra": {"tests": [n]}} for n in range(num_rows))


def no_rows():
    return [["not", "a", "mapping"]]


def no_iterable():
    return 3


def test_rows_come_from_a_function():
    source = TaskSource(
        source=f"{__name__}:rows_of", source_args={"num_rows": 5}, num_tasks=3, verifier_fields=("extra",)
    )
    tasks = read_tasks(source)
    assert [(task.messages[0]["content"], task.reference_answer) for task in tasks] == [
        ("0+1=?", "1"),
        ("1+1=?", "2"),
        ("2+1=?", "3"),
    ]
    assert tasks[2].fields == {"extra": {"tests": [2]}}
    assert tasks[2].task_id == f"{__name__}:rows_of/3"


def test_rows_need_no_answer_where_a_verifier_does_without():
    source = TaskSource(source=f"{__name__}:rows_of", source_args={"num_rows": 1, "field": "x"}, answer_field="")
    assert read_tasks(source)[0].reference_answer == ""


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no_rows", "row 1: expected a mapping of fields, found list"),
        ("no_iterable", "expected rows from the function, found int"),
    ],
)
def test_what_is_no_rows_is_refused_by_the_functions_name(name, words):
    with pytest.raises(UserError, match=f"{name}.*{words}"):
        read_tasks(TaskSource(source=f"{__name__}:{name}"))
