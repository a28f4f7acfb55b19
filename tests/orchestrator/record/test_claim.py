"""What may change between two calls on one run directory, and what is made again."""

import json

import pytest

from configs.errors import UserError
from configs.load import ConfigError, dump_config, load_config
from orchestrator.record import claim, result_settings, run_files


def config_of(tmp_path, *overrides):
    config = load_config("quickstart", [f"run.dir={tmp_path}", *overrides])
    config.run_dir.mkdir(exist_ok=True)
    return config


def test_placement_and_memory_may_change_unless_the_run_is_deterministic(tmp_path):
    claim.claim_run_dir(config_of(tmp_path))
    changes = ["learner.num_ranks=2", "engine.max_num_seqs=64", "rollout.num_actors=2", "reward.deadline_s=9"]
    claim.claim_run_dir(config_of(tmp_path, *changes))
    strict = ["run.name=strict", "run.deterministic=true"]
    claim.claim_run_dir(config_of(tmp_path, *strict))
    with pytest.raises(ConfigError, match="max_num_seqs"):
        claim.claim_run_dir(config_of(tmp_path, *strict, "engine.max_num_seqs=64"))


def test_rl_may_grow_and_what_was_made_of_its_earlier_end_keeps_its_files(tmp_path):
    claim.claim_run_dir(config_of(tmp_path, "rl.num_steps=10"))
    (tmp_path / "quickstart" / "evaluation").mkdir()
    (tmp_path / "quickstart" / "evaluation" / "rl.jsonl").write_text("")
    with pytest.raises(ConfigError, match="num_steps"):
        claim.claim_run_dir(config_of(tmp_path, "rl.num_steps=5"))
    claim.claim_run_dir(config_of(tmp_path, "rl.num_steps=20"))
    assert (tmp_path / "quickstart" / "evaluation_at_step_10" / "rl.jsonl").is_file()
    assert not (tmp_path / "quickstart" / "evaluation").exists()


def test_an_evaluation_under_other_settings_is_made_again(tmp_path):
    config = config_of(tmp_path)
    (config.run_dir / "evaluation").mkdir()
    settings = json.dumps(result_settings.evaluation_settings(config))
    (config.run_dir / run_files.SETTINGS_FILE).write_text(settings)
    assert not result_settings.is_evaluated_otherwise(config)
    assert result_settings.is_evaluated_otherwise(config_of(tmp_path, "evaluation.temperature=0"))
    assert not result_settings.is_evaluated_otherwise(config_of(tmp_path, "evaluation.num_actors=1"))


def test_no_part_of_an_evaluation_under_other_settings_passes_for_complete(tmp_path):
    config = config_of(tmp_path)
    (config.run_dir / "evaluation").mkdir()
    result_settings.begin_evaluation(config)
    names = ("evaluation/base.jsonl", "evaluation/rl.jsonl", run_files.SCALING_FILE, run_files.SWITCHER_FILE)
    for name in names:
        (config.run_dir / name).write_text("")
    result_settings.begin_evaluation(config)
    assert all((config.run_dir / name).is_file() for name in names)
    changed = config_of(tmp_path, "evaluation.temperature=0")
    result_settings.begin_evaluation(changed)
    assert not any((config.run_dir / name).exists() for name in names)
    assert not result_settings.is_evaluated_otherwise(changed)


def test_an_export_with_other_settings_is_refused_with_what_differs(tmp_path):
    config = config_of(tmp_path, "export.precision=f16")
    (config.run_dir / "export").mkdir()
    (config.run_dir / "export" / "manifest.json").write_text("{}")
    (config.run_dir / result_settings.EXPORT_SETTINGS_FILE).write_text(
        json.dumps(result_settings.export_settings(config))
    )
    result_settings.refuse_other_export(config)
    with pytest.raises(UserError, match=r"export\.precision 'f16' → 'int4'.*--force"):
        result_settings.refuse_other_export(config_of(tmp_path, "export.precision=int4"))


@pytest.mark.parametrize("name", ["1e5", "0x10", "true", "null", "2026-01-01", "1_000", "010", "on"])
def test_a_name_that_looks_like_a_value_reads_back_as_text(tmp_path, name):
    config = load_config("quickstart", [f"run.name={name}"])
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config))
    assert load_config(path).run.name == name
    assert load_config(path) == config


def test_numbers_of_the_command_line_are_decimal():
    assert load_config("quickstart", ["rl.num_steps=010"]).rl.num_steps == 10
    for override in ("rl.num_steps=1:30", "data.train.system_prompt=???"):
        with pytest.raises(ConfigError, match=override.partition("=")[0]):
            load_config("quickstart", [override])


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("evaluation.caps_tokens=[25,25]", "evaluation.caps_tokens: expected different values"),
        ("run.mirror=runs", "run.mirror: expected a place apart from the run directory"),
        ("run.mirror=runs/quickstart/copy", "run.mirror: expected a place apart from the run directory"),
        ("tracking.uri=http://h/?token=abcdef", "tracking.uri: expected an address without a user, password or token"),
        ("run.mirror=https://ghp_abc@h/x", "run.mirror: expected an address without a user, password or token"),
    ],
)
def test_what_would_count_twice_delete_or_leak_is_refused(override, words):
    with pytest.raises(ConfigError) as caught:
        load_config("quickstart", [override])
    assert words in str(caught.value)


def test_the_home_directory_is_found_in_run_dir(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_config("quickstart", ["run.dir=~/runs"]).run_dir == tmp_path / "runs" / "quickstart"


def test_a_secret_of_the_environment_does_not_get_into_the_configuration(monkeypatch):
    monkeypatch.setenv("MY_API_KEY", "abcdefgh")
    with pytest.raises(ConfigError, match=r"expected no secret .* found the environment variable MY_API_KEY") as caught:
        load_config("quickstart", ["tracking.experiment=${oc.env:MY_API_KEY}"])
    assert "abcdefgh" not in str(caught.value)
