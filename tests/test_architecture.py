"""The rules of the house that a program can check: who imports whom, how long a file may be, what may be written."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LAYERS = ("configs", "rewards", "actors", "deploy", "orchestrator", "terse")
"""A folder imports only from folders to its left, and from itself."""
ROOMS = (
    *("record", "data", "cluster", "stage", "rl", "evaluation", "report", "tools", "stages"),
    *("pipeline", "search", "sweep", "api", "__main__"),
)
"""Folders and files of `orchestrator/`: each imports only from those to its left, and from itself."""
DEVICE_LIBRARIES = {"jinja2", "numpy", "safetensors", "tokenizers", "xllamacpp"}
"""What `deploy/device` may import, besides Python's own and Terse: the extra `device`."""
ONLY_IMPORTERS = {
    "fsspec": {"orchestrator/record/mirror.py"},
    "omegaconf": {"configs/load.py", "configs/layers.py"},
    "math_verify": {"rewards/math_answer.py"},
    "vllm": {"actors/engine.py", "actors/kv_sharing.py", "actors/cpu_lora.py", "actors/patches.py"},
    "deepspeed": {"actors/learner.py"},
    "datasets": {"orchestrator/data/sources.py"},
    "mlflow": {"orchestrator/record/tracking.py"},
    "optuna": {"orchestrator/search.py"},
    "matplotlib": {"orchestrator/report/figures.py"},
    "gguf": {"deploy/export/gguf.py"},
    "xllamacpp": {"deploy/device/llama.py"},
}
MAX_LINES = 400


def source_files(root: Path) -> list[Path]:
    return sorted(path for layer in LAYERS for path in (root / layer).rglob("*.py"))


def imports_of(path: Path) -> Iterator[str]:
    """Top-level packages that a file imports anywhere, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.split(".")[0]


def arrow_violations(root: Path) -> list[str]:
    found = []
    for path in source_files(root):
        layer = path.relative_to(root).parts[0]
        for package in imports_of(path):
            if package in LAYERS and LAYERS.index(package) > LAYERS.index(layer):
                found.append(f"{path.relative_to(root)} imports {package}")
    return found


def modules_of(path: Path) -> Iterator[str]:
    """Dotted names that a file imports anywhere: `from a.b import c` is `a.b.c`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room_violations(root: Path) -> list[str]:
    found = []
    for path in sorted((root / "orchestrator").rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if parts == ("orchestrator", "__init__"):
            continue
        for module in modules_of(path):
            package, *rest = module.split(".")
            if package == "orchestrator" and ROOMS.index(rest[0]) > ROOMS.index(parts[1]):
                found.append(f"{path.relative_to(root)} imports {module}")
    return found


def importer_violations(root: Path) -> list[str]:
    found = []
    for path in source_files(root):
        name = path.relative_to(root).as_posix()
        for package in imports_of(path):
            if package in ONLY_IMPORTERS and name not in ONLY_IMPORTERS[package]:
                found.append(f"{name} imports {package}")
    return found


def tracked_text_files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    paths = [ROOT / name for name in listed.stdout.splitlines()]
    return [path for path in paths if path.is_file() and path.suffix not in {".safetensors", ".png"}]


def test_folders_import_only_from_their_left():
    assert arrow_violations(ROOT) == []


def test_rooms_of_the_orchestrator_import_only_from_their_left():
    assert room_violations(ROOT) == []


def test_nothing_that_the_device_imports_needs_more_than_its_extra():
    code = (
        "import pathlib, pkgutil, importlib, sys, deploy.device\n"
        "before = set(sys.modules)\n"
        "for module in pkgutil.iter_modules(deploy.device.__path__):\n"
        "    importlib.import_module(f'deploy.device.{module.name}')\n"
        "print(sorted({name.split('.')[0] for name in set(sys.modules) - before}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(ast.literal_eval(done.stdout))
    assert "numpy" in loaded
    assert (
        loaded & {"torch", "transformers", "vllm", "deepspeed", "ray", "mlflow", "omegaconf", "gguf", "peft"} == set()
    )
    written = {name for path in (ROOT / "deploy" / "device").glob("*.py") for name in imports_of(path)}
    assert written - set(sys.stdlib_module_names) - set(LAYERS) <= DEVICE_LIBRARIES


def test_heavy_libraries_have_one_importer():
    assert importer_violations(ROOT) == []


def test_files_stay_under_the_limit():
    files = [*source_files(ROOT), *(ROOT / "tests").rglob("*.py")]
    lengths = {path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines()) for path in files}
    assert {name: length for name, length in lengths.items() if length > MAX_LINES} == {}


def test_the_rules_find_what_they_forbid(tmp_path):
    for layer in LAYERS:
        (tmp_path / layer).mkdir()
    (tmp_path / "rewards" / "bad.py").write_text("def f():\n    from orchestrator.stages.train import train\n")
    (tmp_path / "orchestrator" / "stage.py").write_text("import vllm.lora\nfrom actors import engine\n")
    (tmp_path / "orchestrator" / "record").mkdir()
    (tmp_path / "orchestrator" / "record" / "bad.py").write_text("from orchestrator import stages\n")
    assert arrow_violations(tmp_path) == ["rewards/bad.py imports orchestrator"]
    assert room_violations(tmp_path) == ["orchestrator/record/bad.py imports orchestrator.stages"]
    assert importer_violations(tmp_path) == ["orchestrator/stage.py imports vllm"]


def test_the_command_line_starts_without_heavy_imports():
    code = "import sys, orchestrator.__main__; print(sorted({n.split('.')[0] for n in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(ast.literal_eval(done.stdout))
    assert loaded & {"torch", "transformers", "vllm", "deepspeed", "ray", "mlflow", "matplotlib", "datasets"} == set()


def test_what_starts_a_run_waits_for_no_library_of_models():
    code = "import sys, orchestrator.pipeline; print(sorted({n.split('.')[0] for n in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(ast.literal_eval(done.stdout))
    assert loaded & {"torch", "transformers", "vllm", "deepspeed", "peft", "sklearn", "scipy", "datasets"} == set()


def test_no_index_address_and_no_home_directory_is_written_anywhere():
    forbidden = re.compile(r"--(?:extra-)?index-url|--find-links|/home/\w|/root/\w|https?://[\w.]*pypi")
    here = Path(__file__)
    found = [
        f"{path.relative_to(ROOT)}: {match.group()}"
        for path in tracked_text_files()
        if path != here
        for match in forbidden.finditer(path.read_text(errors="ignore"))
    ]
    assert found == []
