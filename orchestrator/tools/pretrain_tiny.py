"""Train the embedded model from nothing: `python -m orchestrator.tools.pretrain_tiny --output DIR`.

A Qwen2-architecture model of about 2M parameters with one token per character, trained on
`arithmetic.write_document`. It is not part of quickstart, which uses the checkpoint in
`configs/tiny_model`; `configs/tiny_model/README.md` records the seed, the time and the SHA-256 that this
script gave. Same machine type, thread count and torch version: same file, bit for bit.
"""

import argparse
import copy
import hashlib
import logging
import math
import random
import string
import time
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from orchestrator.data import arithmetic

log = logging.getLogger("terse.pretrain_tiny")

SPECIAL_TOKENS = (
    "<|pad|>",
    "<|unknown|>",
    arithmetic.USER,
    arithmetic.ASSISTANT,
    "<|system|>",
    arithmetic.END,
    arithmetic.THINK_OPEN,
    arithmetic.THINK_CLOSE,
)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
BUDGET_TEMPLATE = "{question}\nBudget: {budget_tokens}"
CONTEXT_TOKENS = 512
BYTE_LEVEL_SPACE, BYTE_LEVEL_NEWLINE = "\u0120", "\u010a"
"""How byte-level vocabularies spell these two."""


def make_tokenizer() -> Qwen2Tokenizer:
    """Qwen2's byte-level tokenizer without merges: one token per printable ASCII character or newline, eight tags.

    Other characters are left out. Being of the model's own class, it loads wherever a Qwen2 tokenizer does.
    """
    characters = string.digits + string.ascii_letters + string.punctuation + BYTE_LEVEL_SPACE + BYTE_LEVEL_NEWLINE
    vocabulary = {token: index for index, token in enumerate([*SPECIAL_TOKENS, *characters])}
    # Think tags are text to the reader of a completion; the others are control tokens.
    tags = (arithmetic.THINK_OPEN, arithmetic.THINK_CLOSE)
    tokenizer = Qwen2Tokenizer(
        vocab=vocabulary,
        merges=[],
        pad_token="<|pad|>",
        unk_token="<|unknown|>",
        eos_token=arithmetic.END,
        additional_special_tokens=[arithmetic.USER, arithmetic.ASSISTANT, "<|system|>"],
        chat_template=CHAT_TEMPLATE,
        model_max_length=CONTEXT_TOKENS,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in tags])
    return tokenizer


def make_model(tokenizer: Qwen2Tokenizer) -> Qwen2ForCausalLM:
    settings: dict[str, Any] = {"head_dim": 32}
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=192,
            intermediate_size=512,
            num_hidden_layers=5,
            num_attention_heads=6,
            num_key_value_heads=3,
            **settings,
            max_position_embeddings=CONTEXT_TOKENS,
            tie_word_embeddings=True,
            bos_token_id=None,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            initializer_range=0.05,
        )
    )


class PackedRows:
    """Rows of exactly `row_tokens` tokens; each row starts with a new document and the last one is cut."""

    def __init__(self, tokenizer: Qwen2Tokenizer, seed: int, row_tokens: int):
        vocabulary = tokenizer.get_vocab()
        self._ids = vocabulary | {" ": vocabulary[BYTE_LEVEL_SPACE], "\n": vocabulary[BYTE_LEVEL_NEWLINE]}
        self._rng = random.Random(seed)
        self._row_tokens = row_tokens

    def _encode(self, text: str) -> list[int]:
        # Documents are plain characters apart from the tags that open them; this is 30 times faster than
        # a tokenizer call per segment, and `test_pretraining_rows_equal_tokenizer` holds it to the tokenizer.
        for tag in (arithmetic.USER, arithmetic.ASSISTANT, arithmetic.END):
            text = text.replace(tag, chr(0xE000 + self._ids[tag]))
        return [ord(c) - 0xE000 if ord(c) >= 0xE000 else self._ids[c] for c in text]

    def batch(self, num_rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and labels, both `[num_rows, row_tokens]`; -100 where a token teaches nothing."""
        tokens, labels = [], []
        for _ in range(num_rows):
            row: list[int] = []
            row_labels: list[int] = []
            while len(row) < self._row_tokens:
                for text, trained in arithmetic.write_document(self._rng, BUDGET_TEMPLATE):
                    ids = self._encode(text)
                    row += ids
                    row_labels += ids if trained else [-100] * len(ids)
            tokens.append(row[: self._row_tokens])
            labels.append(row_labels[: self._row_tokens])
        return torch.tensor(tokens), torch.tensor(labels)


def learning_rate(step: int, num_steps: int, peak: float, num_warmup_steps: int = 100) -> float:
    """Linear warm-up, then cosine to a hundredth of the peak."""
    if step < num_warmup_steps:
        return peak * (step + 1) / num_warmup_steps
    progress = (step - num_warmup_steps) / max(1, num_steps - num_warmup_steps)
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


def pretrain(output: Path, num_steps: int, num_rows: int, row_tokens: int, peak: float, seed: int) -> None:
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True)
    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    decayed = [p for p in model.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim != 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
        lr=peak,
        betas=(0.9, 0.95),
        fused=True,
    )
    rows = PackedRows(tokenizer, seed, row_tokens)
    log.info("%d parameters", model.num_parameters())
    started = time.monotonic()
    for step in range(num_steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, num_steps, peak)
        tokens, labels = rows.batch(num_rows)
        # Weights and optimiser stay fp32; bf16 products make it 1.6 times faster.
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=tokens, labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 0 or step == num_steps - 1:
            elapsed = time.monotonic() - started
            rate = (step + 1) * num_rows * row_tokens / elapsed
            log.info("step %d loss %.4f  %.0f s  %.0f tok/s", step, loss.item(), elapsed, rate)
        if (step + 1) % 500 == 0 or step == num_steps - 1:
            digest = save(output, model, tokenizer)
            log.info("model.safetensors sha256 %s, %.0f s", digest, time.monotonic() - started)


def save(output: Path, model: Qwen2ForCausalLM, tokenizer: Qwen2Tokenizer) -> str:
    """Write the model directory, weights in bf16; returns the SHA-256 of its weights."""
    output.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(output)
    rounded: Any = copy.deepcopy(model)
    rounded.to(torch.bfloat16).save_pretrained(output)
    return hashlib.sha256((output / "model.safetensors").read_bytes()).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--rows", type=int, default=48)
    parser.add_argument("--row-tokens", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(arguments.threads)
    pretrain(
        arguments.output,
        arguments.steps,
        arguments.rows,
        arguments.row_tokens,
        arguments.learning_rate,
        arguments.seed,
    )


if __name__ == "__main__":
    main()
