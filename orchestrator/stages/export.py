"""The last stage: the trained model as files for a device, compared with the training stack before they get their name.

export/base.gguf adapter.gguf heads.safetensors tokenizer/ adapter/ [merged/] manifest.json MODEL_CARD.md
"""

import json
import logging
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from actors import adapters
from actors.reward import judge_answers, judge_of, judges_of
from actors.scoring_process import Scorer
from actors.tokenizer import load_tokenizer, stop_token_ids
from actors.types import Prompt, Task
from configs.load import ConfigError
from configs.models import is_hub_name, weights_sha256
from configs.schema.run import RunConfig
from deploy.device.heads import read_heads
from deploy.manifest import (
    ADAPTER_FILE,
    BASE_FILE,
    CARD_FILE,
    HEADS_FILE,
    MANIFEST_FILE,
    MERGED_DIR,
    PEFT_DIR,
    TOKENIZER_DIR,
    ExportError,
    Manifest,
    describe_files,
)
from orchestrator.data.prompts import held_out_prompts, make_cap
from orchestrator.data.tasks import name_budget
from orchestrator.record import run_files
from orchestrator.record.tracking import git_commit, library_versions
from orchestrator.report.model_card import CARD_FIGURES, write_card
from orchestrator.stages.base_model import Bases, int4_base, resolve_bases
from orchestrator.stages.quantisation import Judge, report_quantisation
from rewards.base import Outcome

log = logging.getLogger(__name__)
EXPORT_DIR, PARITY_FILE = "export", "parity.json"


def is_exported(run_dir: Path) -> bool:
    return (run_dir / EXPORT_DIR / MANIFEST_FILE).is_file()


def export(config: RunConfig, packed_adapter: adapters.Packed, run_id: str, force: bool = False) -> dict[str, float]:
    """Write `<run>/export` and return the parity metrics (none when `export.parity_prompts` is 0).

    All of it is written to a temporary directory and renamed when parity holds. Raises RuntimeError when there is an
    export and not `force`, and when the files are further from the training stack than `export` allows; then parity's
    numbers lie in `<run>/parity.json`.
    """
    target = config.run_dir / EXPORT_DIR
    if not config.model.masked_lora:
        raise ConfigError(
            ["export: expected model.masked_lora=true (on a device the base encodes the prompt), found False"]
        )
    if target.exists() and not force:
        raise RuntimeError(f"{target}: expected no export, found one; --force replaces it")
    temporary = target.with_name(f".{EXPORT_DIR}.{uuid.uuid4().hex}")
    replaced = temporary.with_name(f"{temporary.name}.old")
    temporary.mkdir(parents=True)
    try:
        bases = resolve_bases(config)
        base_dir = exported_base(config, bases)
        write_files(config, packed_adapter, bases, base_dir, temporary, run_id)
        parity: dict[str, Any] = {}
        quantisation: dict[str, Any] = {}
        if config.export.parity_prompts:
            pairs = held_out_prompts(config, load_tokenizer(str(base_dir), config.model))
            pairs = pairs[: config.export.parity_prompts]
            with scorer(config, [task for task, _ in pairs]) as judge:
                parity = check_parity(config, base_dir, temporary, pairs, judge)
                if config.export.precision == "int4":
                    quantisation = report_quantisation(config, bases.native, base_dir, pairs, judge)
        write_card(config, temporary, parity, quantisation)
        _add_to_manifest(temporary, [CARD_FILE, *CARD_FIGURES])
        if target.exists():
            # Out of the way first: at no time is there half an export under the name.
            os.replace(target, replaced)
        os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)
    log.info('export: %s; try: terse device %s --prompt "…"', target, target)
    return parity_metrics(parity) | quantisation_metrics(quantisation)


def exported_base(config: RunConfig, bases: Bases) -> Path:
    """A directory whose weights are those of the device file: what the run trained on, or its int4 twin."""
    if config.export.precision == "int4" and config.model.base_precision == "native":
        log.warning("int4 export of an adapter that was trained on the native base: see model.base_precision")
        return int4_base(config, bases.native)
    return bases.trained


def name_base(adapter_dir: Path, config: RunConfig, base_dir: Path) -> None:
    """Write the base's name into the exported copy of the adapter, by which PEFT finds it."""
    path = adapter_dir / adapters.CONFIG_FILE
    name = config.model.path if is_hub_name(config.model.path) else str(base_dir.resolve())
    run_files.write_text(path, json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": name}, indent=2))


def write_files(
    config: RunConfig, packed_adapter: adapters.Packed, bases: Bases, base_dir: Path, directory: Path, run_id: str
) -> None:
    """Everything but the model card."""
    from deploy.export import gguf
    from deploy.export.decoder import read_decoder
    from deploy.export.merge import write_merged
    from deploy.export.quantize import read_grid

    section, tokenizer = config.export, load_tokenizer(str(base_dir), config.model)
    decoder = read_decoder(json.loads((base_dir / "config.json").read_text()), config.model.max_length_tokens)
    grid = read_grid(base_dir) if section.precision == "int4" else {}
    gguf.write_base(base_dir, decoder, directory / BASE_FILE, section.precision, section.embeddings, grid)
    adapters.write_directory(packed_adapter, directory / PEFT_DIR)
    name_base(directory / PEFT_DIR, config, base_dir)
    gguf.write_adapter(directory / PEFT_DIR, decoder, directory / ADAPTER_FILE)
    tokenizer.save_pretrained(directory / TOKENIZER_DIR)
    if section.merged:
        write_merged(base_dir, directory / TOKENIZER_DIR, packed_adapter, directory / MERGED_DIR)
    base_sha256 = weights_sha256(bases.trained)
    heads, threshold = config.run_dir / "heads" / HEADS_FILE, None
    if heads.is_file():
        threshold = read_heads(heads, base_sha256, decoder.hidden).threshold
        shutil.copyfile(heads, directory / HEADS_FILE)
    # The forced text is the same whatever the cap.
    cap = make_cap(max(1, section.default_cap_tokens), config.budget, tokenizer)
    manifest = Manifest(
        architecture=decoder.architecture,
        precision=section.precision,
        base_sha256=base_sha256,
        files=describe_files(directory),
        stop_token_ids=stop_token_ids(str(base_dir), tokenizer),
        forced_answer_token_ids=tuple(cap.forced_token_ids.tolist()),
        answer_tokens=cap.answer_tokens,
        default_cap=section.default_cap_tokens or None,
        max_length_tokens=config.model.max_length_tokens,
        system_prompt=config.data.train[0].system_prompt,
        budget_prompt_template=config.budget.prompt_template,
        budgets_tokens=config.buckets_tokens,
        sampling={"temperature": config.evaluation.temperature, "top_p": config.evaluation.top_p},
        switcher=None if threshold is None else {"threshold": threshold},
        training={
            "run_id": run_id,
            "run_name": config.run.name,
            "commit": git_commit(),
            "versions": library_versions(),
        },
    )
    (directory / MANIFEST_FILE).write_text(manifest.to_json())


def check_parity(
    config: RunConfig, base_dir: Path, directory: Path, pairs: Sequence[tuple[Task, Prompt]], judge: Judge
) -> dict[str, Any]:
    """The report of `deploy.export.parity` as data. Raises RuntimeError where it overruns a tolerance."""
    from deploy.device.runtime import DeviceModel
    from deploy.export.parity import ParityTask, Reference, measure

    tasks = [
        ParityTask(
            task_id=task.task_id,
            token_ids=tuple(prompt.token_ids.tolist()),
            reference_answer=task.reference_answer,
            labels=task.labels,
        )
        for task, prompt in pairs
    ]
    num_tokens = min(config.export.parity_tokens, config.evaluation.max_completion_tokens)
    with DeviceModel(directory) as device:
        check_prompts(config, device.chat, pairs)
        report = measure(device, Reference(base_dir, directory / PEFT_DIR), tasks, num_tokens, judge)
    result = asdict(report)
    run_files.write_text(config.run_dir / PARITY_FILE, json.dumps(result, indent=2))
    for mode, parity in report.modes.items():
        log.info(
            "parity, %s: %.1f %% of %d greedy completions the same, logprobs within %.4f nats, accuracy %.1f %% (%.1f %%)",
            *(mode, 100 * parity.greedy_agreement, report.num_prompts, parity.mean_logprob_gap),
            *(100 * parity.device_accuracy, 100 * parity.reference_accuracy),
        )
    if problems := report.problems(config.export, config.export.precision):
        raise RuntimeError("the exported files are not what was trained: " + "; ".join(problems))
    return result


def ask(config: RunConfig) -> str:
    """What the export says to the first held-out question, as the command `device` shows it."""
    from deploy.device.runtime import DeviceModel, Question

    directory = config.run_dir / EXPORT_DIR
    task, _ = held_out_prompts(config, load_tokenizer(str(directory / TOKENIZER_DIR), config.model))[0]
    with DeviceModel(directory) as device:
        question = task.messages[-1]["content"]
        answer = device.answer(Question(question=question))
    return f"{question} → {answer.text.strip()} ({answer.mode}, {answer.timings['tokens_per_s']:.0f} tokens/s)"


def check_prompts(config: RunConfig, chat: Any, pairs: Sequence[tuple[Task, Prompt]]) -> None:
    """Raises ExportError when the device's template and tokenizer make other tokens of a task."""
    for task, prompt in pairs:
        messages = name_budget(task, prompt.budget_tokens or 0, config.budget)
        if (found := chat.prompt(messages)) != prompt.token_ids.tolist():
            raise ExportError(
                f"task {task.task_id}: expected the prompt tokens of training, {prompt.token_ids.tolist()[:20]}…, the "
                f"device makes {found[:20]}…"
            )


@contextmanager
def scorer(config: RunConfig, tasks: Sequence[Task]) -> Iterator[Judge]:
    """Judges a completion of one of the tasks, named by whatever has its `task_id`, in the killable process that training uses."""
    process, by_id = Scorer(config.reward.deadline_s, judges_of(config)), {task.task_id: task for task in tasks}

    def judge(text: str, named: Any) -> bool:
        task = by_id[named.task_id]
        return judge_answers(process, [text], task, judge_of(task, config.reward))[0].outcome == Outcome.CORRECT

    try:
        yield judge
    finally:
        process.close()


def parity_metrics(parity: dict[str, Any]) -> dict[str, float]:
    """`export/<mode>/greedy_agreement`, …: what MLflow gets."""
    metrics = {
        f"export/{mode}/{name}": float(value)
        for mode, numbers in parity.get("modes", {}).items()
        for name, value in numbers.items()
        if value is not None
    }
    if parity.get("switcher_gap") is not None:
        metrics["export/switcher_gap"] = float(parity["switcher_gap"])
    return metrics


def quantisation_metrics(quantisation: dict[str, Any]) -> dict[str, float]:
    """`export/quantisation/perplexity_native`, …"""
    return {
        f"export/quantisation/{what}_{base}": value
        for what in ("perplexity", "accuracy")
        for base, value in quantisation.get(what, {}).items()
    }


def _add_to_manifest(directory: Path, names: Sequence[str]) -> None:
    path = directory / MANIFEST_FILE
    raw = json.loads(path.read_text())
    described = describe_files(directory)
    raw["files"] |= {name: described[name] for name in names if name in described}
    path.write_text(json.dumps(raw, indent=2) + "\n")
