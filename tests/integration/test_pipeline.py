"""The whole pipeline with real vLLM, DeepSpeed, Ray, math-verify and MLflow: interrupted, resumed, finished."""

import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from actors.heads import read_heads
from orchestrator.record import run_files

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = [
    "run.name=small",
    "lora.rank=8",
    "lora.alpha=16",
    "engine.max_lora_rank=8",
    "engine.max_num_seqs=32",
    "sft.num_steps=12",
    "sft.rows_per_step=16",
    "sft.learning_rate=4e-3",
    "rl.num_steps=4",
    "rl.groups_per_step=4",
    "rl.group_size=4",
    "rl.kl_beta=1e-3",
    "rl.max_staleness=1",
    "rl.checkpoint_every_steps=100",
    "rl.evaluate_every_steps=3",
    "rollout.max_completion_tokens=64",
    "data.train.difficulties=[1]",
    "budget.buckets_tokens=[40]",
    "evaluation.num_tasks=8",
    "evaluation.max_completion_tokens=64",
    "evaluation.caps_tokens=[16,32]",
    "heads.num_tasks=12",
    "heads.samples_per_task=2",
    "scaling.num_tasks=4",
    "scaling.samples_per_task=4",
    "scaling.sizes=[1,2,4]",
    "scaling.caps_tokens=[16]",
    "scaling.num_timed_tasks=1",
    # With eight prompts one near tie is an eighth.
    "export.min_greedy_agreement=0.8",
]


PROTOCOLS = """
sums: {file: sums.jsonl, num_runs: 2, temperature: 0.5, question_template: "{question}"}
signs:
  file: signs.jsonl
  question_template: "{question}"
  choice_fields: [choices]
"""


def protocol_settings(run_root: Path) -> list[str]:
    """Two benchmarks in the embedded model's own alphabet."""
    (run_root / "protocols.yaml").write_text(PROTOCOLS)
    sums = [{"question": f"{n}+{n}=?", "answer": str(2 * n)} for n in (11, 12, 13)]
    signs = [{"question": "1+1=?", "choices": ["2", "3"], "answer": 0}]
    for name, rows in (("sums", sums), ("signs", signs)):
        (run_root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [
        "protocols.names=[sums,signs]",
        f"protocols.file={run_root}/protocols.yaml",
        f"protocols.data_dir={run_root}",
    ]


def start(run_root: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "orchestrator", "run", "--config", "quickstart", "--json"]
    return subprocess.Popen(
        [*command, f"run.dir={run_root}", *SETTINGS, "rl.keep_best=accuracy", *protocol_settings(run_root)],
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.fixture(scope="module")
def interrupted_and_resumed(tmp_path_factory):
    """(run directory, exit status of the interrupted call, finished process, its output)"""
    root = tmp_path_factory.mktemp("runs")
    first = start(root)
    lines = []
    for line in first.stderr:
        lines.append(line)
        if "rl step 1/4" in line:
            # To the whole group, as a terminal does: Ray's and vLLM's processes get it too.
            os.killpg(first.pid, signal.SIGINT)
            break
    _, rest = first.communicate(timeout=120)
    assert any("rl step 1/4" in line for line in lines), "".join(lines) + rest
    second = start(root)
    output, errors = second.communicate(timeout=300)
    assert second.returncode == 0, errors
    return root / "small", (first.returncode, rest), output


def test_ctrl_c_ends_cleanly_after_the_step_and_says_how_to_go_on(interrupted_and_resumed):
    _, (status, errors), _ = interrupted_and_resumed
    assert status == 130
    assert "the same command goes on from the last saved step" in errors.splitlines()[-1]


def test_the_resumed_run_takes_every_step_once(interrupted_and_resumed):
    run_dir, _, _ = interrupted_and_resumed
    steps = [(row["stage"], row["step"]) for row in run_files.read_metrics(run_dir)]
    assert steps == [("sft", step) for step in range(1, 13)] + [("rl", step) for step in range(1, 5)]


def test_engine_and_learner_agree_about_logprobs(interrupted_and_resumed):
    run_dir, _, _ = interrupted_and_resumed
    rows = [row for row in run_files.read_metrics(run_dir) if row["stage"] == "rl"]
    fresh = [row for row in rows if row["rollout/staleness_max"] == 0]
    assert fresh
    assert all(row["rollout/logprob_gap_max"] < 1e-3 for row in fresh)
    assert all(row["rollout/staleness_max"] <= 1 for row in rows)


def test_the_run_directory_holds_what_the_design_says(interrupted_and_resumed):
    run_dir, _, output = interrupted_and_resumed
    summary = json.loads((run_dir / "summary.json").read_text())
    assert set(summary["stages"]) == {"base", "sft", "rl"}
    assert all(stage["num_tasks"] == 8 for stage in summary["stages"].values())
    files = ("config.yaml", "report.html", "report.md", "figures/training.png", "rl/step_000004/state.json")
    for name in (
        *files,
        "heads/heads.safetensors",
        "heads/metrics.json",
        "export/manifest.json",
        "export/MODEL_CARD.md",
        "parity.json",
        "figures/switcher.png",
        "figures/obedience.png",
        "figures/scaling.png",
    ):
        assert (run_dir / name).is_file(), name
    best = json.loads((run_dir / "rl" / "best.json").read_text())
    assert [row["step"] for row in best["seen"]] == [0, 3]
    assert (run_dir / "rl" / f"best_{best['best']:06d}" / "adapter_model.safetensors").is_file()
    grid = {(row["mode"], row["cap"], row["n"], row["rule"]) for row in summary["scaling"]}
    rules = ("majority", "weighted", "best", "pass")
    greedy = {(mode, 0, 1, "greedy") for mode in ("base", "reasoning")}
    assert grid == greedy | set(itertools.product(("base", "reasoning"), (0, 16), (1, 2, 4), rules))
    assert {point["router"] for point in summary["switcher"]} == {"base", "reasoning", "chosen", "switcher", "oracle"}
    rows = {(row["protocol"], row["policy"]): row for row in summary["protocols"]}
    assert set(rows) == set(itertools.product(("sums", "signs"), ("base", "sft", "rl")))
    assert rows["sums", "rl"]["num_tasks"] == 3
    assert rows["sums", "rl"]["num_runs"] == 2
    assert rows["sums", "base"]["accuracy"] > 0
    result = json.loads(output.splitlines()[-1])
    assert result["summary"] == summary


def test_the_heads_of_the_run_fit_its_base(interrupted_and_resumed, tiny_model_dir):
    run_dir, _, _ = interrupted_and_resumed
    heads = read_heads(run_dir / "heads" / "heads.safetensors")
    weights = (tiny_model_dir / "model.safetensors").read_bytes()
    assert heads.base_sha256 == hashlib.sha256(weights).hexdigest()
    assert heads.verification_prompt == "?"
    assert heads.switcher.scores(np.zeros((1, 192), dtype=np.float32)).shape == (1,)


def test_mlflow_has_one_parent_and_a_child_per_stage(interrupted_and_resumed):
    from mlflow import MlflowClient

    run_dir, _, _ = interrupted_and_resumed
    client = MlflowClient(tracking_uri=f"sqlite:///{run_dir.parent}/mlflow.db")
    experiment = client.get_experiment_by_name("terse")
    runs = {run.data.tags["stage"]: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"pipeline", "sft", "rl", "heads", "evaluate", "protocols", "export"}
    parent = runs.pop("pipeline")
    assert {run.data.tags["mlflow.parentRunId"] for run in runs.values()} == {parent.info.run_id}
    assert {run.info.status for run in [parent, *runs.values()]} == {"FINISHED"}
    assert len(client.get_metric_history(runs["rl"].info.run_id, "reward/mean")) == 4
    assert "eval/rl/accuracy" in runs["evaluate"].data.metrics
    history = client.get_metric_history(runs["rl"].info.run_id, "eval/rl/accuracy")
    assert [point.step for point in history] == [0, 3], "what RL began from too, for rl.keep_best"


def test_the_final_adapter_loads_in_plain_peft(interrupted_and_resumed, tiny_model_dir):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    run_dir, _, _ = interrupted_and_resumed
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    token_ids = torch.tensor([[2, 11, 12, 5, 3]])
    before = base(token_ids).logits.detach().clone()
    model = PeftModel.from_pretrained(base, run_dir / "rl" / "step_000004")
    assert not torch.allclose(model(token_ids).logits, before, atol=1e-2)


def test_a_finished_run_does_nothing_again(interrupted_and_resumed):
    run_dir, _, _ = interrupted_and_resumed
    third = start(run_dir.parent)
    _, errors = third.communicate(timeout=120)
    assert third.returncode == 0
    assert errors.count("done before, skipped") == 6
    assert "adapter sync proved" not in errors


def test_another_configuration_in_the_same_directory_is_refused(interrupted_and_resumed):
    run_dir, _, _ = interrupted_and_resumed
    command = [sys.executable, "-m", "orchestrator", "run", "--config", "quickstart", f"run.dir={run_dir.parent}"]
    done = subprocess.run(
        [*command, *SETTINGS, "rl.learning_rate=1e-5"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "rl.learning_rate" in done.stderr
    assert "choose another run.name" in done.stderr
