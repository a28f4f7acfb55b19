"""The embedded programming tasks: each is solved by its solution, and by nothing less."""

import pytest

from actors.judges import Judge
from actors.scoring_process import Scorer
from configs.errors import UserError
from configs.load import ConfigError, load_config
from configs.schema.data import TaskSource
from orchestrator.data.code_tasks import all_rows, rows
from orchestrator.data.tasks import read_tasks
from rewards.base import Outcome, Reference

CODE = Judge(name="code")


@pytest.fixture(scope="module")
def scorer():
    scorer = Scorer(10.0, [CODE])
    yield scorer
    scorer.close()


def test_there_are_forty_of_which_ten_are_held_out():
    assert (len(list(all_rows())), len(list(rows())), len(list(rows(held_out=True)))) == (40, 30, 10)
    assert len({row["question"] for row in all_rows()}) == 40


def test_every_solution_passes_and_a_wrong_one_does_not(scorer):
    for row in all_rows():
        reference = Reference(answer="", fields={"tests": row["tests"]})
        wrong = row["solution"].split("\n")[0] + "\n    return 'wrong'\n" if "def " in row["solution"] else "print('x')"
        texts = [f"```python\n{code}```" for code in (row["solution"], wrong + "\n")]
        found = [verdict.outcome for verdict in scorer.verify(texts, reference, CODE)]
        assert found == [Outcome.CORRECT, Outcome.WRONG], row["question"]


def test_the_source_is_named_code_and_needs_no_other_setting():
    config = load_config(
        "quickstart",
        [
            "data.train=[{source: arithmetic}, {source: code}]",
            "data.evaluation=[{source: arithmetic}, {source: code, source_args: {held_out: true}}]",
        ],
    )
    source = config.resolved(config.data.train[1])
    assert (source.verifier, source.label) == ("code", "code")
    tasks = read_tasks(source)
    assert len(tasks) == 30
    assert tasks[0].verifier == "code"
    assert tasks[0].messages[0]["content"].endswith("Put the whole program in one ```python block.")
    assert tasks[0].fields["tests"][0] == "assert double(3) == 6"
    assert len(read_tasks(config.resolved(config.data.evaluation[1]))) == 10


def test_public_code_datasets_have_presets(tmp_path):
    path = tmp_path / "mbpp.jsonl"
    path.write_text(
        '{"prompt": "Add.", "test_list": ["assert a(1, 2) == 3", "assert a(0, 0) == 0"], "test_imports": []}\n'
    )
    (task,) = read_tasks(TaskSource(source=str(path), preset="mbpp"))
    assert "assert a(1, 2) == 3\nassert a(0, 0) == 0" in task.messages[0]["content"]
    assert task.fields == {"test_list": ["assert a(1, 2) == 3", "assert a(0, 0) == 0"]}


def test_the_verifier_must_end_before_the_deadline():
    overrides = ["data.train=[{source: code}]", "reward.deadline_s=3"]
    with pytest.raises(
        ConfigError, match=r"reward.deadline_s: expected more than total_timeout_s 4 of the verifier code"
    ):
        load_config("quickstart", overrides)
    overrides += ["data.train.verifier_args.total_timeout_s=2"]
    assert load_config("quickstart", overrides).reward.deadline_s == 3


def test_rows_of_a_function_take_a_preset_and_a_list_is_no_reference_answer(tmp_path):
    path = tmp_path / "lists.jsonl"
    path.write_text('{"question": "1+1=?", "answer": ["2", "3"]}\n')
    with pytest.raises(UserError, match="expected text or a number in field 'answer', found list"):
        read_tasks(TaskSource(source=str(path)))
    config = load_config(
        "quickstart", ["data.train.source=orchestrator.data.code_tasks:rows", "data.train.preset=code"]
    )
    assert read_tasks(config.resolved(config.data.train[0]))[0].verifier == "code"
