"""What the parts do on this GPU: `python -m tests.gpu.benchmark [--json FILE]`. Ends in a table for RESULTS.md."""

import argparse
import asyncio
import json
import tempfile
import time
import traceback
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from actors.engine import Engine
from actors.types import Sampling
from tests.fakes import published
from tests.gpu.models import DEVICE, IS_TINY, make_rows, random_adapter, small, vocabulary_of
from tests.gpu.parts import build_engine, learner, timed_update

Row = dict[str, Any]
LearnerCase = tuple[str, int, int, int, int, int, bool, tuple[float, ...]]
LEARNER_CASES: tuple[LearnerCase, ...] = (
    ("qwen2-0.5b", 32, 128, 150, 400, 16384, False, (1e-3, 0.0)),
    ("qwen3-0.6b", 16, 2, 256, 16384, 16384, True, (0.0,)),
    ("qwen3-4b", 16, 2, 256, 16384, 16384, True, (0.0,)),
    ("qwen2.5-7b", 128, 16, 256, 2048, 16384, True, (1e-3, 0.0)),
)
"""Model, rank, rows, prompt, tokens of a row, micro-batch, checkpointing, weights of the KL."""


def measure_learner(root: Path, case: LearnerCase) -> Iterator[Row]:
    name, rank, num_rows, num_prompt, num_tokens, batch_tokens, checkpointing, kl_betas = case
    if IS_TINY:
        name, rank, num_rows, num_prompt, num_tokens = "tiny", 8, 4, 16, 64
    rows = make_rows(num_rows, num_prompt, num_tokens, vocabulary_of(name))
    for kl_beta in kl_betas:
        with learner(
            name, root, rank, micro_batch_tokens=batch_tokens, checkpointing=checkpointing, kl_beta=kl_beta
        ) as one:
            seconds, peak_gb, _ = timed_update(one, rows)
        what = f"learner {name} r{rank}, {num_rows} × {num_tokens}{', reference' if kl_beta else ''}"
        yield {"what": what, "tokens_per_s": num_rows * num_tokens / seconds, "peak_gb": peak_gb}


async def measure_engine(root: Path) -> list[Row]:
    name, rank = small("qwen2-0.5b"), 8 if IS_TINY else 32
    began = time.monotonic()
    engine = build_engine(name, root, rank)
    rows: list[Row] = [{"what": f"engine {name} starts", "seconds": time.monotonic() - began}]
    await engine.load_adapter(*published(random_adapter(name, rank, 1), 1))
    rng = np.random.default_rng(0)
    num_tokens = 16 if IS_TINY else 256
    for version in (None, 1):  # what the first call compiles is not decoding
        await decode(engine, [np.arange(64, dtype=np.int32)] * 8, version, num_tokens)
    for num_seqs in (4,) if IS_TINY else (32, 128, 256):
        for version, label in ((None, "base"), (1, "masked adapter")):
            prompts = [rng.integers(0, vocabulary_of(name) - 10, 64).astype(np.int32) for _ in range(num_seqs)]
            seconds = await decode(engine, prompts, version, num_tokens)
            what = f"decode {name}, {num_seqs} sequences, {label}"
            rows.append({"what": what, "tokens_per_s": num_seqs * num_tokens / seconds})
    for name_of, call in (("sleep", engine.sleep), ("wake up", engine.wake_up)):
        began = time.monotonic()
        await call()
        rows.append({"what": f"engine {name_of}", "seconds": time.monotonic() - began})
    await engine.shutdown()
    return rows


async def decode(engine: Engine, prompts: list[np.ndarray], version: int | None, num_tokens: int) -> float:
    sampling = Sampling(temperature=1.0, max_tokens=num_tokens, ignore_end=True)
    began = time.monotonic()
    await asyncio.gather(
        *[engine.generate(p, 1, sampling, version, len(p) - 1 if version is not None else 0) for p in prompts]
    )
    return time.monotonic() - began


def table(rows: list[Row]) -> str:
    lines = ["| | tokens/s | seconds | peak GB |", "|---|---|---|---|"]
    for row in rows:
        cells = [f"{row[key]:{form}}" if key in row else "" for key, form in COLUMNS.items()]
        lines.append(f"| {row['what']} | {' | '.join(cells)} |")
    return "\n".join(lines)


COLUMNS = {"tokens_per_s": ",.0f", "seconds": ".2f", "peak_gb": ".1f"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the rows there too, after each part")
    arguments = parser.parse_args()
    if not (IS_TINY or torch.cuda.is_available()):
        print("skipped: no GPU here (torch.cuda.is_available() is false)")
        return
    device = torch.cuda.get_device_name() if DEVICE == "cuda" else "CPU, tiny"
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as directory:
        for row in measure_parts(Path(directory)):
            rows.append(row)
            print(row, flush=True)  # whoever runs out of time keeps what is measured
            if arguments.json:
                arguments.json.write_text(json.dumps({"device": device, "rows": rows}, indent=1))
    print(f"{device}, torch {torch.__version__}\n\n{table(rows)}")


def measure_parts(root: Path) -> Iterator[Row]:
    """Rows of every part; a part that fails is a row that says so, and the others go on."""
    for part, measure in (
        ("engine", lambda: asyncio.run(measure_engine(root))),
        *((f"learner {case[0]}", partial(measure_learner, root, case)) for case in LEARNER_CASES),
    ):
        try:
            yield from measure()
        except Exception as error:  # of vLLM, DeepSpeed or CUDA
            traceback.print_exc()
            yield {"what": f"{part} FAILED: {type(error).__name__}"}


if __name__ == "__main__":
    main()
