"""Trials that Optuna draws: by what came of those before, resumed, and stopped when they are hopeless."""

import json
import math

import pytest

from configs.axes import Range, require_lists, split_axes
from configs.load import ConfigError, load_config
from orchestrator.record import run_files
from orchestrator.record.best import Seen, consider
from orchestrator.search import StudyPlan, final_score
from orchestrator.sweep import first_value, make_trial, sweep
from tests.fakes import make_group, make_sample_rows
from tests.orchestrator.record.test_best import packed
from tests.orchestrator.record.test_metrics import make_record

AXES = {"rl.kl_beta": Range(kind="log", low=1e-6, high=1.0), "budget.buckets_tokens": [[20, 32], [60]]}
FIXED = ["rl.keep_best=accuracy", "rl.evaluate_every_steps=5"]


@pytest.fixture
def make_plan(tmp_path):
    def make(method, *overrides, known=()):
        fixed = [*FIXED, f"run.dir={tmp_path}", "run.name=search", f"sweep.method={method}", *overrides]
        base = load_config("quickstart", fixed)
        return StudyPlan(base, AXES, lambda values: make_trial(base, "quickstart", fixed, values), known)

    return make


def train(trial):
    """As a trial whose policy is the shorter the nearer its KL weight is to 1e-3."""
    distance = abs(math.log10(trial.values["rl.kl_beta"]) + 3)
    tokens = round(30 + 20 * distance) + (10 if trial.values["budget.buckets_tokens"] == [60] else 0)
    for policy, length in (("sft", 100), ("rl", tokens)):
        records = [make_record(f"t{i}", [length], [True]) for i in range(4)]
        samples = make_sample_rows([make_group([1.0], group_id=i) for i in range(4)], "p")
        run_files.write_evaluation(trial.config.run_dir, policy, records, samples)
    return tokens


def run(plan):
    tokens = {}
    while (trial := plan.next()) is not None:
        tokens[trial.name] = train(trial)
        plan.tell(trial, None)
    return tokens


def test_a_search_runs_as_many_trials_as_were_asked_for_and_draws_the_same_ones_again(make_plan):
    first = run(make_plan("random", "sweep.num_trials=6"))
    assert len(first) == 6
    assert run(make_plan("random", "sweep.num_trials=6")) == first
    assert run(make_plan("random", "sweep.num_trials=6", "run.seed=1")) != first


def test_tpe_draws_where_earlier_trials_did_well(make_plan):
    plan = make_plan("tpe", "sweep.num_trials=20")
    betas = []
    while (trial := plan.next()) is not None:
        betas.append(trial.values["rl.kl_beta"])
        train(trial)
        plan.tell(trial, None)
    distances = [abs(math.log10(beta) + 3) for beta in betas]
    assert sum(distances[10:]) < sum(distances[:10])
    assert min(distances) < 0.5


def test_a_resumed_search_draws_only_what_is_missing_and_runs_the_unfinished_again(make_plan):
    plan = make_plan("random", "sweep.num_trials=4")
    done, cut = plan.next(), plan.next()
    train(done)
    plan.tell(done, None)
    resumed = make_plan("random", "sweep.num_trials=4", known=[(done.values, None), (cut.values, "not run")])
    again = resumed.next()
    assert again.values == cut.values
    others = [resumed.next(), resumed.next()]
    assert resumed.next() is None
    assert len({trial.name for trial in (done, again, *others)}) == 4


def test_a_trial_that_failed_is_no_end_of_the_search(make_plan):
    plan = make_plan("tpe", "sweep.num_trials=3")
    for error in ("out of memory", None, "out of memory"):
        trial = plan.next()
        if error is None:
            train(trial)
        plan.tell(trial, error)
    assert plan.next() is None


def test_choices_that_are_used_up_end_the_search(tmp_path):
    fixed = [f"run.dir={tmp_path}", "sweep.method=random", "sweep.num_trials=9"]
    base = load_config("quickstart", fixed)
    axes = {"rl.advantage": ["grpo", "rloo"]}
    plan = StudyPlan(base, axes, lambda values: make_trial(base, "quickstart", fixed, values))
    found = [plan.next(), plan.next()]
    assert {trial.values["rl.advantage"] for trial in found} == {"grpo", "rloo"}
    assert plan.next() is None


def test_trials_of_other_axes_are_left_alone_and_draws_that_cannot_be_run_are_drawn_again(tmp_path, caplog):
    fixed = [f"run.dir={tmp_path}", "sweep.method=random", "sweep.num_trials=3"]
    base = load_config("quickstart", fixed)
    axes = {"rl.group_size": Range(kind="int", low=1, high=3)}
    known = [({"rl.kl_beta": 0.1}, None), ({"rl.group_size": 9}, None)]
    plan = StudyPlan(base, axes, lambda values: make_trial(base, "quickstart", fixed, values), known)
    found = []
    while (trial := plan.next()) is not None:
        found.append(trial.values["rl.group_size"])
    assert sorted(found) == [2, 3]
    assert "rl.group_size: expected at least 2" in caplog.text


def test_a_trial_below_the_median_is_stopped_with_a_reason(make_plan):
    plan = make_plan("random", "sweep.num_trials=8", "sweep.prune=true")
    for accuracy in (0.8, 0.82, 0.78, 0.81, 0.5, 0.9):
        trial = plan.next()
        for step, reached in ((0, 0.4), (5, accuracy)):
            stage_dir = trial.config.run_dir / "rl"
            consider(stage_dir, "accuracy", Seen(step=step, accuracy=reached, mean_tokens=50), packed(1.0))
        why = plan.why_stop(trial)
        if accuracy == 0.5:
            assert why == "pruned at step 5: accuracy 0.500 is below the median of the other trials"
            assert plan.why_stop(trial) == "", "it was said"
            plan.tell(trial, why)
        else:
            assert why == ""
            train(trial)
            plan.tell(trial, None)


def test_nothing_is_stopped_without_being_asked(make_plan):
    plan = make_plan("random")
    assert plan.why_stop(plan.next()) == ""


def test_the_score_is_of_the_last_policy_against_the_first(make_plan):
    trial = make_plan("random").next()
    assert final_score(trial.config) is None
    tokens = train(trial)
    assert final_score(trial.config) == pytest.approx((100 - tokens) / 100)


@pytest.mark.parametrize(
    ("override", "axis"),
    [
        ("rl.kl_beta=log(1e-5,1e-2)", Range(kind="log", low=1e-5, high=1e-2)),
        ("rl.clip_high=uniform(0.1, 0.4)", Range(kind="uniform", low=0.1, high=0.4)),
        ("rl.group_size=int(4,16)", Range(kind="int", low=4, high=16)),
        ("rl.loss=[grpo,gspo]", ["grpo", "gspo"]),
    ],
)
def test_axes_are_ranges_or_lists(override, axis):
    axes, fixed = split_axes([override, "run.name=x"])
    assert list(axes.values()) == [axis]
    assert fixed == ["run.name=x"]
    assert first_value(axis) in (1e-5, 0.1, 4, "grpo")


@pytest.mark.parametrize("override", ["rl.kl_beta=log(0,1)", "rl.kl_beta=uniform(2,1)", "rl.group_size=int(1.5,3)"])
def test_ranges_that_are_none_are_refused(override):
    key, _, raw = override.partition("=")
    with pytest.raises(ConfigError) as caught:
        split_axes([override])
    assert f"{key}: expected two" in str(caught.value)
    assert raw in str(caught.value)


def test_a_grid_takes_no_ranges(tmp_path):
    with pytest.raises(ConfigError, match=r"sweep.method: expected random or tpe for ranges \(rl.kl_beta=log"):
        require_lists({"rl.kl_beta": Range(kind="log", low=1e-5, high=1e-2)})
    with pytest.raises(ConfigError, match="a sweep needs at least one setting with several values"):
        sweep("quickstart", [f"run.dir={tmp_path}"])


def test_settings_of_a_search_that_cannot_work_are_refused():
    with pytest.raises(ConfigError, match=r"rl\.keep_best: expected accuracy or aes with sweep\.prune"):
        load_config("quickstart", ["sweep.method=tpe", "sweep.prune=true"])
    with pytest.raises(ConfigError, match=r"sweep\.prune: expected false with sweep\.method grid"):
        load_config("quickstart", [*FIXED, "sweep.prune=true"])


def test_values_that_were_drawn_can_be_written_down(make_plan):
    trial = make_plan("random").next()
    assert json.loads(json.dumps(trial.values)) == trial.values
    assert len(trial.name) < 60
