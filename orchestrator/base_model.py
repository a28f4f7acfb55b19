"""The base that a run trains, samples and exports: the model's own weights, or its int4 twin in the run directory."""

import logging
from pathlib import Path

from configs.models import is_hub_name, resolve_model_path
from configs.schema import RunConfig

log = logging.getLogger(__name__)
INT4_DIR = "int4_base"


def base_model_path(config: RunConfig) -> str:
    """What learner and engines load; made first when `model.base_precision` asks for int4 and it is not there."""
    if config.model.base_precision == "native":
        return resolve_model_path(config.model.path)
    return str(int4_base(config))


def int4_base(config: RunConfig) -> Path:
    """The int4 base of this run, a directory that every process can load as an ordinary model."""
    from deploy.quantize import quantised_base

    target = (config.run_dir / INT4_DIR).resolve()
    if not target.exists():
        log.info("quantising the base to int4 in %s", target)
    return quantised_base(native_base(config), target, config.model.quantize_method, config.model.dtype)


def native_base(config: RunConfig) -> Path:
    """The model's own directory; a hub model is fetched (or found in the hub's cache)."""
    path = resolve_model_path(config.model.path)
    if not is_hub_name(config.model.path):
        return Path(path)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(path, allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.txt"]))
