"""The nodes of a run: each fetches the model once, before anything that loads it starts."""

import logging
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ray
from ray.util import placement_group_table
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.hub import local_model
from configs.schema.run import ModelSection
from orchestrator.record.failures import first_line

log = logging.getLogger(__name__)

REPORT_WAITING_S = 30.0


def nodes_of(groups: Iterable[PlacementGroup]) -> list[str]:
    """Ids of the nodes that placed groups have bundles on, each once."""
    return list(dict.fromkeys(node_id for group in groups for node_id in bundle_nodes(group)))


def bundle_nodes(group: PlacementGroup) -> list[str]:
    """Of each bundle of a placed group, the id of its node."""
    return list(placement_group_table(group)["bundles_to_node_id"].values())


def fetch_on_nodes(
    node_ids: Iterable[str],
    model_path: str,
    model: ModelSection,
    environment: Mapping[str, str],
    secrets: Mapping[str, str],
) -> None:
    """Have every node fetch a hub model, all at the same time, however long it takes: actors find it in the cache then.

    Of a directory, see that other nodes have it. Raises RuntimeError naming a node that does not get it.
    """
    node_ids = list(node_ids)
    if Path(model_path).is_dir() and len(node_ids) == 1:
        return
    fetch = ray.remote(num_cpus=0, runtime_env={"env_vars": dict(environment)})(_fetch)
    pending: dict[Any, str] = {
        fetch.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False)).remote(
            model_path, model, secrets
        ): node_id
        for node_id in node_ids
    }
    started_s = last_report_s = time.monotonic()
    while pending:
        ready, _ = ray.wait(list(pending), timeout=1.0)
        for reference in ready:
            node_id = pending.pop(reference)
            try:
                ray.get(reference)
            except ray.exceptions.RayError as error:
                cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
                raise RuntimeError(
                    f"model.path {model_path}: node {node_id[:8]} does not get it ({first_line(cause)})"
                ) from error
        if time.monotonic() - last_report_s > REPORT_WAITING_S:
            last_report_s = time.monotonic()
            log.info("%d node(s) still fetch %s, %.0f s", len(pending), model_path, last_report_s - started_s)


def _fetch(model_path: str, model: ModelSection, secrets: Mapping[str, str]) -> str:
    os.environ.update(secrets)
    return local_model(model_path, model)
