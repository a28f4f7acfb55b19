"""Seconds per RL step, here over TRL's GRPOTrainer, in one run; any model.

    python -m tests.benchmarks.rl_step --adapter runs/ordinary/sft/step_000100 --masked-adapter runs/quickstart/sft/step_000100 \\
        --trl rows=32 rl.learning_rate=1e-9
    python -m tests.benchmarks.rl_step --config qwen2_0.5b_cpu --steps 4 --trl rows=8 data.train.source=arithmetic …

Both start from the same adapter (without --adapter: from a fresh one) and take the same tasks, sampling, reward, learning
rate and schedule. The reward is chance (`tests.benchmarks.chance`). TRL's sides run first, each in a process of its own; ours
are compared with the fastest. Ours are the ordinary LoRA that TRL trains and the masked LoRA of the shipped configurations,
on-policy and one step off. An adapter of SFT acts on what it was trained on: the masked one takes its own, from the same SFT,
so that lengths are alike; a learning rate of almost nothing keeps them so. The first step of each side (warm-up) is not
counted.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from configs.load import load_config
from configs.schema.run import RunConfig
from tests.benchmarks.rl_step_trl import TrlSettings

SHARED = ["rl.kl_beta=0.0", "reward.verifier=tests.benchmarks.chance:by_chance", "reward.length=none"]
"""Steps of the same size on both sides: TRL has no KL term here, and trains on constant groups, which ours makes again."""
OURS = {
    "ordinary LoRA, on-policy": ["model.masked_lora=false", "rl.max_staleness=0"],
    "ordinary LoRA, one step off": ["model.masked_lora=false", "rl.max_staleness=1"],
    "masked LoRA, on-policy": ["model.masked_lora=true", "rl.max_staleness=0"],
    "masked LoRA, one step off": ["model.masked_lora=true", "rl.max_staleness=1"],
}
COLUMNS = {
    "step_s": "time/step_s",
    "rollout_s": "time/rollout_s",
    "update_s": "time/update_s",
    "publish_s": "time/publish_s",
    "tokens": "rollout/completion_tokens_mean",
    "dropped_frac": "rollout/dropped_frac",
}


def fresh_adapter(config: RunConfig) -> bytes:
    """What the learner would start from without SFT."""
    import torch
    from transformers import AutoModelForCausalLM

    from actors import adapters
    from actors.masked_lora import AdapterSwitch, fresh_tensors, insert_layers, peft_config
    from configs.models import resolve_model_path

    model = AutoModelForCausalLM.from_pretrained(str(resolve_model_path(config.model.path)), dtype=torch.bfloat16)
    tensors = fresh_tensors(insert_layers(model, config.lora, AdapterSwitch()), config.lora.rank, config.run.seed)
    return adapters.pack(tensors, peft_config(config.lora, tensors))


def trl_side(config_name: str, overrides: list[str], adapter: Path, settings: str) -> dict[str, list[float]]:
    command = [sys.executable, "-m", "tests.benchmarks.rl_step_trl", "--config", config_name]
    command += ["--adapter", str(adapter), "--settings", settings, "--", *overrides]
    output = subprocess.run(command, capture_output=True, text=True, check=False)
    results = [line for line in output.stdout.splitlines() if line.startswith("RESULT")]
    if not results:
        raise RuntimeError(output.stderr[-3000:])
    return json.loads(results[0].removeprefix("RESULT"))


def our_side(config_name: str, overrides: list[str], adapter: Path) -> dict[str, list[float]]:
    """`COLUMNS` of each step of `orchestrator.stages.train`."""
    from actors import adapters
    from actors.tokenizer import load_tokenizer
    from configs.models import resolve_model_path
    from orchestrator.cluster.cluster import start_cluster
    from orchestrator.record.run_files import read_metrics
    from orchestrator.record.tracking import start_tracker
    from orchestrator.stage import Stage
    from orchestrator.stages.train import train

    with tempfile.TemporaryDirectory() as root:
        config = load_config(config_name, [*overrides, f"run.dir={root}"])
        config.run_dir.mkdir(parents=True)
        path = str(resolve_model_path(config.model.path))
        with start_cluster(config, path) as cluster, start_tracker(config, "rl") as tracker:
            tokenizer = load_tokenizer(path, config.model)
            # Engines that are still starting would be counted as generation time.
            cluster.engines.wait_for(len(cluster.engines))
            stage = Stage(
                name="rl", config=config, cluster=cluster, tracker=tracker, tokenizer=tokenizer, base_dir=Path(path)
            )
            train(stage, adapters.read_directory(adapter))
        rows = [row for row in read_metrics(config.run_dir) if row["stage"] == "rl"]
    return {column: [row[name] for row in rows] for column, name in COLUMNS.items()}


def report(name: str, steps: dict[str, list[float]], baseline_s: float | None = None) -> float:
    """Print medians over a side's steps without its first, and its fastest step; returns the median of seconds per step.

    Medians, because what else a machine does now and then makes single steps several times as long.
    """
    middle = {column: statistics.median(values[1:]) for column, values in steps.items()}
    ratio = "" if baseline_s is None else f"   ratio {middle['step_s'] / baseline_s:.2f}"
    parts = ", ".join(f"{column} {middle[column]:.3f}" for column in middle if column not in ("step_s", "tokens"))
    every = ", ".join(f"{seconds:.2f}" for seconds in steps["step_s"])
    lengths = f"lengths {steps['tokens'][0]:.0f} -> {steps['tokens'][-1]:.0f}, {middle['tokens']:.1f}"
    print(
        f"{name:28} {middle['step_s']:7.2f} s/step, fastest {min(steps['step_s'][1:]):.2f}{ratio}   {parts}   {lengths}   "
        f"steps {every}",
        flush=True,
    )
    return middle["step_s"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="quickstart")
    parser.add_argument("--adapter", type=Path, help="a checkpoint of SFT; without it a fresh adapter")
    parser.add_argument("--masked-adapter", type=Path, help="the same for masked LoRA; default: --adapter")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--trl", action="append", default=[], help=f"settings of TRL, each a run: {TrlSettings()}")
    parser.add_argument("--ours", nargs="*", choices=[*OURS], default=[*OURS])
    parser.add_argument("overrides", nargs="*", help="key=value settings of both sides")
    arguments = parser.parse_args()
    shared = [*SHARED, f"rl.num_steps={arguments.steps}", *arguments.overrides]
    with tempfile.TemporaryDirectory() as root:
        adapter = arguments.adapter
        if adapter is None:
            from actors import adapters

            adapter = Path(root) / "fresh"
            adapters.write_directory(fresh_adapter(load_config(arguments.config, shared)), adapter)
        baselines = []
        for settings in arguments.trl:
            steps = trl_side(arguments.config, [*shared, "model.masked_lora=false"], adapter, settings)
            baselines.append(report(f"TRL {settings}", steps))
        for name in arguments.ours:
            own = arguments.masked_adapter if name.startswith("masked") and arguments.masked_adapter else adapter
            report(name, our_side(arguments.config, [*shared, *OURS[name]], own), min(baselines, default=None))


if __name__ == "__main__":
    main()
