"""An adapter that was made elsewhere, evaluated beside the base on held-out tasks.

PEFT makes one here, with a few steps of plain supervised training; any PEFT LoRA directory of the same base does. It is an
ordinary LoRA, on everywhere, so `model.masked_lora` is off.
"""

import random
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

import terse
from configs.models import resolve_model_path

RANK, ALPHA, NUM_STEPS = 16, 32, 160


def write_text(rng: random.Random, tokenizer: Any) -> str:
    """A chain of two operations with its budget, worked through in a thought."""
    total = rng.randint(0, 99)
    question, steps = str(total), []
    for _ in range(2):
        number = rng.randint(0, 99)
        sign = "-" if number <= total and rng.random() < 0.5 else "+"
        result = total - number if sign == "-" else total + number
        question += f"{sign}{number}"
        steps.append(f"{total}{sign}{number}={result}.")
        total = result
    messages = [{"role": "user", "content": f"{question}=?\nBudget: {rng.randint(20, 80)}"}]
    chat = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return f"{chat}<think>{' '.join(steps)}</think>{total}<|end|>"


def train_adapter(directory: Path) -> Path:
    """Plain supervised training of the embedded model in torch."""
    base = str(resolve_model_path("embedded"))
    tokenizer = AutoTokenizer.from_pretrained(base)
    lora = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), lora)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    rng = random.Random(0)
    for step in range(NUM_STEPS):
        texts = [write_text(rng, tokenizer) for _ in range(32)]
        batch = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        loss = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 40 == 0:
            print(f"step {step}: loss {loss.item():.2f}")
    model.save_pretrained(directory)
    return directory


def main() -> None:
    adapter = train_adapter(Path("runs/foreign_adapter_files").absolute())
    config = terse.load_config(
        "quickstart",
        {
            "run.name": "foreign_adapter",
            "sft.adapter": adapter,
            "model.masked_lora": False,
            "lora.rank": RANK,
            "lora.alpha": ALPHA,
            "data.evaluation.difficulties": [2],
            "evaluation.num_tasks": 64,
            "evaluation.caps_tokens": [],
            "heads.num_tasks": 0,
            "scaling.num_tasks": 0,
        },
    )
    result = terse.evaluate(config)
    for policy, name in (("base", "base"), ("sft", "adapter")):
        numbers = result.summary["stages"][policy]
        print(f"{name:8} {numbers['accuracy']:.0%} right, {numbers['mean_tokens']:.1f} tokens")


if __name__ == "__main__":
    main()
