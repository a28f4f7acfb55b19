"""The stages in order, each skipped when its output is already there: sft, rl, heads, evaluate, protocols, export, report."""

import itertools
import logging
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import ray

from actors import adapters
from actors.heads import HEADS_FILE
from actors.hub import local_adapter
from actors.learner_group import LearnerLost
from actors.tokenizer import load_tokenizer, stop_token_ids
from actors.types import BASE_VERSION
from configs.errors import UserError
from configs.models import is_hub_name
from configs.schema.run import RunConfig
from orchestrator.cluster.cluster import ray_session, start_cluster
from orchestrator.cluster.dispatcher import is_lost_object
from orchestrator.data.prompts import held_out_prompts, make_cap
from orchestrator.data.sft_rows import RowCheck, SftRows
from orchestrator.evaluation.evaluate import evaluate, evaluate_caps, make_record, sample_rows
from orchestrator.evaluation.protocols import evaluate_protocols, is_complete
from orchestrator.evaluation.test_time import evaluate_scaling, evaluate_switcher, load_heads
from orchestrator.record import checkpoint, run_files
from orchestrator.record.best import best_adapter
from orchestrator.record.claim import claim_run_dir, make_run_dir
from orchestrator.record.dashboard import Dashboard
from orchestrator.record.events import Event, recorded
from orchestrator.record.events import append as append_event
from orchestrator.record.metrics import as_metrics, evaluation_metrics, length_reduction, start_policy, summarise
from orchestrator.record.mirror import Mirror
from orchestrator.record.result_settings import (
    begin_evaluation,
    is_evaluated_otherwise,
    refuse_other_export,
    write_export_settings,
)
from orchestrator.record.tracking import Tracker, start_tracker
from orchestrator.report.run import build_report
from orchestrator.rl.probe import prove_cap_holds
from orchestrator.stage import Stage
from orchestrator.stages import STAGES
from orchestrator.stages.base_model import native_base, resolve_bases
from orchestrator.stages.export import export, is_exported
from orchestrator.stages.sft import fine_tune
from orchestrator.stages.train import train
from orchestrator.tools.plan import check_fetched_model, check_hub, check_model

log = logging.getLogger(__name__)

TRAINING = frozenset({"sft", "rl"})
"""Stages that need the learner."""
ROW_CHECK_S = 10.0
"""How long the start of a cluster waits for a look at all SFT rows; the rest of it goes on meanwhile."""


def run(config: RunConfig, stages: tuple[str, ...] = STAGES) -> Path:
    """Run what is missing of `stages` and build the report; returns the path of `report.html`.

    Raises ConfigError when the run directory, or its copy at `run.mirror`, holds another configuration.
    """
    check_model(config)
    check_hub(config)
    mirror = Mirror(config)
    make_run_dir(config)
    with run_files.sole_writer(config.run_dir):
        mirror.fetch()
        claim_run_dir(config)
        try:
            report = run_missing(config, stages, mirror)
        except BaseException:  # Ctrl-C too: whatever ended the run, its events and last checkpoint belong into the copy
            mirror.try_to_push()
            raise
        mirror.push()
        return report


def run_missing(config: RunConfig, stages: Sequence[str], mirror: Mirror) -> Path:
    """`run` once the directory is this process's own."""
    run_dir = config.run_dir
    if config.reward.span == "thinking":
        log.warning("reward.span=thinking: models learn to close the thought early and to reason on in the answer")
    todo = [name for name in stages if not is_done(config, name)]
    for name in stages:
        if name not in todo:
            log.info("%s: done before, skipped", name)
    if not todo:
        return build_report(run_dir)
    with start_tracker(config, "pipeline", config.tracking.parent_run_id or None) as parent:
        if on_cluster := [name for name in todo if name != "export"]:
            run_stages(config, on_cluster, parent, mirror)
        report = build_report(run_dir)
        if "export" in todo:
            report = run_export(config, parent)
        parent.log_metrics(final_metrics(run_dir), step=0)
        parent.log_directory(run_dir / "figures", "figures")
        for name in ("report.html", "report.md", "summary.json"):
            parent.log_file(run_dir / name)
    return report


def run_stages(config: RunConfig, names: Sequence[str], parent: Tracker, mirror: Mirror) -> None:
    """Start the cluster once and run the stages on it."""
    if is_hub_name(config.model.path):
        check_fetched_model(config, native_base(config.model))
    bases = resolve_bases(config)
    with ExitStack() as stack:
        with part_of(config.run_dir, "start"):
            # Beside Ray's start: transformers' imports alone take seconds.
            reader = stack.enter_context(ThreadPoolExecutor(1))
            tokenizer = reader.submit(load_tokenizer, str(bases.trained), config.model)
            stack.enter_context(ray_session(config))
            row_check = None
            if "sft" in names:
                row_check = RowCheck(make_sft_rows(config, bases.trained, tokenizer.result()))
                row_check.wait(ROW_CHECK_S)
            dashboard = Dashboard()
            cluster = stack.enter_context(
                start_cluster(
                    config,
                    bases.actor_path,
                    bases.actor_model,
                    partial(record_event, config, dashboard),
                    has_learner=not TRAINING.isdisjoint(names),
                )
            )
            dashboard.show_losses(run=config.run.name)
            if row_check is not None:
                row_check.wait()
            tokenizer.result()
        for name in names:
            with part_of(config.run_dir, name), start_tracker(config, name, parent_run_id=parent.run_id) as tracker:
                run_stage(
                    Stage(
                        name=name,
                        config=config,
                        cluster=cluster,
                        tracker=tracker,
                        tokenizer=tokenizer.result(),
                        base_dir=bases.trained,
                        dashboard=dashboard,
                        mirror=mirror,
                    )
                )


def record_event(config: RunConfig, dashboard: Dashboard, event: Event, details: dict[str, Any]) -> None:
    """Write down what happened to the cluster, whichever stage it happened in."""
    append_event(config.run_dir, "cluster", event, **details)
    if event is Event.RESTARTED:
        dashboard.count_loss(details["role"], run=config.run.name)


def run_stage(stage: Stage) -> None:
    """One stage; when the learner is lost, or an adapter of its making with its node, from the last checkpoint again
    with a new one."""
    max_restarts = stage.config.cluster.max_learner_restarts
    for num_restarts in itertools.count():
        try:
            RUN_STAGE[stage.name](stage)
            return
        except (LearnerLost, ray.exceptions.RayError) as error:
            if not isinstance(error, LearnerLost) and not is_lost_object(error):
                raise
            if num_restarts >= max_restarts:
                raise RuntimeError(
                    f"the learner was lost {num_restarts + 1} times (cluster.max_learner_restarts={max_restarts}): {error}"
                ) from error
            log.warning("%s; starting the learner again, from the last checkpoint", error)
            stage.cluster.restart_learner(str(error))


def export_only(config: RunConfig, force: bool, stage: str = "rl") -> Path:
    """The export of a run that is trained as far as `stage`, in place of one that is there when `force`."""
    make_run_dir(config)
    with run_files.sole_writer(config.run_dir):
        claim_run_dir(config)
        with start_tracker(config, "pipeline", config.tracking.parent_run_id or None) as parent:
            build_report(config.run_dir)
            return run_export(config, parent, force, stage)


def run_export(config: RunConfig, parent: Tracker, force: bool = False, stage: str = "rl") -> Path:
    """Needs no cluster; the report's figures and numbers go into the model card. Returns the path of the new report."""
    with part_of(config.run_dir, "export"), start_tracker(config, "export", parent_run_id=parent.run_id) as tracker:
        packed = require_adapter(config, stage) if stage != "rl" else require_step(config, config.export.step)
        tracker.log_metrics(export(config, packed, parent.run_id, force), step=0)
        write_export_settings(config)
    return build_report(config.run_dir)


def make_sft_rows(config: RunConfig, base: Path, tokenizer: Any) -> SftRows:
    return SftRows(config, tokenizer, stop_token_ids(str(base), tokenizer))


def run_sft(stage: Stage) -> None:
    if stage.config.engine.num_gpus == 0:
        # Each step of a learner whose threads have to share their cores with engines that still start takes three times as
        # long, and so do the engines.
        stage.cluster.engines.wait_for(len(stage.cluster.engines))
    fine_tune(stage, make_sft_rows(stage.config, stage.base_dir, stage.tokenizer))


def run_rl(stage: Stage) -> None:
    has_start = stage.config.start_policy == "sft"
    train(stage, require_adapter(stage.config, "sft") if has_start else None)


def run_heads(stage: Stage) -> None:
    from orchestrator.stages.heads import fit_heads  # and torch: seconds, which a run's start need not take

    packed = require_adapter(stage.config, "rl")
    version = stage.config.rl.num_steps
    stage.cluster.load_adapter(adapters.make_ref(packed, version), packed)
    fit_heads(stage, version)


def run_evaluation(stage: Stage) -> None:
    """Every policy on the same held-out prompts, in one go, then what the heads and more samples make of the last."""
    config = stage.config
    if config.evaluation.step != "last":
        require_step(config, config.evaluation.step)
    begin_evaluation(config)
    prompts = held_out_prompts(config, stage.tokenizer)
    caps = [make_cap(cap, config.budget, stage.tokenizer) for cap in config.evaluation.caps_tokens]
    if caps:
        prove_cap_holds(stage.cluster, caps[0], prompts[0][1], BASE_VERSION)
    policies = load_policies(stage)
    dispatcher = stage.cluster.make_evaluation_dispatcher()
    for policy, (version, _) in policies.items():
        finished = evaluate(dispatcher, prompts, config.evaluation, version)
        records, samples = [make_record(one) for one in finished], sample_rows(finished, stage.prompt_text)
        capped = evaluate_caps(dispatcher, finished, caps)
        run_files.write_evaluation(config.run_dir, policy, records, samples, capped)
        stage.tracker.log_table(samples, f"samples/{policy}")
        stage.tracker.log_metrics(evaluation_metrics(f"eval/{policy}", records), step=0)
        for cap, found in run_files.read_capped_records(config.run_dir, policy).items():
            stage.tracker.log_metrics(as_metrics(f"eval/{policy}/cap_{cap}", summarise(found)), step=0)
    if "rl" not in policies:
        return
    heads = load_heads(stage) if config.heads.num_tasks else None
    if heads is not None:
        by_mode = [run_files.read_records(config.run_dir, policy) for policy in ("base", "rl")]
        evaluate_switcher(stage, prompts, heads, *by_mode)
    if config.scaling.num_tasks:
        evaluate_scaling(stage, prompts, heads, version)


def run_protocols(stage: Stage) -> None:
    evaluate_protocols(stage, load_policies(stage))


def load_policies(stage: Stage) -> dict[str, tuple[int, str]]:
    """The policies that there are, each with its version, which every engine holds, and its SHA-256.

    A version counts steps of RL, here as in training: the adapter after SFT is 0.
    """
    policies = {}
    for policy in stage.config.policies:
        version, packed = {"base": BASE_VERSION, "sft": 0}.get(policy, 0), None
        if policy == "rl":
            version, packed = find_step(stage.config, stage.config.evaluation.step) or (0, None)
        elif policy == "sft":
            packed = find_adapter(stage.config, policy)
        if packed is not None:
            ref = adapters.make_ref(packed, version)
            stage.cluster.load_adapter(ref, packed)
            policies[policy] = (version, ref.sha256)
        elif policy == "base":
            policies[policy] = (version, "")
        else:
            log.info("%s: no finished adapter, so this policy is left out", policy)
    return policies


RUN_STAGE = {
    "sft": run_sft,
    "rl": run_rl,
    "heads": run_heads,
    "evaluate": run_evaluation,
    "protocols": run_protocols,
}


def final_metrics(run_dir: Path) -> dict[str, float]:
    """What runs are compared by: `eval/accuracy`, `eval/mean_tokens` and `eval/length_reduction` of the last policy."""
    records = run_files.read_all_records(run_dir)
    if "rl" not in records:
        return {}
    reduction = length_reduction(records[start_policy(records)], records["rl"])["ratio_of_means"]
    return as_metrics("eval", summarise(records["rl"])) | {"eval/length_reduction": reduction}


def is_done(config: RunConfig, stage: str) -> bool:
    if stage == "evaluate":
        if is_evaluated_otherwise(config):
            return False
        caps = set(config.evaluation.caps_tokens)
        heads_file = config.run_dir / "heads" / HEADS_FILE
        wanted = [run_files.SWITCHER_FILE] * (config.heads.num_tasks > 0 and heads_file.is_file())
        wanted += [run_files.SCALING_FILE] * (config.scaling.num_tasks > 0)
        return all((config.run_dir / name).is_file() for name in wanted) and all(
            (config.run_dir / "evaluation" / f"{policy}.jsonl").is_file()
            and caps <= run_files.read_capped_records(config.run_dir, policy).keys()
            for policy in config.policies
        )
    if stage == "heads":
        return config.heads.num_tasks == 0 or (config.run_dir / "heads" / HEADS_FILE).is_file()
    if stage == "protocols":
        return is_complete(config, config.policies)
    if stage == "export":
        if config.export.at_end and is_exported(config.run_dir):
            refuse_other_export(config)
        return is_exported(config.run_dir) or not config.export.at_end
    if stage == "sft" and (config.sft.adapter or config.start_policy == "base"):
        return True
    section = config.sft if stage == "sft" else config.rl
    return checkpoint.completed_adapter(config.run_dir / stage, section.num_steps) is not None


def require_adapter(config: RunConfig, stage: str) -> bytes:
    """The final adapter of a stage; UserError that says how to make it when it is not there."""
    packed = find_adapter(config, stage)
    if packed is None and stage == "sft" and config.start_policy == "base":
        raise UserError("sft.num_steps: expected above 0 (or sft.adapter) for an adapter after SFT, found 0")
    if packed is None:
        num_steps = config.sft.num_steps if stage == "sft" else config.rl.num_steps
        command = "sft" if stage == "sft" else "train"
        raise UserError(
            f"{config.run_dir / stage}: expected the adapter of step {num_steps}, found none; run `terse {command}` first"
        )
    return packed


def find_adapter(config: RunConfig, stage: str) -> bytes | None:
    """The final adapter of a stage; None when the stage is not done."""
    if stage == "sft" and config.sft.adapter:
        return adapters.read_directory(local_adapter(config.sft.adapter))
    if stage == "sft" and config.start_policy == "base":
        return None
    num_steps = config.sft.num_steps if stage == "sft" else config.rl.num_steps
    return checkpoint.completed_adapter(config.run_dir / stage, num_steps)


def find_step(config: RunConfig, step: str) -> tuple[int, adapters.Packed] | None:
    """Step and adapter of RL that `step` means: `last`, `best`, or a number; None when it is not there."""
    directory = config.run_dir / "rl"
    if step == "best":
        return best_adapter(directory)
    if step == "last":
        packed = find_adapter(config, "rl")
        return None if packed is None else (config.rl.num_steps, packed)
    found = [path for path in checkpoint.list_checkpoints(directory) if checkpoint.step_of(path) == int(step)]
    return (int(step), checkpoint.load(found[0]).adapter) if found else None


def require_step(config: RunConfig, step: str) -> adapters.Packed:
    """The adapter of `find_step`; UserError that says which steps there are when it is not there."""
    if step == "last":
        return require_adapter(config, "rl")
    found = find_step(config, step)
    if found is None:
        steps = ", ".join(str(checkpoint.step_of(path)) for path in checkpoint.list_checkpoints(config.run_dir / "rl"))
        words = "an adapter kept by rl.keep_best" if step == "best" else f"a checkpoint of step {step}"
        raise UserError(f"{config.run_dir / 'rl'}: expected {words}, found steps {steps or 'none'}")
    return found[1]


@contextmanager
def part_of(run_dir: Path, part: str) -> Iterator[None]:
    """Write down when a part of the run begins and how it ends, and add its seconds to `timings.json`."""
    started_s = time.monotonic()
    with recorded(run_dir, part):
        try:
            yield
        finally:
            run_files.add_timing(run_dir, part, time.monotonic() - started_s)
