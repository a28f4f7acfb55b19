"""TRL's side of `tests.benchmarks.rl_step`: seconds per step of its GRPOTrainer, in a process of its own.

What is trained is fixed by the benchmark: model, start adapter, prompts, sampling, reward, learning rate and schedule. How
fast that goes is TRL's own business, so its settings can be chosen (`TrlSettings`).
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from dataclasses import dataclass, fields
from pathlib import Path

from configs.load import load_config
from configs.schema.run import RunConfig

NUM_THREADS = 2


@dataclass(frozen=True)
class TrlSettings:
    """How TRL generates and computes; written `generation=vllm,rows=16`."""

    generation: str = "hf"
    """hf: transformers' `generate`; batching: its continuous batching; vllm: vLLM in the trainer's process (colocate), which
    vLLM 0.32 on a CPU ends with an error: its packed weights cannot be loaded again."""
    rows: int = 0
    """Rows of one forward and backward pass; gradients of a step's passes are added up. 0: the whole step."""
    adapter: str = "float32"
    """Dtype of the adapter: float32 as PEFT would have it, or the model's."""
    autocast: int = 0
    """1: the learner's passes run under bf16 autocast (TRL's default), 0: in the dtype of the weights."""

    @classmethod
    def parse(cls, text: str) -> "TrlSettings":
        kinds = {field.name: field.type for field in fields(cls)}
        pairs = [pair.split("=") for pair in text.split(",")]
        return cls(**{name: int(value) if kinds[name] is int else value for name, value in pairs})


def run(config: RunConfig, adapter: Path, settings: TrlSettings) -> dict[str, list[float]]:
    """Seconds of each step (`step_s`), of its generation (`rollout_s`), and mean completion length (`tokens`)."""
    import torch
    from datasets import Dataset
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from actors.judges import Judge, make_call
    from actors.tokenizer import load_tokenizer
    from configs.models import resolve_model_path
    from orchestrator.data.prompts import Prompter

    if config.reward.length != "none":
        raise ValueError(f"expected reward.length none, found {config.reward.length}")
    torch.set_num_threads(NUM_THREADS)
    path = str(resolve_model_path(config.model.path))
    tokenizer = load_tokenizer(path, config.model)
    prompter, rl = Prompter(config, tokenizer), config.rl
    rows = []
    for index in range(rl.groups_per_step * rl.num_steps):
        task, prompt = prompter.at(index)
        text = tokenizer.decode(prompt.token_ids)
        if tokenizer(text)["input_ids"] != prompt.token_ids.tolist():
            raise RuntimeError(f"expected that TRL reads the same prompt tokens, found others for {text!r}")
        rows.append({"prompt": text, "reference": task.reference_answer})
    dtype = getattr(torch, config.model.dtype)
    base = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
    model = PeftModel.from_pretrained(
        base, str(adapter), is_trainable=True, autocast_adapter_dtype=settings.adapter == "float32"
    )
    step_s, rollout_s, lengths = [], [], []
    verdict = make_call(Judge(name=config.reward.verifier))

    def reward(completions, reference, completion_ids, **kwargs):
        lengths.append(statistics.mean(len(ids) for ids in completion_ids))
        verdicts = [
            verdict(text, {"answer": answer, "labels": ()}) for text, answer in zip(completions, reference, strict=True)
        ]
        return [float(one.outcome == "correct") for one in verdicts]

    class Timed(GRPOTrainer):
        def _generate_single_turn(self, *args, **kwargs):
            started = time.monotonic()
            made = super()._generate_single_turn(*args, **kwargs)
            rollout_s.append(time.monotonic() - started)
            return made

    class Clock(TrainerCallback):
        def on_step_begin(self, *args, **kwargs):
            self.started = time.monotonic()

        def on_step_end(self, *args, **kwargs):
            step_s.append(time.monotonic() - self.started)

    num_rows = rl.groups_per_step * rl.group_size
    rows_at_once = settings.rows or num_rows
    with tempfile.TemporaryDirectory() as output:
        trainer = Timed(
            model=model,
            reward_funcs=reward,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            callbacks=[Clock()],
            args=GRPOConfig(
                output_dir=output,
                # Generated at once, trained on in so many passes.
                per_device_train_batch_size=rows_at_once,
                gradient_accumulation_steps=num_rows // rows_at_once,
                num_generations=rl.group_size,
                max_completion_length=config.rollout.max_completion_tokens,
                temperature=config.rollout.temperature,
                learning_rate=rl.learning_rate,
                lr_scheduler_type="cosine",
                warmup_steps=round(rl.warmup_frac * rl.num_steps),
                beta=0.0,
                max_steps=rl.num_steps,
                use_cpu=True,
                bf16=bool(settings.autocast),
                gradient_checkpointing=False,
                use_transformers_continuous_batching=settings.generation == "batching",
                use_vllm=settings.generation == "vllm",
                vllm_mode="colocate",
                vllm_max_model_length=config.model.max_length_tokens,
                # Saves a forward pass.
                vllm_importance_sampling_correction=False,
                report_to=[],
                save_strategy="no",
                logging_strategy="no",
                disable_tqdm=True,
                shuffle_dataset=False,
            ),
        )
        trainer.train()
    return {"step_s": step_s, "rollout_s": rollout_s, "tokens": lengths}


def set_vllm_environment() -> None:
    """Of TRL's vLLM, which shares process and threads with the trainer; it reads them when it is imported."""
    os.environ.update(
        VLLM_ENABLE_V1_MULTIPROCESSING="0",
        VLLM_CPU_OMP_THREADS_BIND="nobind",
        VLLM_CPU_NUM_OF_RESERVED_CPU="0",
        VLLM_PLUGINS="",
        OMP_NUM_THREADS=str(NUM_THREADS),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--adapter", type=Path, required=True)
    parser.add_argument("--settings", type=TrlSettings.parse, default=TrlSettings())
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    if arguments.settings.generation == "vllm":
        set_vllm_environment()
    config = load_config(arguments.config, arguments.overrides)
    print("RESULT", json.dumps(run(config, arguments.adapter, arguments.settings)))


if __name__ == "__main__":
    main()
