"""Protocols of published benchmarks, shipped and of one's own."""

from pathlib import Path

import pytest

from configs.protocols import Protocol, load_protocols, protocol_problems
from configs.schema.protocols import ProtocolsSection

SHARED_DATA = Path(__file__).parents[3] / "shared" / "data"
PUBLISHED = ("gsm8k", "math500", "svamp", "aime24", "aime25", "amc23", "gpqa_diamond", "mmlu_stem")


def test_the_shipped_protocols_have_the_papers_runs_and_sampling():
    found = {protocol.name: protocol for protocol in load_protocols(ProtocolsSection(names=PUBLISHED))}
    runs = {name: protocol.num_runs for name, protocol in found.items()}
    assert runs == {
        **dict.fromkeys(("gsm8k", "math500", "svamp", "mmlu_stem"), 1),
        **dict.fromkeys(("aime24", "aime25", "amc23"), 10),
        "gpqa_diamond": 4,
    }
    for protocol in found.values():
        assert (protocol.temperature, protocol.top_p, protocol.max_completion_tokens) == (0.6, 0.95, 32768)


def test_a_file_in_data_dir_comes_before_the_hub(tmp_path):
    (tmp_path / "math500.jsonl").write_text("{}\n")
    section = ProtocolsSection(names=("math500", "gsm8k"), data_dir=str(tmp_path))
    math500, gsm8k = load_protocols(section)
    assert math500.source.source == str(tmp_path / "math500.jsonl")
    assert (gsm8k.source.source, gsm8k.source.subset, gsm8k.source.split) == ("openai/gsm8k", "main", "test")


def test_a_file_of_ones_own_changes_single_settings_and_adds_protocols(tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text("math500: {temperature: 0.7, top_p: 1.0}\nmine: {source: org/mine, answer_field: solution}\n")
    math500, mine = load_protocols(ProtocolsSection(names=("math500", "mine"), file=str(own)))
    assert (math500.temperature, math500.top_p, math500.num_runs) == (0.7, 1.0, 1)
    assert math500.source.preset == "math500"
    assert mine == Protocol(name="mine", source=mine.source)
    assert (mine.source.source, mine.source.answer_field) == ("org/mine", "solution")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("mine: {sauce: org/x}", "mine: sauce: unknown key; did you mean source?"),
        ("mine: {num_runs: 0}", "mine: num_runs: expected at least 1, found 0"),
        ("mine: {num_runs: many}", "mine: num_runs: expected an integer, found 'many'"),
        ("mine: {temperature: true}", "mine: temperature: expected a number, found True"),
        ("mine: {top_p: 1.5}", "mine: top_p: expected above 0 and at most 1, found 1.5"),
        ("mine: {labels: yes}", "mine: labels: expected a list, found True"),
        ("mine: {preset: gsm9k}", "mine: preset: expected one of none, gsm8k"),
        ("mine: 3", "expected names of protocols with settings under each"),
        ("mine: [", "expected a YAML file, found"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(tmp_path, text, problem):
    own = tmp_path / "own.yaml"
    own.write_text(text)
    assert any(problem in found for found in protocol_problems(ProtocolsSection(file=str(own))))


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"names": ("math50",)}, "found 'math50'; did you mean math500?"),
        ({"names": ("strategyqa",)}, "expected a directory with strategyqa.json for strategyqa"),
        ({"data_dir": "/nowhere"}, "protocols.data_dir: expected a directory, found none at /nowhere"),
        ({"file": "/nowhere.yaml"}, "protocols.file: expected a YAML file, found /nowhere.yaml"),
    ],
)
def test_what_is_wrong_in_the_section_is_named(settings, problem):
    (found,) = protocol_problems(ProtocolsSection(**settings))
    assert problem in found


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="benchmark files are not here")
@pytest.mark.parametrize(
    ("name", "num_rows", "answer"),
    [
        ("gsm8k", 1319, "18"),
        ("math500", 500, None),
        ("svamp", 1000, "145"),
        ("addsub", 395, "43"),
        ("aime24", 30, "204"),
        ("amc23", 40, "27"),
        ("mmlu_stem", 3018, "C"),
        ("strategyqa", 2290, "yes"),
    ],
)
def test_every_row_of_the_published_files_is_a_task(name, num_rows, answer, tmp_path, monkeypatch):
    from orchestrator.data.tasks import load_tasks

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    (protocol,) = load_protocols(ProtocolsSection(names=(name,), data_dir=str(SHARED_DATA)))
    tasks = load_tasks(protocol.source)
    assert len(tasks) == num_rows
    assert answer is None or tasks[0].reference_answer == answer
    assert "\\boxed{}" in tasks[0].messages[0]["content"]
