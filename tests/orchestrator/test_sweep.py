"""Sweeps: what the trials are, what becomes of those that fail, and the report of what there is."""

import json
import subprocess
import sys

import pytest

from configs.axes import split_axes
from configs.errors import UserError
from configs.load import ConfigError, load_config
from orchestrator import sweep
from orchestrator.record import run_files
from orchestrator.report.sweep import build_sweep_report
from orchestrator.report.sweep_figures import frontier
from orchestrator.search import ListPlan, Trial
from orchestrator.sweep import distinct, make_trials, num_that_fit, run_trials, touches_sft, trial_name
from tests.fakes import make_group, make_sample_rows
from tests.orchestrator.record.test_metrics import make_record


def test_an_axis_is_a_list_where_one_value_is_expected():
    axes, fixed = split_axes(
        [
            "rl.kl_beta=[1e-3, 1e-4]",
            "budget.buckets_tokens=[[40, 80], [60]]",
            "reward.length=[soft_barrier,none]",
            "sft.num_steps=5",
            "data.train.difficulties=[1,2]",
            "run.name=x",
        ]
    )
    assert axes == {
        "rl.kl_beta": [0.001, 0.0001],
        "budget.buckets_tokens": [[40, 80], [60]],
        "reward.length": ["soft_barrier", "none"],
    }
    assert fixed == ["sft.num_steps=5", "data.train.difficulties=[1,2]", "run.name=x"]


@pytest.mark.parametrize("values", ["[]", "[1e-3, 0.001]", "[1e-3"])
def test_an_axis_without_different_values_is_refused(values):
    with pytest.raises(ConfigError, match=r"rl\.kl_beta: expected a"):
        split_axes([f"rl.kl_beta={values}"])


def test_trials_are_the_product_of_the_axes_in_directories_of_their_own(tmp_path):
    base = load_config("quickstart", [f"run.dir={tmp_path}", "run.name=betas"])
    axes = {"rl.kl_beta": [0.01, 0.001], "budget.buckets_tokens": [[10, 20], [30]]}
    trials = make_trials(base, "quickstart", axes, ["sft.num_steps=7", f"run.dir={tmp_path}", "run.name=betas"])
    assert [trial.name for trial in trials] == [
        "kl_beta-0.01_buckets_tokens-10-20",
        "kl_beta-0.01_buckets_tokens-30",
        "kl_beta-0.001_buckets_tokens-10-20",
        "kl_beta-0.001_buckets_tokens-30",
    ]
    last = trials[-1].config
    assert (last.rl.kl_beta, last.budget.buckets_tokens, last.sft.num_steps) == (0.001, (30,), 7)
    assert last.run_dir == tmp_path / "betas" / "trials" / trials[-1].name
    assert last.tracking.uri == f"sqlite:///{tmp_path / 'mlflow.db'}"


def test_settings_of_one_name_keep_their_section():
    assert trial_name({"rl.num_steps": 5, "sft.num_steps": 6}) == "rl.num_steps-5_sft.num_steps-6"
    assert trial_name({"model.path": "org/a model"}) == "path-org-a-model"


def test_problems_of_all_trials_are_reported_before_anything_starts():
    base = load_config("quickstart", [])
    with pytest.raises(ConfigError) as error:
        make_trials(base, "quickstart", {"rl.group_size": [1, 8, 0]}, [])
    assert len(error.value.problems) == 2
    assert "trial group_size-1: rl.group_size: expected at least 2" in error.value.problems[0]


def test_trials_share_the_sft_adapter_unless_an_axis_touches_it():
    assert not touches_sft({"rl.kl_beta": [1], "reward.length": ["none"], "budget.buckets_tokens": [[1]]})
    assert touches_sft({"lora.rank": [8]})
    assert touches_sft({"budget.prompt_template": ["{question}"]})


def test_as_many_trials_at_once_as_the_cluster_holds():
    config = load_config("gsm8k_1gpu", [])
    assert num_that_fit(config, {"CPU": 64.0, "GPU": 8.0}) == int(8 // config.num_gpus)
    assert num_that_fit(load_config("quickstart", []), {"CPU": 2.0}) == 1
    assert num_that_fit(load_config("quickstart", []), {"CPU": 16.0}) == 14


def make_trial(tmp_path, name):
    return Trial(name=name, values={}, config=load_config("quickstart", [f"run.dir={tmp_path}", f"run.name={name}"]))


def test_a_failed_trial_is_reported_with_its_last_words_and_the_others_go_on(tmp_path, monkeypatch):
    def start(trial, command):
        code = "print('terse run failed: no room'); exit(1)" if trial.name == "b" else "print('fine')"
        trial.config.run_dir.mkdir()
        with (trial.config.run_dir / "log.txt").open("w") as log:
            return subprocess.Popen([sys.executable, "-c", code], stdout=log)

    monkeypatch.setattr(sweep, "start_trial", start)
    monkeypatch.setattr(sweep, "POLL_S", 0.05)
    outcomes = {
        o.trial.name: o.error for o in run_trials(ListPlan([make_trial(tmp_path, n) for n in "abc"]), num_parallel=2)
    }
    assert outcomes == {"a": None, "b": "terse run failed: no room", "c": None}


def test_no_more_trials_run_at_once_than_allowed(tmp_path, monkeypatch):
    counts = []

    def start(trial, command):
        trial.config.run_dir.mkdir()
        (trial.config.run_dir / "log.txt").touch()
        process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(0.3)"])
        running.append(process)
        counts.append(sum(other.poll() is None for other in running))
        return process

    running = []
    monkeypatch.setattr(sweep, "start_trial", start)
    monkeypatch.setattr(sweep, "POLL_S", 0.02)
    assert len(list(run_trials(ListPlan([make_trial(tmp_path, n) for n in "abcde"]), num_parallel=2))) == 5
    assert max(counts) == 2


def test_the_frontier_leaves_out_what_is_longer_and_worse():
    assert frontier([(10, 0.5), (20, 0.4), (30, 0.9), (30, 0.8), (5, 0.1)]) == [(5, 0.1), (10, 0.5), (30, 0.9)]


def test_another_sweep_of_the_same_name_adds_its_trials(tmp_path):
    sweep.record_trials(tmp_path, {"rl.kl_beta": [1, 2]}, [make_trial(tmp_path, "a"), make_trial(tmp_path, "b")], {})
    axes = {"rl.kl_beta": [2, 3], "reward.length": ["none"]}
    sweep.record_trials(tmp_path, axes, [make_trial(tmp_path, "b"), make_trial(tmp_path, "c")], {"b": "no room"})
    record = json.loads((tmp_path / "sweep.json").read_text())
    assert record["axes"] == {"rl.kl_beta": [1, 2, 3], "reward.length": ["none"]}
    assert {name: trial["error"] for name, trial in record["trials"].items()} == {"a": None, "b": "no room", "c": None}


@pytest.fixture
def sweep_dir(tmp_path):
    """Three trials: one shorter and as good, one shortest and worse, one that failed."""
    trials = {"a": (40, 3), "b": (20, 5), "c": None}
    for name, found in trials.items():
        if found is None:
            continue
        tokens, num_wrong = found
        run_dir = tmp_path / "trials" / name
        for policy, length, wrong in (("sft", 100, 3), ("rl", tokens, num_wrong)):
            records = [make_record(f"t{i}", [length], [i >= wrong]) for i in range(40)]
            capped = [
                make_record(f"t{i}", [min(length, cap)], [i >= 20], cap=cap) for cap in (30, 60) for i in range(40)
            ]
            groups = [make_group([1.0], group_id=i) for i in range(40)]
            run_files.write_evaluation(run_dir, policy, records, make_sample_rows(groups, "p"), capped)
        run_files.add_timing(run_dir, "rl", 300.0)
    record = {
        "axes": {"rl.kl_beta": [1, 2, 3]},
        "trials": {n: {"values": {"rl.kl_beta": i}, "error": None} for i, n in enumerate(trials)},
    }
    record["trials"]["c"]["error"] = "terse run failed: <out of memory>"
    (tmp_path / "sweep.json").write_text(json.dumps(record))
    return tmp_path


def test_a_trial_that_the_search_stopped_is_no_failure(sweep_dir):
    record = json.loads((sweep_dir / "sweep.json").read_text())
    why = "pruned at step 2: aes -0.427 is below the median of the other trials"
    record["trials"]["c"]["error"] = why
    (sweep_dir / "sweep.json").write_text(json.dumps(record))
    build_sweep_report(sweep_dir)
    summary = json.loads((sweep_dir / "summary.json").read_text())
    assert (summary["unfinished"], summary["pruned"]) == ({}, {"c": why})
    text = (sweep_dir / "report.md").read_text()
    assert "2 of 3 trials are done, 1 stopped early." in text
    assert f"| c | {why} |" in text
    assert "Not finished" not in text


def test_the_report_names_the_best_trial_and_why_others_failed(sweep_dir):
    html = build_sweep_report(sweep_dir).read_text()
    assert "2 of 3 trials are done. a is 2.50 times shorter than after SFT at +0.0 points" in html
    assert "terse run failed: &lt;out of memory&gt;" in html
    assert html.count("data:image/png;base64,") == 3
    summary = json.loads((sweep_dir / "summary.json").read_text())
    assert summary["best"] == "a"
    assert summary["trials"]["b"]["accuracy"] == pytest.approx(0.875)
    assert (summary["trials"]["a"]["dominated_by"], summary["trials"]["b"]["dominated_by"]) == (None, None)
    assert summary["trials"]["a"]["seconds"] == 300.0
    assert summary["trials"]["b"]["hard_caps"] == {"30": 0.5, "60": 0.5}
    assert summary["unfinished"] == {"c": "terse run failed: <out of memory>"}
    assert summary["pruned"] == {}
    text = (sweep_dir / "report.md").read_text()
    assert "Stopped early" not in text
    assert "| after SFT | 50.0% | 50.0% | 92.5% |" in text
    assert "| b | 50.0% | 50.0% | 87.5% |" in text


def test_a_trial_that_another_beats_in_both_is_marked(sweep_dir):
    run_dir = sweep_dir / "trials" / "c"
    for policy, length, wrong in (("sft", 100, 3), ("rl", 45, 4)):
        records = [make_record(f"t{i}", [length], [i >= wrong]) for i in range(40)]
        groups = [make_group([1.0], group_id=i) for i in range(40)]
        run_files.write_evaluation(run_dir, policy, records, make_sample_rows(groups, "p"))
    run_files.add_timing(run_dir, "rl", 7200.0)
    build_sweep_report(sweep_dir)
    assert json.loads((sweep_dir / "summary.json").read_text())["trials"]["c"]["dominated_by"] == "a"
    (row,) = [line for line in (sweep_dir / "report.md").read_text().splitlines() if line.startswith("| c | 90.0%")]
    assert row.endswith("| 2.0 h | a |")


def test_trials_without_sft_are_compared_with_the_base(sweep_dir):
    for path in sweep_dir.glob("trials/*/evaluation/sft*"):
        path.rename(path.with_name(path.name.replace("sft", "base")))
    assert "a is 2.50 times shorter than base at +0.0 points" in build_sweep_report(sweep_dir).read_text()
    assert "| base | 50.0% | 50.0% | 92.5% |" in (sweep_dir / "report.md").read_text()


def test_a_directory_without_sweep_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"expected a sweep's directory with sweep\.json"):
        build_sweep_report(tmp_path)
    (tmp_path / "sweep.json").write_text("{}")
    with pytest.raises(ValueError, match=r"sweep\.json: expected axes and trials"):
        build_sweep_report(tmp_path)


def test_trials_never_share_a_name():
    values = [
        {"budget.prompt_template": "{question} {budget_tokens}"},
        {"budget.prompt_template": "{question}/{budget_tokens}"},
    ]
    names = distinct([trial_name(chosen) for chosen in values], values)
    assert len({name.lower() for name in names}) == 2
    assert distinct(["a", "b"], [{}, {}]) == ["a", "b"]
    assert len(distinct(["x" * 300], [{}])[0]) < 120
