"""What the report makes of scaling and of the switcher."""

import json

import numpy as np
import pytest

from configs.load import dump_config, load_config
from orchestrator.evaluation.scaling import Modes, TaskSamples, scaling_rows, switcher_result
from orchestrator.record import run_files
from orchestrator.report.run import build_report
from orchestrator.report.scaling import scaling_tables, switcher_tables

GREEDY = {"n": 1, "rule": "greedy", "accuracy": 0.6, "accuracy_std": 0.0, "num_tasks": 8, "mean_tokens": 9.0}


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    samples = [
        TaskSamples(
            num_prompt_tokens=20,
            classes=tuple(int(right) for right in correct),
            scores=tuple(rng.random(4)),
            correct=correct,
            tokens=np.full(4, 10),
        )
        for correct in rng.random((8, 4)) < 0.6
    ]
    rows = [{"mode": "base", "cap": 0, **GREEDY}]
    for cap in (0, 50):
        found = scaling_rows(samples, [1, 2, 4], num_draws=5, block_tokens=32, seed=0)
        rows += [{"mode": "reasoning", "cap": cap, **row} for row in found]
        rows += [{"mode": "base", "cap": cap, **row} for row in found if cap == 0]
    for row in rows:
        if row["mode"] == "reasoning" and row["cap"] == 0 and row["rule"] in ("majority", "weighted", "best"):
            row |= {"generate_s": 0.5, "verify_s": 0.02, "tokens_per_s": 20.0 * row["n"]}
    return rows


@pytest.fixture
def switcher():
    modes = Modes(
        base_accuracy=np.array([1.0, 0.0]),
        reasoning_accuracy=np.array([1.0, 1.0]),
        base_tokens=np.array([3.0, 3.0]),
        reasoning_tokens=np.array([20.0, 60.0]),
    )
    return {**switcher_result(np.array([0.2, 0.8]), 0.5, modes), "switch_ms": 0.05}


def test_there_is_a_table_for_every_mode_and_cap_with_what_n_costs(rows):
    base, reasoning, capped = scaling_tables(rows)
    assert [base.title, reasoning.title, capped.title] == ["N completions, one answer", "", ""]
    assert base.columns[0] == "base mode, no cap, 8 tasks; N ="
    assert capped.columns[0] == "reasoning mode, cut at 50 tokens, 8 tasks; N ="
    of_base, of_reasoning, of_capped = (
        {name: cells for name, *cells in table.rows} for table in (base, reasoning, capped)
    )
    assert of_base["greedy"] == ["60.0", "", ""]
    assert of_base["tokens"] == ["10", "20", "40"]
    assert of_reasoning["generate, verify (s)"] == ["0.50, 0.020"] * 3
    assert of_reasoning["peak KV blocks"] == ["1.0", "2.0", "4.0"]
    assert set(of_capped) >= {"majority", "weighted by verifier", "best of N by verifier", "one of N is right"}
    assert " ± " in of_capped["majority"][0]
    assert " ± " not in of_capped["one of N is right"][0]


def test_the_switcher_stands_between_the_pure_modes(switcher):
    (table,) = switcher_tables(switcher)
    assert table.rows == (
        ("base only", "0%", "50.0%", "3.0"),
        ("switcher", "50%", "100.0%", "31.5"),
        ("reasoning only", "100%", "100.0%", "40.0"),
    )
    assert switcher_tables({}) == []


def test_summary_report_and_figures_hold_both(tmp_path, rows, switcher):
    (tmp_path / "config.yaml").write_text(dump_config(load_config("quickstart", [])))
    run_files.write_text(tmp_path / run_files.SCALING_FILE, json.dumps(rows))
    run_files.write_text(tmp_path / run_files.SWITCHER_FILE, json.dumps(switcher))
    html = build_report(tmp_path).read_text()
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["scaling"] == rows
    assert summary["switcher"] == switcher["points"]
    assert "heads" not in summary
    assert "reasoning mode, cut at 50 tokens" in html
    assert "| switcher | 50% | 100.0% | 31.5 |" in (tmp_path / "report.md").read_text()
    for name in ("switcher", "scaling", "sizes"):
        assert (tmp_path / "figures" / f"{name}.png").stat().st_size > 5_000
