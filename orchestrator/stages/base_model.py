"""The base that a run trains, samples and exports: the model's own weights, or its int4 twin in the run directory."""

import logging
from dataclasses import replace
from pathlib import Path

from actors.hub import local_model
from configs.errors import UserError
from configs.models import is_hub_name, resolve_model_path
from configs.schema.run import ModelSection, RunConfig
from orchestrator.record.failures import first_line

log = logging.getLogger(__name__)
INT4_DIR = "int4_base"


def base_model_path(config: RunConfig) -> str:
    """Directory of what learner and engines load; made first when `model.base_precision` asks for int4 and it is not
    there, fetched first when it is a hub's."""
    return str(native_base(config) if config.model.base_precision == "native" else int4_base(config))


def for_actors(config: RunConfig) -> tuple[str, ModelSection]:
    """What actors on any node load: a directory that every node sees, or a hub name with the commit that is here."""
    if config.model.base_precision == "native" and is_hub_name(config.model.path):
        commit = native_base(config).name  # the hub's cache keeps snapshots under their commits
        return config.model.path, replace(config.model, revision=commit)
    return base_model_path(config), config.model


def int4_base(config: RunConfig) -> Path:
    """The int4 base of this run, a directory that every process can load as an ordinary model."""
    from deploy.export.quantize import quantised_base

    target = (config.run_dir / INT4_DIR).resolve()
    if not target.exists():
        log.info("quantising the base to int4 in %s", target)
    return quantised_base(native_base(config), target, config.model.quantize_method, config.model.dtype)


def native_base(config: RunConfig) -> Path:
    """The model's own directory; a hub model is fetched (or found in the hub's cache)."""
    path = resolve_model_path(config.model.path)
    if not is_hub_name(config.model.path):
        return Path(path)
    try:
        return Path(local_model(path, config.model))
    except Exception as error:  # huggingface_hub and its transport raise what they like
        at = f" at revision {config.model.revision}" if config.model.revision else ""
        raise UserError(
            f"model.path: expected a model that the hub has, found no {path}{at} ({first_line(error)})"
        ) from error
