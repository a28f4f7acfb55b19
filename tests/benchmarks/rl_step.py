"""Seconds per RL step, here over TRL's GRPOTrainer (plain HF generation), in one run.

    python -m tests.benchmarks.rl_step --sft-adapter runs/quickstart/sft/step_000110 [--steps 12]

Both start from the same SFT adapter on the embedded model, on the same built-in tasks, 16 x 8 completions, the
same sampling, learning rate and reward, two threads. TRL's side runs first, in a process of its own. Here the
steps are measured on-policy and one step off. The first step of each side (warm-up) is not counted.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

GROUPS, GROUP_SIZE = 16, 8
# TRL trains an ordinary LoRA without KL.
OVERRIDES = [
    f"rl.groups_per_step={GROUPS}",
    f"rl.group_size={GROUP_SIZE}",
    "rl.kl_beta=0.0",
    "model.masked_lora=false",
]


def trl_side(adapter: str, num_steps: int) -> None:
    """In a process of its own: prints seconds and mean length per step as JSON."""
    import time

    import torch
    from datasets import Dataset
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from actors.tokenizer import load_tokenizer
    from configs.load import load_config
    from configs.models import resolve_model_path
    from orchestrator.data.prompts import Prompter
    from rewards.length.registry import soft_barrier
    from rewards.math_answer import verify_answer

    torch.set_num_threads(2)
    config = load_config("quickstart", OVERRIDES)
    path = str(resolve_model_path(config.model.path))
    tokenizer = load_tokenizer(path, config.model)
    prompter = Prompter(config, tokenizer)
    rows = []
    for index in range(GROUPS * num_steps):
        task, prompt = prompter.at(index)
        text = tokenizer.decode(prompt.token_ids)
        rows.append({"prompt": text, "reference": task.reference_answer, "budget": prompt.budget_tokens})
    base = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, adapter, is_trainable=True)
    step_s, lengths = [], []

    def reward(completions, reference, budget, completion_ids, **kwargs):
        lengths.append(statistics.mean(len(ids) for ids in completion_ids))
        values = []
        for text, answer, tokens, ids in zip(completions, reference, budget, completion_ids, strict=True):
            correct = verify_answer(text, answer).outcome == "correct"
            barrier = config.reward.soft_barrier
            factor = soft_barrier(len(ids), tokens, barrier.half_width_frac, barrier.floor)
            values.append(float(correct) * float(factor))
        return values

    class Clock(TrainerCallback):
        def on_step_begin(self, *args, **kwargs):
            self.started = time.monotonic()

        def on_step_end(self, *args, **kwargs):
            step_s.append(time.monotonic() - self.started)

    with tempfile.TemporaryDirectory() as output:
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=reward,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            callbacks=[Clock()],
            args=GRPOConfig(
                output_dir=output,
                per_device_train_batch_size=GROUPS * GROUP_SIZE,
                num_generations=GROUP_SIZE,
                max_completion_length=config.rollout.max_completion_tokens,
                temperature=config.rollout.temperature,
                learning_rate=config.rl.learning_rate,
                beta=0.0,
                max_steps=num_steps,
                use_cpu=True,
                bf16=False,
                gradient_checkpointing=False,
                report_to=[],
                save_strategy="no",
                logging_strategy="no",
                disable_tqdm=True,
                shuffle_dataset=False,
            ),
        )
        trainer.train()
    print("RESULT", json.dumps({"step_s": step_s, "lengths": lengths}))


def our_side(adapter: str, num_steps: int, max_staleness: int) -> dict[str, list[float]]:
    """Seconds and mean length per step of `orchestrator.stages.train`."""
    from actors import adapters
    from actors.tokenizer import load_tokenizer
    from configs.load import load_config
    from configs.models import resolve_model_path
    from orchestrator.cluster.cluster import start_cluster
    from orchestrator.record.run_files import read_metrics
    from orchestrator.record.tracking import start_tracker
    from orchestrator.stage import Stage
    from orchestrator.stages.train import train

    with tempfile.TemporaryDirectory() as root:
        overrides = [f"run.dir={root}", f"rl.num_steps={num_steps}", f"rl.max_staleness={max_staleness}"]
        config = load_config("quickstart", [*OVERRIDES, *overrides])
        config.run_dir.mkdir(parents=True)
        path = str(resolve_model_path(config.model.path))
        with start_cluster(config, path) as cluster, start_tracker(config, "rl") as tracker:
            tokenizer = load_tokenizer(path, config.model)
            # Engines that are still starting would be counted as generation time.
            cluster.engines.wait_for(len(cluster.engines))
            stage = Stage(
                name="rl", config=config, cluster=cluster, tracker=tracker, tokenizer=tokenizer, base_dir=Path(path)
            )
            train(stage, adapters.read_directory(Path(adapter)))
        rows = [row for row in read_metrics(config.run_dir) if row["stage"] == "rl"]
    names = ("time/step_s", "time/rollout_s", "time/update_s", "time/publish_s", "rollout/completion_tokens_mean")
    return {name: [row[name] for row in rows] for name in names}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sft-adapter", required=True, help="a checkpoint of the quickstart's SFT stage")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--side", choices=["trl"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side == "trl":
        trl_side(arguments.sft_adapter, arguments.steps)
        return
    command = [sys.executable, "-m", "tests.benchmarks.rl_step", "--side", "trl"]
    command += ["--sft-adapter", arguments.sft_adapter, "--steps", str(arguments.steps)]
    output = subprocess.run(command, capture_output=True, text=True, check=False)
    results = [line for line in output.stdout.splitlines() if line.startswith("RESULT")]
    if not results:
        raise RuntimeError(output.stderr[-3000:])
    trl = json.loads(results[0].removeprefix("RESULT"))
    baseline = statistics.mean(trl["step_s"][1:])
    print(f"TRL            {baseline:6.2f} s/step   lengths {trl['lengths'][0]:.0f} -> {trl['lengths'][-1]:.0f}")
    for staleness in (0, 1):
        ours = our_side(arguments.sft_adapter, arguments.steps, staleness)
        means = {name: statistics.mean(values[1:]) for name, values in ours.items()}
        lengths = ours["rollout/completion_tokens_mean"]
        share = means["time/publish_s"] / means["time/step_s"]
        print(
            f"staleness {staleness}    {means['time/step_s']:6.2f} s/step   lengths {lengths[0]:.0f} -> {lengths[-1]:.0f}   "
            f"ratio {means['time/step_s'] / baseline:.2f}   rollout {means['time/rollout_s']:.2f} s, "
            f"update {means['time/update_s']:.2f} s, publish {means['time/publish_s']:.3f} s ({share:.1%} of the step)"
        )


if __name__ == "__main__":
    main()
