"""Files and overrides become a frozen config, or an error that lists everything that is wrong."""

import dataclasses
import pickle
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.layers import shipped_names
from configs.load import ConfigError, as_flat_dict, dump_config, load_config
from configs.schema.run import RunConfig


def refused(path: Path | str | None, *overrides: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return caught.value.problems


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return path


def test_a_bare_name_means_a_shipped_file():
    config = load_config("quickstart", [])
    assert config.run.name == "quickstart"
    assert config.model.dtype == "float32"  # what the file says
    assert config.budget.prompt_template == "{question}\nBudget: {budget_tokens}"
    assert config.rl.group_size == RunConfig().rl.group_size  # what the file does not say


def test_a_later_override_wins_over_the_file_and_earlier_ones():
    config = load_config("quickstart", ["rl.learning_rate=1e-3", "rl.num_steps=7", "rl.num_steps=9"])
    assert (config.rl.learning_rate, config.rl.num_steps) == (1e-3, 9)


def test_overrides_take_lists_numbers_truth_values_and_text():
    config = load_config(
        "quickstart",
        [
            "budget.buckets_tokens=[40,80]",
            "lora.target_modules=[q_proj, v_proj]",
            "data.sft.verbosity=[0, 0.5]",
            "learner.gradient_checkpointing=true",
            "run.name=1e3",
            "budget.prompt_template={question} within {budget_tokens}: go",
            'data.train.system_prompt="two\\nlines"',
        ],
    )
    assert config.budget.buckets_tokens == (40, 80)
    assert config.lora.target_modules == ("q_proj", "v_proj")
    assert config.data.sft.verbosity == (0.0, 0.5)
    assert config.learner.gradient_checkpointing is True
    assert config.run.name == "1e3"
    assert config.budget.prompt_template == "{question} within {budget_tokens}: go"
    assert config.data.train[0].system_prompt == "two\nlines"


def test_a_section_may_be_given_as_a_mapping_or_stay_empty(tmp_path):
    path = write(tmp_path, dump_config(load_config("quickstart")) + "\n")
    config = load_config(path, ["rl={num_steps: 3, group_size: 4}"])
    assert (config.rl.num_steps, config.rl.group_size) == (3, 4)
    assert "expected a section" in refused("quickstart", "rl=3")[0]
    assert load_config(write(tmp_path, path.read_text().split("cluster:")[0] + "cluster:\n")).cluster.address == ""


def test_the_config_is_frozen():
    config = load_config("quickstart")
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.rl.num_steps = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("key", "suggestion"),
    [
        ("rl.group_sise", "rl.group_size"),
        ("group_size", "rl.group_size"),
        ("rolout.temperature", "rollout.temperature"),
        ("optimizer.warmup_frac", "sft.warmup_frac or rl.warmup_frac"),
    ],
)
def test_an_unknown_key_gets_a_suggestion(key, suggestion):
    assert refused("quickstart", f"{key}=3") == (f"command line: {key}: unknown key; did you mean {suggestion}?",)


def test_a_key_like_no_other_gets_no_suggestion():
    assert refused("quickstart", "xyzzy=3") == ("command line: xyzzy: unknown key",)


@pytest.mark.parametrize(
    ("override", "expected", "found"),
    [
        ("rl.num_steps=abc", "an integer", "'abc' (str)"),
        ("rl.num_steps=1.5", "an integer", "1.5 (float)"),
        ("rl.num_steps=true", "an integer", "True (bool)"),
        ("rl.num_steps=", "an integer", "nothing"),
        ("rl.kl_beta=much", "a number", "'much' (str)"),
        ("data.train.held_out=perhaps", "true or false", "'perhaps' (str)"),
        ("model.dtype=float16", "one of float32, bfloat16", "'float16' (str)"),
        ("budget.buckets_tokens=40", "a list of integers", "40 (int)"),
        ("budget.buckets_tokens=[40, x]", "a list of integers", "[40, 'x'] (list)"),
        ("lora.target_modules=[[q_proj]]", "a list of texts", "[['q_proj']] (list)"),
    ],
)
def test_a_wrong_type_names_key_expected_and_found(override, expected, found):
    key = override.partition("=")[0]
    assert refused("quickstart", override) == (f"command line: {key}: expected {expected}, found {found}",)


def test_text_settings_take_no_lists(tmp_path):
    assert refused(write(tmp_path, "run:\n  dir: [a]\n"))[0].endswith("run.dir: expected text, found ['a'] (list)")


def test_every_problem_is_listed_at_once(tmp_path):
    path = write(
        tmp_path,
        "rl:\n  group_sise: 4\n  num_steps: many\nrollout:\n  max_completion_tokens: 100\n  top_p: 0.9\n"
        "evaluation:\n  max_completion_tokens: 100\n",
    )
    problems = refused(path, "nonsense", "rl.group_size=1", "budget.buckets_tokens=x")
    assert [problem.split(": expected")[0].split(": unknown")[0] for problem in problems] == [
        f"{path}: rl.group_sise",
        "command line",
        f"{path}: rl.num_steps",
        "command line: budget.buckets_tokens",
        "rl.group_size",
        "rollout.top_p",
    ]


def test_the_error_survives_pickling_and_reads_as_a_list():
    error = pickle.loads(pickle.dumps(ConfigError(["a: wrong", "b: wrong"])))
    assert error.problems == ("a: wrong", "b: wrong")
    assert str(error) == "2 configuration problems:\n  - a: wrong\n  - b: wrong"


def test_a_missing_file_names_what_there_is():
    (problem,) = refused("quickstrt")
    assert problem.startswith("quickstrt: no such file; did you mean quickstart? shipped configs: ")
    assert all(name in problem for name in shipped_names())


def test_bad_yaml_names_the_line(tmp_path):
    (problem,) = refused(write(tmp_path, "rl:\n  num_steps: 3\n  num_steps: 4\n"))
    assert problem.endswith("mine.yaml, line 3: not YAML: found duplicate key num_steps")
    assert "expected sections" in refused(write(tmp_path, "- rl\n"))[0]


def test_environment_variables_can_be_named(monkeypatch):
    monkeypatch.setenv("TERSE_TEST_DIR", "elsewhere")
    assert load_config("quickstart", ["run.dir=${oc.env:TERSE_TEST_DIR}"]).run.dir == "elsewhere"
    assert refused("quickstart", "run.dir=${oc.env:TERSE_TEST_NOT_SET}")[0].startswith("command line: run.dir: ")


@settings(deadline=None, max_examples=20)
@given(
    text=st.text(st.sampled_from("a{}$\\'\": #\n0é"), max_size=12).map(str.strip),
    buckets=st.lists(st.integers(1, 200), min_size=1, max_size=4),
    rate=st.floats(1e-12, 1.0),
)
def test_a_dumped_config_loads_back_equal(tmp_path_factory, text, buckets, rate):
    base = load_config("quickstart")
    config = dataclasses.replace(
        base,
        tracking=dataclasses.replace(base.tracking, uri=text),
        budget=dataclasses.replace(base.budget, buckets_tokens=tuple(buckets)),
        rl=dataclasses.replace(base.rl, learning_rate=rate),
    )
    path = tmp_path_factory.mktemp("dump") / "config.yaml"
    path.write_text(dump_config(config))
    assert load_config(path) == config


def test_a_dump_is_complete():
    dumped = dump_config(load_config("quickstart"))
    names = [key.rpartition(".")[2] for key in as_flat_dict(RunConfig())]
    assert all(f"{name}:" in dumped for name in names)


def test_flat_dict_has_dotted_keys_and_scalars():
    flat = as_flat_dict(load_config("quickstart", ["budget.buckets_tokens=[30,60]", "rl.learning_rate=3e-4"]))
    assert flat["budget.buckets_tokens"] == "30,60"
    assert flat["data.train.source"] == "arithmetic"
    assert flat["rl.learning_rate"] == 3e-4
    assert all(isinstance(value, str | int | float | bool) for value in flat.values())


@pytest.mark.parametrize("name", shipped_names())
def test_every_shipped_config_is_right_but_for_files_that_the_user_brings(name):
    if name not in ("smollm2_135m_cpu", "qwen2_0.5b_cpu"):
        assert load_config(name).run.name == name
        return
    try:
        problems = ()
        load_config(name)
    except ConfigError as error:
        problems = error.problems
    assert [p for p in problems if "no file data/" not in p and "fetch-model" not in p] == []


MIXTURE = "data.train=[{source: arithmetic, name: sums, weight: 2}, {name: easy, difficulties: [1]}]"


def test_a_list_of_sources_is_a_mixture_and_goes_back_to_yaml(tmp_path):
    config = load_config("quickstart", [MIXTURE, "data.train.1.num_tasks=7", "data.evaluation.difficulties=[2]"])
    assert [(source.label, source.weight, source.num_tasks) for source in config.data.train] == [
        ("sums", 2.0, 0),
        ("easy", 1.0, 7),
    ]
    assert [(source.difficulties, source.held_out) for source in config.data.evaluation] == [((2,), True)]
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config))
    assert load_config(path) == config
    flat = as_flat_dict(config)
    assert flat["data.train.1.num_tasks"] == 7
    assert flat["data.evaluation.difficulties"] == "2"
    assert "data.train.num_tasks" not in flat


def test_a_list_on_the_command_line_replaces_the_files_source(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("data:\n  train:\n    difficulties: [1]\n    system_prompt: x\n")
    assert [source.system_prompt for source in load_config(path, [MIXTURE]).data.train] == ["", ""]
    path.write_text("data:\n  train:\n    - {name: a, difficulties: [1]}\n    - {name: b}\n")
    config = load_config(path, ["data.train.0.difficulties=[3]"])
    assert [source.difficulties for source in config.data.train] == [(3,), (1, 2, 3, 4)]


def test_interpolations_work_within_a_mixture(monkeypatch):
    monkeypatch.setenv("TERSE_PROMPT", "Be brief.")
    config = load_config("quickstart", ["data.train=[{name: a, system_prompt: '${oc.env:TERSE_PROMPT}'}, {name: b}]"])
    assert config.data.train[0].system_prompt == "Be brief."


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data.train=[]"], "data.train: expected at least one section, found an empty list"),
        (
            [MIXTURE, "data.train.num_tasks=3"],
            "data.train.num_tasks: expected one of the 2 of data.train, such as data.train.0.num",
        ),
        (["data.train=[3]"], r"data.train.0: expected a section with settings, found 3 \(int\)"),
        (["data.train.3.num_tasks=1"], "data.train.3.num_tasks: expected a number below 1"),
        (["data.train=[{splitt: x}]"], "data.train.0.splitt: unknown key; did you mean data.train.split"),
        (["data.train=[{name: a}, {name: a}]"], "data.train.name: expected a name of its own for each source"),
        (["data.train=[{name: a, num_tasks: -1}, {name: b}]"], "data.train.0.num_tasks: expected at least 0, found -1"),
        (["data.train=[{name: a, weight: 0}, {name: b}]"], "data.train.0.weight: expected above 0, found 0"),
        (["data.train=[{name: a b}, {name: b}]"], "data.train.0.name: expected letters, digits"),
        (
            ["data.train=[{name: a, buckets_tokens: [0]}, {name: b}]"],
            "data.train.0.buckets_tokens: expected a list of budgets",
        ),
        (["data.train.prompt_template=x"], "data.train.prompt_template: expected {question} and {budget_tokens}"),
        (["data.train=3"], "data.train: expected a section with settings, found 3"),
    ],
)
def test_what_is_wrong_with_a_mixture_is_one_line(overrides, words):
    with pytest.raises(ConfigError) as caught:
        load_config("quickstart", overrides)
    assert [problem for problem in caught.value.problems if re.search(words, problem)], caught.value
