"""Which adapter is kept as the best, by which rule."""

import json
import shutil

import pytest
import torch

from actors import adapters
from configs.errors import UserError
from configs.load import ConfigError, load_config
from orchestrator.pipeline import find_step, require_step
from orchestrator.record import best
from orchestrator.record.best import Seen, accuracy_efficiency, consider, look_at, score
from tests.orchestrator.record.test_metrics import make_record

START = Seen(step=0, accuracy=0.5, mean_tokens=100)


def packed(number: float) -> bytes:
    return adapters.pack({"a.lora_A.weight": torch.full((2, 2), number)}, {"r": 2}).tobytes()


def test_a_cap_makes_long_right_completions_wrong():
    records = [make_record("a", [40, 60], [True, True]), make_record("b", [10, 10], [False, True])]
    assert look_at(3, records, 0) == Seen(step=3, accuracy=0.75, mean_tokens=30)
    assert look_at(3, records, 50).accuracy == 0.5


@pytest.mark.parametrize(
    ("accuracy", "tokens", "expected"),
    [(0.5, 40, 0.6), (0.45, 40, 0.1), (0.55, 40, 0.9), (0.5, 100, 0.0), (0.5, 120, -0.2)],
)
def test_the_accuracy_efficiency_score_by_hand(accuracy, tokens, expected):
    assert accuracy_efficiency(START, Seen(step=1, accuracy=accuracy, mean_tokens=tokens)) == pytest.approx(expected)


def test_of_equally_accurate_ones_the_shorter_is_better():
    one, other = Seen(step=1, accuracy=0.5, mean_tokens=40), Seen(step=2, accuracy=0.5, mean_tokens=30)
    assert score("accuracy", START, other) > score("accuracy", START, one)


def test_the_best_stays_while_later_ones_are_worse(tmp_path):
    for step, accuracy, kept in ((0, 0.5, True), (10, 0.7, True), (20, 0.6, False), (30, 0.7, False)):
        seen = Seen(step=step, accuracy=accuracy, mean_tokens=50)
        assert consider(tmp_path, "accuracy", seen, packed(float(step))) is kept
    found = best.best_adapter(tmp_path)
    assert found == (10, packed(10.0))
    table = json.loads((tmp_path / best.FILE).read_text())
    assert [row["step"] for row in table["seen"]] == [0, 10, 20, 30]


def test_a_run_that_goes_on_from_an_earlier_step_loses_no_best_adapter(tmp_path):
    for step, accuracy in ((0, 0.5), (10, 0.6), (20, 0.9)):
        consider(tmp_path, "accuracy", Seen(step=step, accuracy=accuracy, mean_tokens=50), packed(float(step)))
    assert not consider(tmp_path, "accuracy", Seen(step=15, accuracy=0.7, mean_tokens=50), packed(15.0))
    assert best.best_adapter(tmp_path) == (20, packed(20.0))
    assert not consider(tmp_path, "accuracy", Seen(step=20, accuracy=0.8, mean_tokens=50), packed(2.0))
    assert best.best_adapter(tmp_path) == (20, packed(20.0))
    assert consider(tmp_path, "accuracy", Seen(step=20, accuracy=0.95, mean_tokens=50), packed(3.0))
    assert best.best_adapter(tmp_path) == (20, packed(3.0))
    table = json.loads((tmp_path / best.FILE).read_text())
    assert [(row["step"], row["accuracy"]) for row in table["seen"]] == [(0, 0.5), (10, 0.6), (15, 0.7), (20, 0.95)]


def test_a_best_adapter_that_was_removed_gives_way(tmp_path):
    consider(tmp_path, "accuracy", Seen(step=0, accuracy=0.9, mean_tokens=50), packed(0.0))
    shutil.rmtree(best.directory_of(tmp_path, 0))
    assert best.best_adapter(tmp_path) is None
    assert consider(tmp_path, "accuracy", Seen(step=5, accuracy=0.5, mean_tokens=50), packed(5.0))
    assert best.best_adapter(tmp_path) == (5, packed(5.0))


def test_nothing_is_found_before_the_first_evaluation(tmp_path):
    assert best.best_adapter(tmp_path) is None
    config = load_config("quickstart", [f"run.dir={tmp_path}", "rl.keep_best=aes", "rl.evaluate_every_steps=5"])
    assert find_step(config, "best") is None
    with pytest.raises(UserError, match=r"rl: expected an adapter kept by rl.keep_best, found steps none"):
        require_step(config, "best")
    with pytest.raises(UserError, match="expected a checkpoint of step 7, found steps none"):
        require_step(config, "7")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["rl.keep_best=aes"], "rl.evaluate_every_steps: expected above 0 with rl.keep_best aes, found 0"),
        (["export.step=best"], "export.step: expected last or the number of a step, with rl.keep_best none"),
        (["evaluation.step=first"], "evaluation.step: expected last, best or the number of a step, found 'first'"),
        (["rl.keep_best=most"], "rl.keep_best: expected one of none, accuracy, aes"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(overrides, words):
    with pytest.raises(ConfigError, match=words):
        load_config("quickstart", overrides)
