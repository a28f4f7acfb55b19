"""What the int4 grid does to the base: error of each layer, perplexity and accuracy before and after."""

import json
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from actors.tokenizer import load_tokenizer, stop_token_ids
from actors.types import Prompt, Task, TrainRow
from configs.schema.run import ModelSection, RunConfig
from orchestrator.data.sft_rows import SftRows
from orchestrator.record import run_files

if TYPE_CHECKING:
    from transformers import PreTrainedModel  # and torch below: seconds, which a run's start need not take

log = logging.getLogger(__name__)
QUANTISATION_FILE = "quantisation.json"
NATIVE, INT4 = "native", "int4"
_ROWS_AT_ONCE = 16

Judge = Callable[[str, Any], bool]
"""(completion text, task with its reference answer and labels) → whether it is right"""


def report_quantisation(
    config: RunConfig, native: Path, int4: Path, pairs: Sequence[tuple[Task, Prompt]], judge: Judge
) -> dict[str, Any]:
    """Write `<run>/quantisation.json` and return it.

    Both bases run without adapter, in torch and float32: the perplexity of the assistant's tokens in as many SFT
    conversations as there are `pairs` (left out where SFT was, `sft.adapter`), and the accuracy of greedy completions
    of `pairs`, at most `export.parity_tokens` long.
    """
    from actors.policy_model import load_base
    from deploy.export.quantize import GRID_DIR, REPORT_FILE

    tokenizer = load_tokenizer(str(native), config.model)
    rows: list[TrainRow] = []
    if config.sft.num_steps and not config.sft.adapter:
        source = SftRows(config, tokenizer)
        rows = [source.at(index) for index in range(len(pairs))]
    num_tokens = min(config.export.parity_tokens, config.evaluation.max_completion_tokens)
    directories = {NATIVE: native, INT4: int4}
    perplexities: dict[str, float] = {}
    accuracies: dict[str, float] = {}
    for name, directory in directories.items():
        base = load_base(ModelSection(dtype="float32"), str(directory)).eval()
        if rows:
            perplexities[name] = perplexity(base, rows)
        stop = stop_token_ids(str(directory), tokenizer)
        completions = greedy(base, [prompt.token_ids for _, prompt in pairs], num_tokens, stop)
        texts = tokenizer.batch_decode(completions, skip_special_tokens=True)
        is_right = [judge(text, task) for text, (task, _) in zip(texts, pairs, strict=True)]
        accuracies[name] = sum(is_right) / len(is_right)
        # Before the next one is loaded: two at once may not fit.
        del base
    grid = json.loads((directories[INT4] / GRID_DIR / REPORT_FILE).read_text())
    report: dict[str, Any] = {
        "num_rows": len(rows),
        "num_prompts": len(pairs),
        "perplexity": perplexities,
        "accuracy": accuracies,
    }
    report |= {key: grid[key] for key in ("method", "group", "mean_relative_l2", "worst_relative_l2", "layers")}
    run_files.write_text(config.run_dir / QUANTISATION_FILE, json.dumps(report, indent=2))
    log.info(
        "int4 base: relative L2 error of a layer %.4f (worst %.4f); without adapter, perplexity %s, accuracy %s",
        *(report["mean_relative_l2"], report["worst_relative_l2"][0]),
        *(" → ".join(f"{value:.3f}" for value in found.values()) or "-" for found in (perplexities, accuracies)),
    )
    return report


def perplexity(base: "PreTrainedModel", rows: Sequence[TrainRow]) -> float:
    """exp of the mean negative logprob of the tokens in the loss mask."""
    import torch

    total, count = 0.0, 0
    with torch.no_grad():
        for row in rows:
            ids = torch.from_numpy(row.token_ids.astype(np.int64))
            logprobs = base(input_ids=ids[None], use_cache=False).logits[0, :-1].float().log_softmax(-1)
            own = logprobs.gather(1, ids[1:, None])[:, 0][torch.from_numpy(row.loss_mask[1:])]
            total, count = total - float(own.sum()), count + len(own)
    return math.exp(total / count)


def greedy(
    base: "PreTrainedModel", prompts: Sequence[np.ndarray], num_tokens: int, stop: Sequence[int]
) -> list[list[int]]:
    """Greedy completions, in the order of `prompts`; what follows the first end token is left out."""
    import torch

    found: dict[int, list[int]] = {}
    # Like lengths together: less padding.
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    for first in range(0, len(order), _ROWS_AT_ONCE):
        part = order[first : first + _ROWS_AT_ONCE]
        width = max(len(prompts[index]) for index in part)
        ids, mask = np.zeros((len(part), width), dtype=np.int64), np.zeros((len(part), width), dtype=np.int64)
        for row, index in enumerate(part):
            ids[row, width - len(prompts[index]) :], mask[row, width - len(prompts[index]) :] = prompts[index], 1
        with torch.no_grad():
            # The method comes by a mixin, which the type leaves out.
            out = base.generate(  # type: ignore[operator]
                input_ids=torch.from_numpy(ids),
                attention_mask=torch.from_numpy(mask),
                max_new_tokens=num_tokens,
                do_sample=False,
                eos_token_id=list(stop),
                pad_token_id=stop[0],
            )
        for row, index in enumerate(part):
            tokens = out[row, width:].tolist()
            end = next((place for place, token in enumerate(tokens) if token in stop), len(tokens))
            found[index] = tokens[:end]
    return [found[index] for index in range(len(prompts))]
