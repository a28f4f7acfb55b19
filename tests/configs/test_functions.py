"""Functions that a configuration names: their form, whether they are there, and what is written down of them."""

import importlib
import re
import sys

import pytest

from configs import built_ins
from configs.axes import split_axes
from configs.errors import UserError
from configs.functions import call_problem, load_function, name_problem, search_working_directory, source_digest
from configs.load import ConfigError, as_flat_dict, dump_config, load_config
from configs.named_functions import with_functions

TABLES = [
    (name, table)
    for name in ("VERIFIERS", "LENGTH_REWARDS", "LOSSES", "ADVANTAGES", "SAME_ANSWER")
    for table in [getattr(built_ins, name)]
]


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """`my_rewards.py` in the working directory, which is not on the search path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    source = tmp_path / "my_rewards.py"
    source.write_text("def check(text, reference, *, words=()):\n    return reference.answer in text\n")
    yield source
    sys.modules.pop("my_rewards", None)
    importlib.invalidate_caches()


@pytest.mark.parametrize(("table", "targets"), TABLES, ids=[name for name, _ in TABLES])
def test_every_built_in_name_has_a_function(table, targets):
    for name in targets:
        assert callable(load_function(table, name, targets))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mth", "expected one of math, label, .*or package.module:function, found 'mth'; did you mean math?"),
        ("a b:c", "expected one of .*found 'a b:c'"),
        ("no_such_package.checks:f", "a module that can be imported, .*No module named 'no_such_package'.*on node"),
        ("rewards.math_answer:verify_mat", "a function, .*has none of that name; did you mean verify_math?"),
        ("rewards.base:THINK_OPEN", "expected a function, found 'rewards.base:THINK_OPEN'"),
    ],
)
def test_a_name_without_a_function_is_refused(name, words):
    with pytest.raises(UserError, match=rf"^reward.verifier: .*{words}"):
        load_function("reward.verifier", name, built_ins.VERIFIERS)


def test_a_module_that_raises_when_it_is_imported_is_named(own_module):
    own_module.write_text("1 / 0\n")
    search_working_directory()
    with pytest.raises(UserError, match=r"reward.verifier: .*'my_rewards:check': ZeroDivisionError"):
        load_function("reward.verifier", "my_rewards:check", {})


def test_settings_that_a_function_does_not_take_are_refused():
    problem = call_problem("rl.advantage", sorted, 1, {"revers": True})
    assert problem.startswith("rl.advantage_args: expected settings that builtins:sorted")
    assert "unexpected keyword argument 'revers'" in problem
    assert call_problem("rl.advantage", sorted, 1, {"reverse": True}) == ""
    assert "missing a required argument: 'b'" in call_problem("rl.loss", lambda a, *, b: a, 1, {})


def test_functions_of_the_working_directory_are_found_and_their_source_is_written_down(own_module):
    overrides = ["reward.verifier=my_rewards:check", "reward.verifier_args.words=[a,b]"]
    config = load_config("quickstart", overrides)
    assert config.run.functions == ()
    written = with_functions(config).run.functions
    assert written == (f"my_rewards:check sha256:{source_digest('my_rewards:check')}",)
    assert re.fullmatch(r"my_rewards:check sha256:[0-9a-f]{16}", written[0])
    own_module.write_text(own_module.read_text() + "\n# changed\n")
    assert with_functions(config).run.functions != written
    with pytest.raises(UserError, match=r"reward.verifier_args: expected settings .*found {'tolerance': 1}"):
        with_functions(load_config("quickstart", [overrides[0], "reward.verifier_args.tolerance=1"]))


def test_a_configuration_without_functions_imports_nothing_and_searches_nowhere(monkeypatch):
    monkeypatch.setattr(sys, "path", list(before := [path for path in sys.path if path]))
    assert with_functions(load_config("quickstart")).run.functions == ()
    assert sys.path == before


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("reward.length=brief", "reward.length: expected one of none, soft_barrier, .*found 'brief'"),
        ("rl.loss=ppo", "rl.loss: expected one of grpo, gspo, cispo, or package.module:function, found 'ppo'"),
        ("rl.advantage_args.scale=2", "rl.advantage_args: expected none with rl.advantage=grpo, found {'scale': 2}"),
        ("data.train.source_args.n=2", "data.train.source_args: expected none for a source that is no function"),
        ("data.train.verifier_args={total_timeout_s: 9}", "data.train.verifier_args: expected none without verifier"),
        ("data.train.verifier=mat", "data.train.verifier: expected one of math, .*did you mean math"),
        ("data.train.verifier_args.n=2", "data.train.verifier_args: expected none without verifier"),
        ("reward.verifier_args=3", "reward.verifier_args: expected names with values, found 3"),
        ("reward.verifier_args={1: 2}", "reward.verifier_args: expected names of arguments, found 1"),
        ("reward.verifier.x=1", "reward.verifier.x: unknown key; did you mean reward.verifier?"),
    ],
)
def test_what_is_wrong_with_names_and_arguments_is_one_line(override, words):
    with pytest.raises(ConfigError) as caught:
        load_config("quickstart", [override])
    assert [problem for problem in caught.value.problems if re.search(words, problem)], caught.value


def test_arguments_come_from_file_and_command_line_and_go_back_to_yaml(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("reward:\n  verifier: my:check\n  verifier_args:\n    tolerance: 0.1\n    words: {low: [a]}\n")
    config = load_config(path, ["reward.verifier_args.tolerance=0.2", "run.name=own"])
    assert config.reward.verifier_args == {"tolerance": 0.2, "words": {"low": ["a"]}}
    again = tmp_path / "again.yaml"
    again.write_text(dump_config(config))
    assert load_config(again) == config
    flat = as_flat_dict(config)
    assert flat["reward.verifier_args.tolerance"] == "0.2"
    assert flat["reward.verifier_args.words"] == '{"low": ["a"]}'
    assert split_axes(["reward.verifier_args.tolerance=[0.1,0.2]"]) == (
        {"reward.verifier_args.tolerance": [0.1, 0.2]},
        [],
    )


def test_an_argument_takes_no_secret_from_the_environment(monkeypatch):
    monkeypatch.setenv("MY_API_KEY", "abc")
    with pytest.raises(ConfigError, match="expected no secret"):
        load_config("quickstart", ["reward.verifier=a:b", "reward.verifier_args.key=${oc.env:MY_API_KEY}"])


def test_name_problem_takes_any_module():
    assert name_problem("rl.loss", "package.module:function", {}) == ""
