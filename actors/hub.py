"""A model of the hub as files of this node. The only place that asks the hub for one."""

from pathlib import Path

from configs.schema import ModelSection

MODEL_FILES = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model")


def local_model(path: str, model: ModelSection) -> str:
    """A directory stays what it is; a hub name becomes its snapshot in this node's cache, fetched if it is not there.

    Raises OSError, or what huggingface_hub raises, when it cannot be had.
    """
    if Path(path).is_dir():
        return path
    from huggingface_hub import snapshot_download

    patterns = [*MODEL_FILES, *(["*.py"] if model.trust_remote_code else [])]
    return snapshot_download(path, revision=model.revision or None, allow_patterns=patterns)
