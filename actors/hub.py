"""Models and adapters of the hub as files of this node. The only place that asks the hub for them."""

import platform
from pathlib import Path

from configs.errors import UserError
from configs.models import ADAPTER_FILES, is_local_adapter, looks_like_path
from configs.schema.run import ModelSection

MODEL_FILES = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model")


def local_adapter(name: str) -> Path:
    """The directory of a PEFT adapter; a hub name becomes its snapshot in this node's cache, fetched if it is not there.

    Raises UserError for one that cannot be had.
    """
    if is_local_adapter(name):
        return Path(name).expanduser()
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(ADAPTER_FILES)))
    except Exception as error:  # of requests, of the hub, of the disk
        raise UserError(
            f"sft.adapter: expected a directory or a hub name with {' and '.join(ADAPTER_FILES)}, found {name!r}, which cannot "
            f"be fetched ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
        ) from error


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
