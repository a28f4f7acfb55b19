import json
from dataclasses import replace

import pytest

from configs.errors import UserError
from configs.load import dump_config, load_config
from orchestrator.pipeline import final_metrics
from orchestrator.record import events, run_files
from orchestrator.record.events import Event
from orchestrator.report.figures import running_mean
from orchestrator.report.run import build_report, headline, terminal_table
from tests.fakes import make_group, make_sample_rows
from tests.orchestrator.record.test_metrics import make_record


@pytest.fixture
def run_dir(tmp_path):
    (tmp_path / "config.yaml").write_text(dump_config(load_config("quickstart", [])))
    for step in range(1, 6):
        run_files.append_metrics(tmp_path, "sft", step, {"train/loss": 1 / step})
        numbers = {
            "reward/accuracy": 0.5,
            "reward/mean": 0.4,
            "rollout/completion_tokens_mean": 100.0 - step,
            "rollout/completion_tokens_p95": 150.0,
            "rollout/logprob_gap_mean": 1e-5,
            "train/entropy": 0.1,
            "train/grad_norm": 0.2,
            "time/rollout_s": 1.0,
            "time/update_s": 0.5,
            "time/publish_s": 0.01,
            "time/step_s": 1.6,
        }
        run_files.append_metrics(tmp_path, "rl", step, numbers)
    for policy, tokens in (("base", 3), ("sft", 100), ("rl", 50)):
        records = [make_record(f"fake/{i}", [tokens], [i % 4 > 0], difficulty=1 + i % 2) for i in range(20)]
        groups = [make_group([1.0], group_id=i) for i in range(20)]
        samples = make_sample_rows(groups, "1 < 2 & <script>alert(1)</script>")
        run_files.write_evaluation(tmp_path, policy, records, samples)
    run_files.add_timing(tmp_path, "rl", 12.0)
    return tmp_path


def test_the_summary_has_what_programs_read(run_dir):
    build_report(run_dir)
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["stages"]["rl"]["accuracy"] == pytest.approx(0.75)
    assert summary["stages"]["rl"]["num_tasks"] == 20
    assert summary["length_reduction"]["ratio_of_means"] == pytest.approx(2.0)
    assert summary["wall_s"] == 12.0
    assert set(summary["versions"]) >= {"commit", "torch"}


def test_the_report_says_where_tokens_go_by_source_and_by_budget(run_dir):
    for policy, tokens in (("base", 3), ("sft", 100), ("rl", 50)):
        records = [
            replace(
                make_record(f"fake/{i}", [tokens + i], [i % 4 > 0]), source="ab"[i % 2], budget_tokens=(50, 90)[i % 2]
            )
            for i in range(20)
        ]
        samples = make_sample_rows([make_group([1.0], group_id=i) for i in range(20)], "1+1=?")
        run_files.write_evaluation(run_dir, policy, records, samples)
    html = build_report(run_dir).read_text()
    assert html.count("data:image/png;base64,") == 8
    assert (run_dir / "figures" / "obedience.png").stat().st_size > 10_000
    lines = (run_dir / "report.md").read_text().splitlines()
    assert [line for line in lines if line.startswith("| a | after RL | 50.0% |")]
    assert [line for line in lines if line.startswith("| after RL | 18% off, 10% within | 33% off, 100% within |")]
    assert [line for line in lines if line.startswith("| after RL | 60.0 | 58.0 | 79.3 | 0.0% |")]
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["sources"]["rl"]["b"]["accuracy"] == 1.0
    assert summary["budgets"]["rl"]["90"]["within_budget_frac"] == 1.0


def test_the_reports_show_the_result_and_escape_what_models_write(run_dir):
    html = build_report(run_dir).read_text()
    assert "2.00 times shorter" in html
    assert "<script>alert" not in html
    assert html.count("data:image/png;base64,") == 7
    markdown = (run_dir / "report.md").read_text()
    assert "| after RL | 75.0% |" in markdown
    assert (run_dir / "figures" / "training.png").stat().st_size > 10_000


def test_the_reports_list_what_happened_besides_steps(run_dir):
    assert "What happened" not in build_report(run_dir).read_text()
    events.append(run_dir, "rl", Event.CHECKPOINT, 4, size_bytes=1)
    events.append(run_dir, "rl", Event.CHECKPOINT_SKIPPED, None, problem="rl/step_000004/state.json: <a | b>")
    html = build_report(run_dir).read_text()
    assert "1 × checkpoint; 1 × checkpoint skipped" in html
    assert "problem: rl/step_000004/state.json: &lt;a | b&gt;" in html
    lines = (run_dir / "report.md").read_text().splitlines()
    (row,) = [line for line in lines if "| checkpoint skipped |" in line]
    assert row.endswith("| problem: rl/step_000004/state.json: &lt;a \\| b> |")


def test_parts_that_were_not_run_are_left_out(run_dir):
    for path in (run_dir / "evaluation").iterdir():
        path.unlink()
    (run_dir / run_files.METRICS_FILE).unlink()
    assert "has not been evaluated" in build_report(run_dir).read_text()
    assert json.loads((run_dir / "summary.json").read_text())["stages"] == {}


def test_a_run_without_sft_is_compared_with_the_base(run_dir):
    (run_dir / "evaluation" / "base.jsonl").unlink()
    (run_dir / "evaluation" / "sft.jsonl").rename(run_dir / "evaluation" / "base.jsonl")
    html = build_report(run_dir).read_text()
    assert "2.00 times shorter (100 → 50 tokens)" in html
    assert {"lengths.png", "reduction.png"} <= {path.name for path in (run_dir / "figures").iterdir()}
    lines = terminal_table(json.loads((run_dir / "summary.json").read_text())).splitlines()
    assert [line.split("  ")[0] for line in lines[1:3]] == ["base", "after RL"]
    assert final_metrics(run_dir)["eval/length_reduction"] == pytest.approx(2.0)


def test_a_directory_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"expected a run directory with config\.yaml"):
        build_report(tmp_path)


def test_the_terminal_table_lists_the_policies(run_dir):
    build_report(run_dir)
    table = terminal_table(json.loads((run_dir / "summary.json").read_text()))
    assert [line.split("  ")[0] for line in table.splitlines()[1:4]] == ["base", "after SFT", "after RL"]
    assert "2.00×" in table


def test_the_headline_gives_the_change_in_points():
    stages = {"sft": {"accuracy": 0.9, "mean_tokens": 100}, "rl": {"accuracy": 0.88, "mean_tokens": 40}}
    text = headline({"stages": stages, "length_reduction": {"ratio_of_means": 2.5}})
    assert "2.50 times shorter (100 → 40 tokens)" in text
    assert "(-2.0 points)" in text


def test_running_mean_is_shorter_at_the_ends():
    assert running_mean([0, 3, 6], 3).tolist() == [1.5, 3.0, 4.5]
