"""GPU checks: `make gpu-check`. Skipped where there is no GPU."""

import pytest
import torch

from tests.gpu.models import IS_TINY


def pytest_collection_modifyitems(items):
    if not (IS_TINY or torch.cuda.is_available()):
        for item in items:
            if "tests/gpu" in str(item.path):
                item.add_marker(pytest.mark.skip(reason="no GPU here: torch.cuda.is_available() is false"))


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    """Where models go."""
    return tmp_path_factory.mktemp("gpu_models")
