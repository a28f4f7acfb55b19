"""A model of the hub as files of this node. The only place that asks the hub for one."""

import platform
from pathlib import Path

from configs.models import looks_like_path
from configs.schema.run import ModelSection

MODEL_FILES = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model")


def local_model(path: str, model: ModelSection) -> str:
    """A directory stays what it is; a hub name becomes its snapshot in this node's cache, fetched if it is not there.

    Raises FileNotFoundError naming this node for a directory that is not there, and what huggingface_hub raises for a model
    that cannot be had.
    """
    if Path(path).is_dir():
        return path
    if looks_like_path(path):
        raise FileNotFoundError(f"expected the directory {path} on node {platform.node()} too, found none")
    from huggingface_hub import snapshot_download

    patterns = [*MODEL_FILES, *(["*.py"] if model.trust_remote_code else [])]
    return snapshot_download(path, revision=model.revision or None, allow_patterns=patterns)
