"""Files as people have them: numbers as written, directories, patterns, other endings, nested fields."""

import gzip
import json
import math

import datasets
import pytest

from configs.load import ConfigError
from configs.presets import apply_preset
from configs.schema.data import SftSource, TaskSource
from orchestrator.data.choices import read_choices
from orchestrator.data.sources import load_rows, read_answer, read_budget, read_conversation
from orchestrator.data.tasks import load_tasks
from orchestrator.tools.plan import unverifiable_references
from tests.configs.test_checks import changed


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def answers_of(path, **settings) -> list[str]:
    source = apply_preset(TaskSource(source=str(path), **settings))
    return [read_answer(row, source, "x") for row in load_rows(source)]


def write(path, *answers: str):
    path.write_text("".join(f'{{"question": "q", "answer": {answer}}}\n' for answer in answers))
    return path


def test_numbers_of_json_keep_their_written_form(tmp_path):
    written = ["0.00005", "0.0000001", "123456789012345678901234567890", "43.0", "2.50", "7", '"3/4"', "1.5e-3"]
    expected = ["0.00005", "0.0000001", "123456789012345678901234567890", "43", "2.50", "7", "3/4", "1.5e-3"]
    assert answers_of(write(tmp_path / "a.jsonl", *written)) == expected
    whole = tmp_path / "b.json"
    whole.write_text("[" + ",".join(f'{{"question": "q", "answer": {answer}}}' for answer in written) + "]")
    assert answers_of(whole) == expected


def test_numbers_of_parquet_have_no_exponent_that_was_not_there(tmp_path):
    path = tmp_path / "a.parquet"
    datasets.Dataset.from_list([{"question": "q", "answer": value} for value in (5e-05, 1e22, 43.0)]).to_parquet(
        str(path)
    )
    assert answers_of(path) == ["0.00005", "10000000000000000000000", "43"]


def test_a_missing_number_is_refused_with_row_and_field(tmp_path):
    with pytest.raises(ValueError, match=r"row 1.*field 'answer'.*found nan"):
        load_tasks(TaskSource(source=str(write(tmp_path / "a.jsonl", "NaN"))))
    path = tmp_path / "a.parquet"
    datasets.Dataset.from_list([{"question": "q", "answer": math.nan}]).to_parquet(str(path))
    with pytest.raises(ValueError, match=r"a\.parquet, row 1.*field 'answer'"):
        load_tasks(TaskSource(source=str(path)))


@pytest.mark.parametrize(
    ("answer", "expected"), [("3/4", "3/4"), ("$18", "$18"), ("\\\\$18", "\\$18"), ("-1,234.5", "-1,234.5")]
)
def test_all_of_the_line_behind_the_mark_is_the_answer_of_gsm8k(tmp_path, answer, expected):
    for mark in ("#### ", "####"):
        assert answers_of(write(tmp_path / "a.jsonl", f'"so\\n{mark}{answer} "'), preset="gsm8k") == [expected]


def test_directories_patterns_and_compressed_files_are_read(tmp_path):
    below = tmp_path / "data" / "part"
    below.mkdir(parents=True)
    write(tmp_path / "data" / "a.jsonl", "1")
    write(below / "b.NDJSON", "2")
    with gzip.open(below / "c.jsonl.gz", "wt") as file:
        file.write('{"question": "q", "answer": 3}\n')
    assert answers_of(tmp_path / "data") == ["1", "2", "3"]
    assert answers_of(f"{tmp_path}/data/**/*.gz") == ["3"]
    assert [row["answer"] for row in load_rows(SftSource(source=str(below / "c.jsonl.gz")))] == [3]


def test_a_file_that_is_here_is_never_looked_for_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.txt").write_text("1")
    with pytest.raises(ValueError, match=r"rows\.txt: expected a file that ends in \.json"):
        load_rows(TaskSource(source="rows.txt"))
    (tmp_path / "rows.csv").write_text("question,answer\nq,0.50\n")
    assert answers_of("rows.csv") == ["0.50"]


def test_rows_of_different_types_load_and_a_bad_one_is_named(tmp_path):
    assert answers_of(write(tmp_path / "a.jsonl", *["1"] * 500, '"x+1"'))[-1] == "x+1"
    (tmp_path / "b.jsonl").write_text('{"question": "q"}\n[1]\n')
    with pytest.raises(ValueError, match=r"b\.jsonl: line 2: expected a JSON object, found '\[1\]'"):
        load_rows(TaskSource(source=str(tmp_path / "b.jsonl")))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.parquet", b"PAR1 is not all of it", "a.parquet: expected a parquet file"),
        (
            "a.parquet",
            b"version https://git-lfs.github.com/spec/v1\n",
            "a.parquet: expected data, found a pointer of Git LFS",
        ),
        ("a.json", b"[]", "a.json: expected rows, found none"),
        ("a.jsonl", b"\n\n", "a.jsonl: expected rows, found none"),
        ("a.json", b'{"rows": 1}', "a.json: expected a field 'examples' with the rows (rows_field), found rows"),
    ],
)
def test_files_that_hold_no_rows_are_named(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    rows_field = "examples" if b"rows" in content else ""
    with pytest.raises(ValueError) as caught:
        load_rows(TaskSource(source=str(tmp_path / name), rows_field=rows_field))
    assert words in str(caught.value)


def test_a_parquet_file_without_rows_is_named(tmp_path):
    path = tmp_path / "a.parquet"
    datasets.Dataset.from_dict({"question": [], "answer": []}).to_parquet(str(path))
    with pytest.raises(ValueError, match=r"a\.parquet: expected rows"):
        load_rows(TaskSource(source=str(path)))


def test_nested_fields_and_prompts_that_are_turns_are_read(tmp_path):
    row = {
        "prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": [{"type": "text", "text": "1+1"}]}],
        "reward_model": {"ground_truth": "2"},
        "extra": {"budget": 100.0},
    }
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(row) + "\n")
    settings = {
        "question_template": "{prompt}",
        "answer_field": "reward_model.ground_truth",
        "budget_field": "extra.budget",
    }
    (task,) = load_tasks(TaskSource(source=str(path), **settings))
    assert task.messages == ({"role": "system", "content": "s"}, {"role": "user", "content": "1+1"})
    assert (task.reference_answer, task.budget_tokens) == ("2", 100)
    (task,) = load_tasks(
        TaskSource(source=str(path), **settings | {"question_template": "Q: {reward_model.ground_truth}"})
    )
    assert task.messages == ({"role": "user", "content": "Q: 2"},)


def test_a_thought_beside_the_content_is_trained_on():
    row = {
        "messages": [
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": "2", "reasoning_content": "1+1"},
        ]
    }
    turns = read_conversation(row, SftSource(layout="messages"), "x")
    assert turns[-1]["content"] == "<think>\n1+1\n</think>\n\n2"


def test_a_budget_may_be_a_whole_float_and_a_gap_is_none():
    source = TaskSource(budget_field="b")
    assert read_budget({"b": 100.0}, source, "x") == 100
    assert read_budget({"b": math.nan}, source, "x") is None
    with pytest.raises(ValueError, match=r"expected a number of tokens above 0, found 0\.5"):
        read_budget({"b": 0.5}, source, "x")


@pytest.mark.parametrize(
    "choices", [["red", "blue"], {"text": ["red", "blue"], "label": ["A", "B"]}, {"A": "red", "B": "blue"}]
)
@pytest.mark.parametrize("answer", ["b", "(B)", "B.", "blue", 1])
def test_choices_and_their_answers_are_read_as_people_write_them(choices, answer):
    source = TaskSource(choice_fields=("choices",))
    assert read_choices({"choices": choices, "answer": answer}, source, "x", 0) == (["red", "blue"], "B")


def test_a_choice_that_is_missing_is_refused():
    with pytest.raises(ValueError, match="x: field 'choices': expected a text for choice 2, found None"):
        read_choices({"choices": ["red", None], "answer": "A"}, TaskSource(choice_fields=("choices",)), "x", 0)


def test_references_that_cannot_be_verified_are_counted_and_shown(tmp_path, caplog):
    path = write(tmp_path / "a.jsonl", "3", '"I think it is forty"', '"[1, 2]"')
    config = changed({"data.evaluation.source": str(path), "data.evaluation.held_out": False})
    found = unverifiable_references(config)["data.evaluation"]
    assert (found.num_references, found.num_unverifiable) == (3, 1)
    assert f"{path}/2: reference answer 'I think it is forty': expected an answer, found prose" in found.examples[0]
    assert "1 of 3 reference answers cannot be verified" in caplog.text
    with pytest.raises(ValueError, match="expected reference answers that can be verified, found none"):
        load_tasks(TaskSource(source=str(write(tmp_path / "b.jsonl", '"nan"'))))


def test_a_row_that_a_preset_cannot_read_names_the_preset(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text('{"question": "1+1=?", "answer": "2"}\n')
    config = changed({"data.train.source": str(path), "data.train.preset": "gsm8k"})
    with pytest.raises(ConfigError, match=r"row 1: .*\(read by data.train.preset=gsm8k; data.train.preset=none takes"):
        unverifiable_references(config)
