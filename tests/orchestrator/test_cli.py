import ast
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.__main__ import BAD_USAGE, COMMANDS, FAILED, INTERRUPTED, OK, main, read_arguments
from orchestrator.record import run_files


def test_every_command_has_help_with_an_example(capsys):
    for name in COMMANDS:
        with pytest.raises(SystemExit) as ended:
            main([name, "--help"])
        assert ended.value.code == 0
        assert "example: terse" in capsys.readouterr().out


def test_plan_lists_every_problem_at_once_and_exits_with_2(capsys):
    overrides = ["rl.group_size=1", "rollout.top_p=0.9", "rl.lerning_rate=1e-5", "lora.rank=64"]
    assert main(["plan", "--config", "quickstart", *overrides]) == BAD_USAGE
    errors = capsys.readouterr().err
    assert "rl.lerning_rate" in errors
    assert "learning_rate" in errors.split("rl.lerning_rate", 1)[1]


def test_plan_lists_every_wrong_value_at_once(capsys):
    overrides = ["rl.group_size=1", "rollout.top_p=0.9", "lora.rank=64"]
    assert main(["plan", "--config", "quickstart", *overrides]) == BAD_USAGE
    errors = capsys.readouterr().err
    assert all(key in errors for key in ("rl.group_size", "rollout.top_p", "lora.rank"))


def test_plan_shows_the_batch_algebra(capsys):
    assert main(["plan", "--config", "quickstart", "rl.groups_per_step=12", "--json"]) == OK
    plan = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert plan["completions_per_step"] == 96
    # Hidden 192, 6 heads and 3 KV heads of 32, inner 512, 5 layers, 104 tokens, tied embeddings.
    block = 192 * 192 * 2 + 192 * 96 * 2 + 3 * 192 * 512
    assert plan["num_parameters"] == 5 * block + 104 * 192


COMMAND_AND_IMPORTS = """
import sys
from orchestrator.__main__ import main
main()
print(sorted({name.split('.')[0] for name, module in sys.modules.items() if module is not None}))
"""


def plan_of_its_own(directory, *settings):
    """What the command prints as JSON, the packages that its process imported, and its errors."""
    done = subprocess.run(
        [sys.executable, "-c", COMMAND_AND_IMPORTS, "plan", "--config", "quickstart", "--json", *settings],
        capture_output=True,
        text=True,
        check=True,
        cwd=directory,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    *_, plan, packages = done.stdout.splitlines()
    return json.loads(plan), set(ast.literal_eval(packages)), done.stderr


def test_a_plan_imports_nothing_that_models_need(capsys, tmp_path):
    plan, packages, errors = plan_of_its_own(tmp_path)
    assert "transformers" in packages
    heavy = {"torch", "vllm", "deepspeed", "ray", "mlflow", "datasets", "pandas", "scipy", "sklearn", "peft"}
    assert packages & heavy == set()
    assert errors == ""
    # A process that has torch finds the same.
    importlib.import_module("torch")
    assert main(["plan", "--config", "quickstart", "--json"]) == OK
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == plan


def test_a_plan_that_runs_functions_of_others_lets_them_import_torch(tmp_path):
    (tmp_path / "own_losses.py").write_text("import torch\ndef loss(inputs, settings):\n    return inputs\n")
    _, packages, _ = plan_of_its_own(tmp_path, "rl.loss=own_losses:loss")
    assert {"own_losses", "torch"} <= packages


def test_plan_of_a_hub_model_knows_its_size_once_it_is_downloaded(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    arguments = ["plan", "--config", "quickstart", "model.path=org/small"]
    assert main(arguments) == OK
    assert capsys.readouterr().out.count("unknown: the model's config.json is not here yet") == 4
    snapshot = tmp_path / "models--org--small/snapshots/abc"
    snapshot.mkdir(parents=True)
    (tmp_path / "models--org--small/refs").mkdir()
    (tmp_path / "models--org--small/refs/main").write_text("abc")
    (snapshot / "config.json").write_text(
        '{"hidden_size": 1000, "num_attention_heads": 10, "intermediate_size": 2000, "num_hidden_layers": 3, '
        '"vocab_size": 500, "max_position_embeddings": 1024, "tie_word_embeddings": true}'
    )
    assert main(arguments) == OK
    shown = capsys.readouterr().out
    assert "unknown" not in shown
    assert "30.5 M" in shown


def test_a_missing_file_is_named(capsys):
    assert main(["plan", "--config", "no/such.yaml"]) == BAD_USAGE
    assert "no/such.yaml" in capsys.readouterr().err


def test_an_unknown_command_exits_with_2():
    done = subprocess.run([sys.executable, "-m", "orchestrator", "fly"], capture_output=True, text=True, check=False)
    assert done.returncode == BAD_USAGE
    assert "fly" in done.stderr


def test_a_mistake_of_a_person_is_one_line(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    for arguments, words in (
        (["report", str(tmp_path / "nope")], "expected a run directory with config.yaml"),
        (["run", "--config", "quickstart", f"run.dir={tmp_path}/file"], "run.dir: expected a directory"),
        (["export", "--config", "quickstart", f"run.dir={tmp_path}/file"], "run.dir: expected a directory"),
        (["plan", "--config", "quickstart", f"run.dir={tmp_path}/file"], "run.dir: expected a directory"),
    ):
        assert main(arguments) == BAD_USAGE
        errors = capsys.readouterr().err.strip().splitlines()
        assert len(errors) == 1
        assert words in errors[0]


def test_an_unexpected_error_is_one_line_that_names_the_file_with_its_traceback(capsys, tmp_path, monkeypatch):
    def fail(directory):
        raise KeyError("a bug")

    monkeypatch.setattr("orchestrator.api.report", fail)
    assert main(["report", str(tmp_path)]) == FAILED
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line == f"terse report failed: 'a bug' (traceback: {tmp_path / 'errors.log'})"
    assert "KeyError: 'a bug'" in (tmp_path / "errors.log").read_text()


def test_characters_that_a_terminal_lacks_do_not_end_a_command(tmp_path):
    missing = str(tmp_path / "nø")
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator", "report", missing],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )
    assert done.returncode == BAD_USAGE
    assert "n\\xf8: expected a run directory" in done.stderr


def test_a_process_that_is_told_to_end_ends_as_if_interrupted(tmp_path):
    code = (
        "import sys, time; from orchestrator import __main__, pipeline\n"
        "def run(*_):\n    print('runs', flush=True); time.sleep(600)\n"
        "pipeline.run = run\n"
        f"sys.exit(__main__.main(['run', '--config', 'quickstart', 'run.dir={tmp_path}']))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "runs\n"
    process.terminate()
    _, errors = process.communicate()
    assert process.returncode == INTERRUPTED
    assert errors.splitlines()[-1] == "interrupted; the same command goes on from the last saved step"


def test_a_report_is_refused_while_the_run_or_sweep_goes_on(capsys, tmp_path):
    run_dir, sweep_dir = tmp_path / "run", tmp_path / "sweep"
    for directory, name, lock in ((run_dir, "config.yaml", ".lock"), (sweep_dir, "sweep.json", ".sweep.lock")):
        directory.mkdir()
        (directory / name).write_text("{}")
        with run_files.sole_writer(directory, lock):
            assert main(["report", str(directory)]) == BAD_USAGE
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert "another process is running in this directory" in line
        assert {path.name for path in directory.iterdir()} == {name, lock}


def test_settings_stand_before_and_after_options(capsys):
    command = [
        "export",
        "--config",
        "quickstart",
        "run.name=a",
        "--stage",
        "sft",
        "export.merged=true",
        "--json",
        "rl.seed=1",
    ]
    arguments = read_arguments(command)
    assert arguments.overrides == ["run.name=a", "export.merged=true", "rl.seed=1"]
    assert (arguments.stage, arguments.json) == ("sft", True)
    for wrong in (["run", "--config", "quickstart", "a=1", "--no-such"], ["report", "runs/a", "runs/b"]):
        with pytest.raises(SystemExit) as caught:
            read_arguments(wrong)
        assert caught.value.code == 2
        assert f"unrecognized arguments: {wrong[-1]}" in capsys.readouterr().err
