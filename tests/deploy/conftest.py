"""A random Qwen2 with an adapter, and exports of it."""

from pathlib import Path

import pytest

from tests.deploy.exports import make_adapter, make_export, make_model


@pytest.fixture(scope="session")
def random_model(tmp_path_factory, tiny_model_dir) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "qwen2", "qwen2", tiny_model_dir)


@pytest.fixture(scope="session")
def random_adapter(random_model) -> bytes:
    return make_adapter(random_model)


@pytest.fixture(scope="session")
def plain_export(tmp_path_factory, random_model, random_adapter) -> Path:
    """Without heads."""
    return make_export(tmp_path_factory.mktemp("exports") / "plain", random_model, random_adapter)


@pytest.fixture(scope="session")
def export_with_heads(tmp_path_factory, random_model, random_adapter) -> Path:
    return make_export(tmp_path_factory.mktemp("exports") / "heads", random_model, random_adapter, threshold=0.5)
