"""`import terse`: what it gives, what it costs, and that the command line goes through the same door."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import terse
from orchestrator import api
from orchestrator.__main__ import OK, main

ROOT = Path(__file__).resolve().parents[2]


def test_every_name_that_is_offered_is_there_and_others_are_refused():
    for name in terse.__all__:
        assert getattr(terse, name) is not None
    assert dir(terse) == sorted(terse.__all__)
    with pytest.raises(
        AttributeError,
        match="module 'terse' has no attribute 'train'; it has AdvantageEstimator, Answer, AnswerVerdict",
    ):
        _ = terse.train


def test_type_checkers_see_the_names_that_are_there():
    tree = ast.parse((ROOT / "terse" / "__init__.py").read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    imports = {
        alias.asname: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert imports == terse._PLACES
    assert (ROOT / "terse" / "py.typed").is_file()


def test_importing_it_imports_nothing_else():
    code = "import sys; before = set(sys.modules); import terse; print(sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in ast.literal_eval(done.stdout)}
    assert loaded - set(sys.stdlib_module_names) == {"terse"}


def test_settings_are_what_the_command_line_has():
    values = {
        "rl.kl_beta": 1e-3,
        "budget.buckets_tokens": [40, 80],
        "run.name": "it.s",
        "run.deterministic": True,
        "run.dir": Path("somewhere"),
        "budget.prompt_template": "{question}\n{budget_tokens}",
    }
    config = terse.load_config("quickstart", values)
    assert (config.rl.kl_beta, config.run.name, config.run.dir) == (1e-3, "it.s", "somewhere")
    assert (config.budget.buckets_tokens, config.run.deterministic) == ((40, 80), True)
    assert config.budget.prompt_template == "{question}\n{budget_tokens}"
    with pytest.raises(terse.ConfigError, match=r"rl.kl_betta: unknown key; did you mean rl.kl_beta\?"):
        terse.load_config("quickstart", {"rl.kl_betta": 1})
    with pytest.raises(terse.ConfigError, match="settings: expected texts, numbers"):
        terse.load_config("quickstart", {"rl.kl_beta": object()})


def test_an_unknown_stage_is_refused_before_anything_starts(tmp_path):
    config = terse.load_config("quickstart", {"run.dir": tmp_path})
    with pytest.raises(ValueError, match=r"stages: expected some of sft, rl, .*, found train"):
        terse.run(config, ["train"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("command", "function"),
    [
        ("plan", "plan"),
        ("run", "run"),
        ("quickstart", "run"),
        ("sft", "run"),
        ("train", "run"),
        ("fit-heads", "run"),
        ("evaluate", "evaluate"),
        ("export", "export"),
        ("sweep", "sweep"),
        ("report", "report"),
        ("status", "status"),
    ],
)
def test_each_command_calls_the_function_that_python_has(command, function, tmp_path, monkeypatch, capsys):
    called = []

    def instead(*arguments, **settings):
        called.append(function)
        raise KeyboardInterrupt

    monkeypatch.setattr(api, function, instead)
    where = [str(tmp_path)] if command in ("report", "status") else ["--config", "quickstart", f"run.dir={tmp_path}"]
    assert main([command, *where]) != OK
    assert called == [function]
