"""Where the reasoning adapter is trained decides what int4 costs: the table of arXiv 2603.16867, quantisation-aware modules.

    python -m tests.benchmarks.qamr [--run runs/quickstart] [--tasks 400] [--samples 1]

Three pairs of base and adapter on the same held-out tasks, in base mode and in reasoning mode:

    native base, adapter trained on it     the finished run
    int4 base, the same adapter            what quantising after training costs
    int4 base, adapter trained on it       `<run>_int4` beside the run: the same settings with
                                           model.base_precision=int4, trained here when it is not there

It reads the finished run and writes only `<run>_int4`.
"""

import argparse
import json
import logging
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from actors import adapters
from actors.tokenizer import load_tokenizer
from actors.types import BASE_VERSION, Prompt, Task
from configs.load import load_config
from configs.schema.run import RunConfig
from deploy.export.quantize import GRID_DIR, REPORT_FILE
from orchestrator import pipeline
from orchestrator.cluster.cluster import start_cluster
from orchestrator.data.prompts import held_out_prompts
from orchestrator.evaluation.evaluate import evaluate, make_record
from orchestrator.record.metrics import Summary, summarise
from orchestrator.stages.base_model import resolve_bases

Rows = list[tuple[str, Summary]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=Path("runs/quickstart"))
    parser.add_argument("--tasks", type=int, default=400)
    parser.add_argument("--samples", type=int, default=1, help="completions of each task")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    native = load_config(arguments.run / "config.yaml", [f"run.dir={arguments.run.parent}"])
    if native.model.base_precision != "native":
        parser.error(f"--run: expected a run with model.base_precision native, {arguments.run} has int4")
    aware = quantisation_aware(native)
    pipeline.run(aware, ("sft", "rl"))
    report = json.loads((aware.run_dir / "int4_base" / GRID_DIR / REPORT_FILE).read_text())
    prompts = held_out(native, arguments.tasks)
    trained_on_native, trained_on_int4 = (pipeline.require_adapter(config, "rl") for config in (native, aware))
    rows = measure(native, prompts, arguments.samples, {"native, trained on native": trained_on_native})
    rows += measure(
        aware,
        prompts,
        arguments.samples,
        {"int4, trained on native": trained_on_native, "int4, trained on int4": trained_on_int4},
    )
    print(
        f"\n{report['method']}, group {report['group']}: relative L2 error of a layer {report['mean_relative_l2']:.4f}, "
        f"worst {report['worst_relative_l2'][0]:.4f}; {len(prompts)} tasks, {arguments.samples} completion(s) each"
    )
    print("| base, adapter | mode | accuracy (95 % interval) | mean tokens |\n|---|---|---|---|")
    for name, s in rows:
        interval = f"{s.accuracy:.1%} ({s.accuracy_low:.1%} – {s.accuracy_high:.1%})"
        print(f"| {name} | {interval} | {s.mean_tokens:.1f} |")


def quantisation_aware(native: RunConfig) -> RunConfig:
    """The same run over the int4 base, without what the table does not need."""
    return replace(
        native,
        run=replace(native.run, name=f"{native.run.name}_int4"),
        model=replace(native.model, base_precision="int4"),
        heads=replace(native.heads, num_tasks=0),
        scaling=replace(native.scaling, num_tasks=0),
    )


def held_out(config: RunConfig, num_tasks: int) -> list[tuple[Task, Prompt]]:
    tokenizer = load_tokenizer(str(resolve_bases(config).trained), config.model)
    return held_out_prompts(replace(config, evaluation=replace(config.evaluation, num_tasks=num_tasks)), tokenizer)


def measure(config: RunConfig, prompts: list[tuple[Task, Prompt]], num_samples: int, packed: dict[str, bytes]) -> Rows:
    """The base of `config` alone, then under each of the adapters."""
    section = replace(config.evaluation, samples_per_task=num_samples)
    rows: Rows = []
    with ExitStack() as stack:
        cluster = stack.enter_context(start_cluster(config, resolve_bases(config).actor_path))
        dispatcher = cluster.make_evaluation_dispatcher()

        def measured(version: int) -> Summary:
            return summarise([make_record(one) for one in evaluate(dispatcher, prompts, section, version)])

        rows.append((f"{config.model.base_precision} | base", measured(BASE_VERSION)))
        for version, (name, adapter) in enumerate(packed.items(), start=1):
            cluster.load_adapter(adapters.make_ref(adapter, version), adapter)
            rows.append((f"{name} | reasoning", measured(version)))
    return rows


if __name__ == "__main__":
    main()
