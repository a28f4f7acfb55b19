"""The base that a run trains, samples and exports: the model's own weights, or its int4 twin in the run directory."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path

from actors.hub import local_model
from configs.errors import UserError
from configs.models import is_hub_name, resolve_model_path
from configs.schema.run import ModelSection, RunConfig
from orchestrator.record.failures import first_line

log = logging.getLogger(__name__)
INT4_DIR = "int4_base"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bases:
    """Where a run's base model lies, found (and fetched or quantised, if need be) once."""

    native: Path
    """The model's own directory"""
    trained: Path
    """What learner and engines load: the same, or the int4 twin"""
    actor_path: str
    """How actors on any node find it: a directory that every node sees, or a hub name …"""
    actor_model: ModelSection
    """… with the commit that is here"""


def resolve_bases(config: RunConfig) -> Bases:
    """Fetch a hub model, and make the int4 base that `model.base_precision` asks for, unless they are there.

    Raises UserError when the hub has no such model.
    """
    native = native_base(config.model)
    if config.model.base_precision == "int4":
        trained = int4_base(config, native)
    elif is_hub_name(config.model.path):
        # The hub's cache keeps snapshots under their commits.
        model = replace(config.model, revision=native.name)
        return Bases(native=native, trained=native, actor_path=config.model.path, actor_model=model)
    else:
        trained = native
    return Bases(native=native, trained=trained, actor_path=str(trained), actor_model=config.model)


def int4_base(config: RunConfig, native: Path) -> Path:
    """The int4 base of this run, a directory that every process can load as an ordinary model."""
    from deploy.export.quantize import quantised_base

    target = (config.run_dir / INT4_DIR).resolve()
    if not target.exists():
        log.info("quantising the base to int4 in %s", target)
    return quantised_base(native, target, config.model.quantize_method, config.model.dtype)


def native_base(model: ModelSection) -> Path:
    """The model's own directory; a hub model is fetched (or found in the hub's cache)."""
    path = resolve_model_path(model.path)
    if not is_hub_name(model.path):
        return Path(path)
    try:
        return Path(local_model(path, model))
    except Exception as error:  # huggingface_hub and its transport raise what they like
        at = f" at revision {model.revision}" if model.revision else ""
        raise UserError(
            f"model.path: expected a model that the hub has, found no {path}{at} ({first_line(error)})"
        ) from error
