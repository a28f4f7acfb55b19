"""An export in an environment of its own, with the extra `device` and nothing else installed; needs a package index."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = ("terse", "orchestrator", "actors", "rewards", "configs", "deploy")
ABSENT = ("torch", "transformers", "vllm", "ray", "deepspeed", "mlflow", "omegaconf", "gguf", "math_verify")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """`bin` of the environment; Terse is installed as a wheel, not from the source tree."""
    directory = tmp_path_factory.mktemp("clean")
    source = directory / "source"
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "constraints-cpu.txt"):
        shutil.copyfile(ROOT / name, source / name)
    subprocess.run([sys.executable, "-m", "venv", directory / "venv"], check=True)
    binaries = directory / "venv" / "bin"
    install = [binaries / "python", "-m", "pip", "install", "--quiet", "--constraint", source / "constraints-cpu.txt"]
    subprocess.run([*install, f"{source}[device]"], check=True, timeout=600)
    shutil.rmtree(source)
    return binaries


def test_an_export_runs_with_the_device_extra_alone(clean, tmp_path, export_with_heads):
    directory = shutil.copytree(export_with_heads, tmp_path / "export")
    program = f"import importlib.util as u; print([n for n in {ABSENT} if u.find_spec(n)])"

    def run(*command: object) -> str:
        # Not in the source tree, and without the variables that point at it.
        done = subprocess.run(
            list(map(str, command)), cwd=tmp_path, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert run(clean / "python", "-c", program).strip() == "[]"
    for command in ((clean / "terse", "device"), (clean / "python", "-m", "deploy.device.command")):
        answer = json.loads(run(*command, directory, "--prompt", "37+58-12=?", "--n", "2", "--cap", "8", "--json"))
        assert answer["mode"] in ("base", "reasoning")
        assert [completion["score"] is not None for completion in answer["completions"]] == [True, True]
    shown = run(clean / "terse", "device", directory, "--prompt", "1+1=?", "--mode", "base", "--cap", "4")
    assert shown.startswith("[base]\n")
    assert "tokens/s" in shown
