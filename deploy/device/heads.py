"""Switcher and verifier of an export: `heads.safetensors`, checked against the base that it is to run with."""

from pathlib import Path

from safetensors import SafetensorError, safe_open

from actors.heads import FORMAT_VERSION, HIDDEN_UNITS, Heads, unpack_heads
from deploy.manifest import ExportError


def read_heads(path: Path, base_sha256: str, hidden_size: int) -> Heads:
    """Raises ExportError for a file of another format, or of heads that were fitted on another base."""
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ExportError(f"{path}: expected heads in safetensors format, found something else ({error})") from error
    if metadata.get("format_version") != FORMAT_VERSION:
        raise ExportError(
            f"{path}: expected heads of format {FORMAT_VERSION}, found format {metadata.get('format_version')}"
        )
    if (found := metadata.get("base_sha256", "none")) != base_sha256:
        raise ExportError(
            f"{path}: heads of another model: expected base {base_sha256[:16]}…, they were fitted on {found[:16]}…"
        )
    for name, shape in head_shapes(hidden_size).items():
        if shapes.get(name) != shape:
            raise ExportError(f"{path}: {name}: expected shape {shape}, found {shapes.get(name)}")
    try:
        return unpack_heads(path.read_bytes())
    except ValueError as error:
        raise ExportError(f"{path}: expected metadata of both heads, found {sorted(metadata)} ({error})") from error


def head_shapes(hidden_size: int) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor in the file."""
    return {
        "switcher.hidden.weight": (HIDDEN_UNITS, hidden_size),
        "switcher.hidden.bias": (HIDDEN_UNITS,),
        "switcher.output.weight": (1, HIDDEN_UNITS),
        "switcher.output.bias": (1,),
        "switcher.feature_mean": (hidden_size,),
        "switcher.feature_scale": (hidden_size,),
        "verifier.weight": (1, hidden_size),
        "verifier.bias": (1,),
        "verifier.feature_mean": (hidden_size,),
        "verifier.feature_scale": (hidden_size,),
    }
