"""Which files of heads a device refuses."""

import pytest

from deploy.device.heads import read_heads
from deploy.manifest import ExportError
from tests.deploy.exports import write_heads


def test_heads_of_another_model_another_format_and_no_heads_are_refused(tmp_path):
    path = tmp_path / "heads.safetensors"
    write_heads(path, "a" * 64, 16)
    assert read_heads(path, "a" * 64, 16).chunk_tokens == 4
    with pytest.raises(ExportError, match=r"heads of another model: expected base bbbb.*fitted on aaaa"):
        read_heads(path, "b" * 64, 16)
    with pytest.raises(ExportError, match=r"switcher\.hidden\.weight: expected shape \(8, 32\), found \(8, 16\)"):
        read_heads(path, "a" * 64, 32)
    path.write_bytes(b"not safetensors at all")
    with pytest.raises(ExportError, match="expected heads in safetensors format"):
        read_heads(path, "a" * 64, 16)
